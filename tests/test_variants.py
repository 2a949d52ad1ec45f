"""Variants of the published rows: what each changes, and that they are shown beside their row."""

import csv

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from lcn import audit
from tasks.config import compose
from tasks.errors import InputError
from tasks.evidence.gather import all_rows
from tasks.evidence.page_tables import score_tables
from tasks.evidence.rows import published_rows, reference, variant_rows
from tasks.evidence.tables import csv_text, readme_text
from tasks.models import build_model, training_size
from tasks.models.mask_rcnn import reach_norms
from tasks.protocol import paper_row
from tasks.schema import check_config


def difference(name: str, base: str) -> dict:
    """What an experiment sets otherwise than another, by dotted key."""

    def flat(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    one, other = (
        dict(flat(OmegaConf.to_container(compose([f"experiment={n}"]), resolve=True)))
        for n in (name, base)
    )
    return {
        key: one.get(key) for key in one.keys() | other.keys() if one.get(key) != other.get(key)
    }


def test_every_lcn_row_has_a_twin_with_the_released_layer():
    lcn = {n for n, row in published_rows().items() if row.norm["name"] == "lcn"}
    released = {n for n, row in variant_rows().items() if row.variant == "released"}
    assert len(lcn) == 16
    assert released == {f"released_{name}" for name in lcn}
    for name in lcn:
        row, twin = published_rows()[name], variant_rows()[f"released_{name}"]
        assert twin.norm == row.norm | {"name": "lcn_released"}
        assert (twin.task, twin.model, twin.published) == (row.task, row.model, row.published)


def test_variants_are_named_after_their_row_and_never_in_its_glob():
    counts = dict.fromkeys(("released", "duke", "large", "pretrained"), 0)
    for name, row in variant_rows().items():
        counts[row.variant] += 1
        base = published_rows()[name.removeprefix(f"{row.variant}_")]
        assert row.published == base.published
        comment = (ROOT / f"configs/experiment/{name}.yaml").read_text().splitlines()[1]
        primary = row.published[row.primary]
        assert f"experiment={name}" in comment
        assert f"{primary:.2f}" in comment
    assert counts == {"released": 16, "duke": 3, "large": 3, "pretrained": 24}
    assert not [name for name in variant_rows() if name.startswith("table")]


@pytest.mark.parametrize(
    ("name", "base", "changed"),
    [
        ("released_table4_w383", "table4_w383", {"norm.name": "lcn_released"}),
        ("large_table8_gn", "table8_gn", {
            "task.model.name": "unet_large", "task.model.widths": [32, 64, 128, 256, 128],
            "task.model.mini.width": 0.25,
        }),
        ("duke_table7_lcn", "table7_lcn", {
            "task.model.name": "unet_duke", "task.model.widths": [32, 64, 128, 256, 512],
            "task.model.transposed": None, "task.model.margin": 92,
            "task.model.mini.crop": [284, 284],
        }),
        ("pretrained_table1_w48_lcn", "table1_w48_lcn", {
            "task.model.pretrained": "(must be given)",
        }),
    ],
)  # fmt: skip
def test_a_variant_changes_what_its_name_says_and_nothing_else(name, base, changed):
    assert difference(name, base) == changed
    assert paper_row(compose([f"experiment={name}"])) == paper_row(compose([f"experiment={base}"]))


def test_weights_that_must_be_given_are_asked_for():
    with pytest.raises(InputError, match=r"task.model.pretrained is missing: give .*=FILE"):
        check_config(compose(["experiment=pretrained_table1_w18_lcn"]))
    check_config(
        compose(["experiment=pretrained_table1_w18_lcn", f"task.model.pretrained={ROOT}/README.md"])
    )


WINDOWED = {  # experiment: windowed layers in training and evaluation; of how many
    "table1_w18_lcn": ((20, 42), (1, 20), 72),
    "table4_w199": ((20, 42), (1, 20), 72),
    "table4_w255": ((20, 42), (1, 20), 72),
    "table4_w383": ((1, 20), (0, 1), 72),
    "table4_w511": ((1, 20), (0, 1), 72),
    "table4_all": ((0, 0), (0, 0), 72),
    "table1_w48_lcn": ((81, 172), (1, 81), 306),
    "table5_lcn": ((14, 14), (1, 1), 69),
    "table6_lcn": ((0, 0), (0, 0), 53),
    "table7_lcn": ((12, 12), (12, 12), 18),
    "duke_table7_lcn": ((12, 12), (12, 12), 18),
    "table8_lcn": ((24, 24), (24, 24), 27),
    "large_table8_lcn": ((24, 24), (24, 24), 27),
}
SLOW = ("table4_w199", "table4_w255", "table4_w511", "table4_all", "table1_w48_lcn")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in WINDOWED]
)
def test_layers_that_see_a_window_under_each_rule(name):
    centered, released, count = WINDOWED[name]
    assert windowed(name) == (centered, count)
    assert windowed(name, "norm=lcn_released") == (released, count)


def windowed(name: str, *overrides: str) -> tuple[tuple[int, ...], int]:
    cfg = compose([f"experiment={name}", *overrides])
    base = compose([f"experiment={name}"]).norm
    cfg.norm.c_group, cfg.norm.window = base.c_group, base.window
    if cfg.task.num_classes is None:
        cfg.task.num_classes = cfg.task.outputs = 80
    model, forward = build_model(cfg), None
    size, larger = (training_size(cfg),) * 2
    if cfg.task.kind == "detection":  # images are padded to whole cells
        forward, size = reach_norms, (800, 1344)
        larger = size
    elif cfg.task.facts.image_size and cfg.task.name == "cityscapes":
        larger = tuple(cfg.task.facts.image_size)
    counts = []
    for training, shape in ((True, size), (False, larger)):
        if counts and shape == size and not hasattr(model, "margin"):
            counts.append(counts[0])  # the same input again
            continue
        report = audit(model.train(training), (1, len(cfg.task.bands), *shape), forward=forward)
        counts.append(report.windowed_count)
    return tuple(counts), len(report)


def lines_of(evidence, table: int, scale: str = "mini") -> dict[tuple[str, str], dict]:
    lines = csv.DictReader(csv_text(evidence, scale, table).splitlines())
    return {(line["norm"], line["variant"]): line for line in lines}


def test_a_twin_stands_beside_its_row_and_the_paper_s_number(write_run, evidence):
    for experiment, score in (
        ("table8_gn", 60.0), ("table8_lcn", 62.0), ("released_table8_lcn", 65.0),
    ):  # fmt: skip
        write_run(f"experiment={experiment}", score=score)
    found = evidence()
    assert found.left_out == {}
    lines = lines_of(found, 8)
    ours, released = lines["lcn", ""], lines["lcn", "released"]
    assert (ours["miou"], released["miou"]) == ("62.0000", "65.0000")
    assert ours["miou_paper"] == released["miou_paper"] == "76.51"
    assert (ours["miou_minus_gn"], released["miou_minus_gn"]) == ("2.0000", "5.0000")
    assert len(lines) == 4
    (table,) = score_tables(found, "mini", 8)
    assert [row[:2] for row in table.rows] == [
        ["bn", ""], ["gn", ""], ["lcn", ""], ["lcn", "released"],
    ]  # fmt: skip
    assert "| lcn | released | 65.00 | 76.51 |" in readme_text(found).replace("UNet | ", "")


def test_variants_that_were_not_run_take_no_lines(write_run, evidence):
    write_run("experiment=table8_gn")
    assert len(lines_of(evidence(), 8)) == 3


def test_another_network_is_compared_with_its_own_gn(write_run, evidence):
    for experiment, score in (
        ("table8_gn", 60.0), ("large_table8_gn", 70.0), ("large_table8_lcn", 71.0),
    ):  # fmt: skip
        write_run(f"experiment={experiment}", score=score)
    assert lines_of(evidence(), 8)["lcn", "large"]["miou_minus_gn"] == "1.0000"
    assert reference(all_rows()["released_table7_lcn"]).experiment == "table7_gn"
    assert reference(all_rows()["duke_table7_lcn"]).experiment == "duke_table7_gn"
    assert reference(all_rows()["pretrained_table4_all"]).experiment == "pretrained_table1_w18_gn"


def test_a_run_from_weights_counts_as_the_variant_alone(write_run, evidence):
    write_run("experiment=table1_w18_gn", score=40.0)
    weights = "task.model.pretrained=elsewhere/hrnet.pth"
    write_run("experiment=table1_w18_gn", weights, score=50.0)
    found = evidence()
    assert found.left_out == {}
    lines = [
        line
        for line in csv.DictReader(csv_text(found, "mini", 1).splitlines())
        if line["norm"] == "gn" and line["status"] == "run"
    ]
    assert [(line["variant"], line["miou"]) for line in lines] == [
        ("", "40.0000"), ("pretrained", "50.0000"),
    ]  # fmt: skip
    assert all_rows()["pretrained_table1_w18_gn"].label == "gn_g16 (pretrained)"
    assert all_rows()["released_table1_w18_lcn"].label == "lcn_released_c2_w227"


@pytest.mark.parametrize(
    ("experiment", "keys"),
    [
        ("table6_gn", ("task.color_jitter", "task.optimizer.nesterov", "task.interpolation")),
        ("table5_gn", ("task.box_loss_beta", "task.optimizer.decay_biases")),
    ],
)
def test_a_run_of_before_a_default_changed_is_no_longer_its_row(
    write_run, evidence, experiment, keys
):
    folder = write_run(f"experiment={experiment}")
    assert evidence().left_out == {}
    text = OmegaConf.load(folder / "config.yaml")
    for key in ("color_jitter", "lighting", "interpolation", "box_loss_beta"):
        text.task.pop(key, None)
    for key in ("nesterov", "bias_lr_factor", "decay_biases", "decay_norms"):
        text.task.optimizer.pop(key, None)
    OmegaConf.save(text, folder / "config.yaml")
    why = evidence().left_out[folder]
    for key in keys:
        assert f"{key} " in why
