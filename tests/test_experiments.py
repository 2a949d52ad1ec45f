"""Every published row of Tables 1 to 8 is one experiment; the same experiment is the same run."""

import csv
import json

import pytest
from conftest import ROOT

from tasks.config import compose, options
from tasks.evidence.rows import variant_rows
from tasks.identity import run_identity
from tasks.models import scaled_norm
from tasks.protocol import norm_label, paper_row
from tasks.runs.directory import Run
from tasks.runs.record import flattened

PUBLISHED = [name for name in options("experiment") if name.startswith("table")]
OURS = [n for n in options("experiment") if n not in PUBLISHED and n not in variant_rows()]
ROWS = {
    (table, tuple(row.values()))
    for table in range(1, 9)
    for row in csv.DictReader((ROOT / f"results/paper/table{table}.csv").open())
}


def run_directory(*overrides, world_size=4, dataset="t v"):
    cfg = compose(list(overrides))
    return Run(cfg, dataset, world_size).directory


def as_text(value):
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def test_experiments_are_the_published_rows():
    found = set()
    for name in PUBLISHED:
        cfg = compose([f"experiment={name}"])
        row = paper_row(cfg)
        assert name.startswith(f"table{row['table']}_")
        found.add((row.pop("table"), tuple(as_text(value) for value in row.values())))
    assert found == ROWS
    assert len(PUBLISHED) == len(ROWS) == 36


@pytest.mark.parametrize("name", OURS)
def test_rows_of_our_own_say_their_command_and_stand_beside_no_published_row(name):
    comment = (ROOT / f"configs/experiment/{name}.yaml").read_text().splitlines()[1]
    assert f"experiment={name}" in comment
    assert paper_row(compose([f"experiment={name}"])) is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_experiment_states_its_published_numbers_and_has_its_settings(name):
    cfg = compose([f"experiment={name}"])
    row = paper_row(cfg)
    comment = (ROOT / f"configs/experiment/{name}.yaml").read_text().splitlines()[1]
    numbers = ("overall_iou", "overall_acc") if "overall_iou" in row else row
    for part in (
        f"Table {row['table']},",
        f"experiment={name}",
        *(as_text(row[n]) for n in numbers if isinstance(row[n], float)),
    ):
        assert part in comment, part
    assert cfg.task.model.name == {8: "unet_slim"}.get(row["table"], row["model"])
    assert cfg.norm.name == row["norm"]
    for key in ("groups", "c_group", "window"):
        if key in row:
            assert str(cfg.norm[key]) == row[key]


PROTOCOLS = {  # sections 4.1 to 4.5: epochs, devices, crop or side lengths, optimizer, rate
    "cityscapes": (484, 4, [512, 1024], "sgd", 0.01),
    "coco": (13, 4, [800, 1333], "sgd", 0.005),
    "imagenet": (100, 8, [224, 224], "sgd", 0.1),
    "inria": (100, 1, [572, 572], "adam", 0.001),
    "chesapeake": (100, 1, [256, 256], "adam", 0.001),
}
BATCHES = {
    "hrnetv2_w48": 2, "hrnetv2_w18_small_v1": 4, "mask_rcnn_r50_fpn": 1, "resnet50": 32,
    "unet": 12, "unet_slim": 96,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_experiment_has_the_protocol_of_its_section(name):
    cfg = compose([f"experiment={name}"])
    epochs, devices, size, optimizer, lr = PROTOCOLS[cfg.task.name]
    assert (cfg.trainer.max_epochs, cfg.task.devices) == (epochs, devices)
    assert list(cfg.data.crop or cfg.data.resize) == size
    assert (cfg.task.optimizer.name, cfg.task.optimizer.lr) == (optimizer, lr)
    assert cfg.data.batch_size == BATCHES[cfg.task.model.name]
    assert cfg.data.total_batch == devices * cfg.data.batch_size


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("table1_w18_gn", {"name": "gn", "groups": 16}),
        ("table1_w18_lcn", {"name": "lcn", "c_group": 2, "window": 227}),
        ("table1_w48_lcn", {"name": "lcn", "c_group": 2, "window": 255}),
        ("table3_c8", {"name": "lcn", "c_group": 8, "window": 227}),
        ("table4_all", {"name": "lcn", "c_group": 2, "window": "all"}),
        ("table6_gn", {"name": "gn", "groups": 32}),
        ("table6_lcn", {"name": "lcn", "c_group": 32, "window": 127}),
        ("table7_lcn", {"name": "lcn", "c_group": 4, "window": 91}),
        ("table8_gn", {"name": "gn", "groups": 8}),
        ("table8_lcn", {"name": "lcn", "c_group": 4, "window": 31}),
    ],
)
def test_norm_settings_of_the_text(name, norm):
    cfg = compose([f"experiment={name}"])
    assert {key: cfg.norm[key] for key in norm} == norm


@pytest.mark.parametrize(
    "same",
    [
        ("table1_w18_lcn", "table3_c2", "table4_w227"),
        ("table1_w18_gn", "table2_g16"),
        ("table1_w18_ln", "table2_g1"),
        ("table1_w18_in", "table2_gC"),
    ],
)
@pytest.mark.parametrize("data", ["full", "mini"])
def test_rows_that_are_the_same_experiment_are_the_same_run(same, data):
    directories = {run_directory(f"experiment={name}", f"data={data}") for name in same}
    assert len(directories) == 1


def test_all_other_rows_are_runs_of_their_own():
    directories = {run_directory(f"experiment={name}") for name in PUBLISHED}
    assert len(directories) == 36 - 5


def test_a_plain_command_with_the_paper_s_settings_stands_beside_its_row():
    assert paper_row(compose(["norm=lcn", "norm.window=227"]))["miou"] == 71.77
    assert paper_row(compose(["norm=lcn", "data=mini"]))["miou"] == 71.77
    assert paper_row(compose(["norm=lcn", "norm.window=100"])) is None
    assert paper_row(compose(["norm=lcn", "data.crop=[192,256]"])) is None
    assert paper_row(compose(["norm=lcn", "trainer.max_epochs=3"])) is None
    assert paper_row(compose(["experiment=table4_w383", "norm.window=100"])) is None
    assert paper_row(compose(["experiment=table4_w227"]))["table"] == 4


def test_miniature_shrinks_crop_and_window_by_the_same_fraction():
    cfg = compose(["experiment=table4_w255", "data=mini"])
    assert list(cfg.data.crop) == [64, 128]
    assert scaled_norm(cfg)["window"] == [31, 31]
    assert scaled_norm(compose(["experiment=table4_all", "data=mini"]))["window"] == "all"
    # rounding down keeps what is windowed windowed, and what is global global
    for height in (256, 128, 64, 32, 16):
        for window in (199, 227, 255, 383, 511):
            assert (int(window / 8) < height / 8) == (window < height)


def test_run_directory_is_named_after_what_decides_the_result():
    base = run_directory("experiment=table1_w18_lcn")
    for same in (
        ["data.root=/elsewhere", "data.workers=0", "logger=tensorboard"],
        ["trainer=ddp", "trainer.devices=4", "trainer.progress_bar=false"],
        ["norm.window=[227,227]"],
    ):
        assert run_directory("experiment=table1_w18_lcn", *same) == base, same
    same_total_batch = run_directory("experiment=table1_w18_lcn", "data.batch_size=8", world_size=2)
    assert same_total_batch == base
    for other in (
        ["seed=1"],
        ["norm.window=99"],
        ["norm.eps=1e-3"],
        ["task.optimizer.lr=0.02"],
        ["trainer.max_epochs=3"],
        ["data.crop=[256,256]"],
        ["data=mini"],
        ["data.batch_size=8"],
    ):
        assert run_directory("experiment=table1_w18_lcn", *other) != base, other
    assert run_directory("experiment=table1_w18_lcn", dataset="other photographs") != base


def test_batch_norm_depends_on_the_images_per_device():
    whole = run_directory("experiment=table1_w18_bn", "data.batch_size=16", world_size=1)
    assert whole != run_directory("experiment=table1_w18_bn", world_size=4)


@pytest.mark.parametrize("norm", ["lcn", "lcn_released", "lcn_tiled"])
def test_a_number_of_groups_takes_no_part_in_runs_that_have_none(norm):
    """A run made before there was ``norm.groups`` has the directory that it has today."""
    cfg = compose([f"norm={norm}"])
    assert run_identity(cfg, "dataset", 8)["norm"] == {
        "name": norm, "c_group": 2, "window": [227, 227], "window_unit": "feature", "eps": 1e-5,
    }  # fmt: skip
    grouped = compose([f"norm={norm}", "norm.groups=16"])
    assert norm_label(grouped.norm) == f"{norm}_g16_w227"
    assert "c_group" not in run_identity(grouped, "dataset", 8)["norm"]
    for groups, c_group in ((1, "C"), ("C", 1)):  # two spellings of one layer
        one, other = (
            compose([f"norm={norm}", key])
            for key in (f"norm.groups={groups}", f"norm.c_group={c_group}")
        )
        assert run_identity(one, "dataset", 8) == run_identity(other, "dataset", 8)


KEPT = sorted((ROOT / "results").glob("*/*/*-seed*/result.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.parent.name)
def test_runs_that_were_kept_have_the_directory_that_their_command_has_today(path):
    result = json.loads(path.read_text())
    overrides = [text for text in result["overrides"] if "<path>" not in text]
    name = run_directory(*overrides, world_size=1, dataset=result["dataset"]).name
    assert name == path.parent.name


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_long_miniature_is_the_same_data_for_more_epochs_whatever_the_norm(name):
    short = compose([f"experiment={name}", "data=mini"])
    long = compose([f"experiment={name}", "data=mini_long"])
    identities = [flattened(run_identity(cfg, "data", 1)) for cfg in (short, long)]
    differing = {key for key, value in identities[0].items() if identities[1][key] != value}
    assert differing == {"data.name", "epochs"}
    assert long.data.root == short.data.root
    networks = {"hrnetv2_w48": 3, "hrnetv2_w18_small_v1": 8, "mask_rcnn_r50_fpn": 4,
                "resnet50": 3, "unet": 5, "unet_slim": 3}  # fmt: skip
    factor = networks[short.task.model.name]
    assert long.trainer.max_epochs == factor * short.trainer.max_epochs


def test_norm_labels_are_readable():
    labels = {
        "norm=bn": "bn",
        "norm=gn": "gn_g16",
        "norm=lcn": "lcn_c2_w227",
    }
    for override, label in labels.items():
        assert norm_label(compose([override]).norm) == label
    assert norm_label(compose(["norm=lcn", "norm.window=[31,63]"]).norm) == "lcn_c2_w31x63"
