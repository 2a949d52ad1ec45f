"""The paper's claims: the file, the verdicts on runs in memory, what is missing, the checks."""

import copy
import dataclasses
from pathlib import Path

import fakes
import pytest
import yaml
from conftest import REAL, ROOT, configuration

from tasks.errors import InputError
from tasks.evidence.checks import CHECKS, read_checks, run_checks
from tasks.evidence.claims import (
    CHECK,
    CLAIMS_FILE,
    EQUAL,
    MORE,
    ORDER,
    Claim,
    claims,
    read_claims,
    unknown_quotations,
    unknown_settings,
)
from tasks.evidence.gather import Evidence, gather, score_of
from tasks.evidence.missing import commands_of, missing_text
from tasks.evidence.rows import published_rows, row_named
from tasks.evidence.tables import readme_text, summary
from tasks.evidence.verdicts import CANNOT_TELL, DOES_NOT, HOLDS, NOT_RUN, judge, judged
from tasks.evidence.windows import at_full_scale, windows_of
from tasks.runs.directory import Run
from tasks.runs.record import FinishedRun, finished_runs, sees_window

PAPER = REAL.parent / "paper" / "paper.txt"
SPREAD = (0.0, 0.4, -0.3, 0.1, -0.2, 0.3, -0.1, 0.2, 0.0)


# The file


def test_the_file_is_in_order_and_every_row_of_it_can_be_run():
    assert len(claims()) > 35
    assert unknown_settings(claims()) == []
    assert {claim.check for claim in claims() if claim.kind == CHECK} == set(CHECKS)
    assert {claim.table for claim in claims()} == set(range(9))


def test_every_quotation_is_in_the_paper():
    if not PAPER.exists():
        pytest.skip("the paper's text is not here (../shared/paper)")
    assert unknown_quotations(claims(), PAPER.read_text(encoding="utf-8")) == []


def test_a_quotation_may_be_broken_into_lines_and_nothing_else():
    claim = dataclasses.replace(claims()[0], quote="including BN")
    assert unknown_quotations((claim,), "all others including\n BN.") == []
    (message,) = unknown_quotations((claim,), "all others and BN")
    assert message == f'{claim.id}: the paper does not say "including BN"'


GOOD = {"id": "a", "says": "b", "quote": "c", "section": "1", "kind": "order",
        "contrasts": [["table8_lcn", "table8_gn"]]}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "most"}, "a: kind is most; there are order, more, equal, check, open"),
        ({"quote": ""}, "a: quote must be text"),
        ({"section": None}, "a: section is missing"),
        ({"margin": 1.0}, "a: margin is no key of kind order"),
        ({"kind": "equal"}, "a: margin is missing\nclaims.yaml: a: why is missing"),
        ({"kind": "equal", "why": "d", "margin": -1}, "a: margin is -1, not a number above 0"),
        ({"table": 9}, "a: table is 9, not 1 to 8"),
        ({"contrasts": [["table8_lcn"]]}, "a: a contrast is a pair of rows, or of lists of rows"),
        ({"contrasts": [["table8_lcn", "table9_gn"]]}, "a: there is no experiment table9_gn"),
        ({"contrasts": [["table8_lcn", "table7_gn"]]}, "of several tasks: chesapeake, inria"),
        (
            {"pages": ["nowhere"]},
            "a: there is no page nowhere; there are camvid, full, miniatures",
        ),
        ({"kind": "more"}, "a: each side of a contrast of kind more is a pair of rows"),
        ({"metric": []}, "a: metric must be a name, or a list of names"),
        ({"id": None}, "entry 1: it has no id"),
    ],
)
def test_every_mistake_has_a_message(tmp_path, change, message):
    entry = {key: value for key, value in (GOOD | change).items() if value is not None}
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([entry]))
    with pytest.raises(InputError) as caught:
        read_claims(path)
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == message.count("\n")


def test_two_claims_cannot_have_one_id_nor_settings_that_do_not_exist(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([GOOD, copy.deepcopy(GOOD)]))
    with pytest.raises(InputError, match="a: the id is there twice"):
        read_claims(path)
    wrong = GOOD | {"contrasts": [["table8_lcn data.bach_size=1", "table8_gn"]]}
    path.write_text(yaml.safe_dump([wrong]))
    (message,) = unknown_settings(read_claims(path))
    assert message.startswith("a: data.bach_size=1: no such key")


PUBLISHED = [claim for claim in claims() if claim.table and claim.contrasts]


@pytest.mark.parametrize("claim", PUBLISHED, ids=lambda claim: claim.id)
def test_every_claim_of_a_table_is_what_the_published_numbers_say(claim):
    for pair in claim.contrasts:
        rows = [[published_rows()[name] for name in side] for side in pair]
        metrics = claim.metric or (rows[0][0].primary,)
        first, second = (
            sum(row.published[m] for row in side for m in metrics) / len(side) / len(metrics)
            for side in rows
        )
        assert {row.table for row in rows[0]} == {claim.table}
        assert first > second if claim.kind == ORDER else abs(first - second) <= claim.margin


# Verdicts


def evidence_of(scores, page="mini", metric=None):
    """Runs in memory: a score per seed of each row."""
    found = Evidence()
    for name, values in scores.items():
        key = metric or row_named(name).primary
        found.runs.setdefault(page, {})[name] = {
            seed: FinishedRun(Path(name, str(seed)), {}, result={"metrics": {key: value}})
            for seed, value in enumerate(values)
        }
    return found


def ordered(*pairs, **settings):
    pairs = tuple((tuple(a.split()), tuple(b.split())) for a, b in pairs)
    return Claim("id", "says", "quote", "1", ORDER, contrasts=pairs, **settings)


LCN_OVER_GN = ordered(("table8_lcn", "table8_gn"))
EQUAL_TO_GN = dataclasses.replace(LCN_OVER_GN, kind=EQUAL, margin=2.0)


def verdict_of(claim, differences):
    scores = {"table8_gn": [50.0] * len(differences), "table8_lcn": [50 + d for d in differences]}
    (verdict,) = judged([claim], evidence_of(scores), "mini")
    return verdict


@pytest.mark.parametrize(
    ("claim", "mean", "n", "expected"),
    [
        (LCN_OVER_GN, 3.0, 6, HOLDS),
        (LCN_OVER_GN, 3.0, 5, CANNOT_TELL),  # p cannot be below 0.0625
        (LCN_OVER_GN, 3.0, 1, CANNOT_TELL),
        (LCN_OVER_GN, -3.0, 6, DOES_NOT),
        (LCN_OVER_GN, 0.1, 6, CANNOT_TELL),
        (LCN_OVER_GN, 0.0, 6, CANNOT_TELL),
        (EQUAL_TO_GN, 0.0, 6, HOLDS),
        (EQUAL_TO_GN, 1.0, 6, HOLDS),  # differs surely, and by less than the margin
        (EQUAL_TO_GN, 1.9, 6, CANNOT_TELL),
        (EQUAL_TO_GN, -3.0, 6, DOES_NOT),
        (EQUAL_TO_GN, 3.0, 6, DOES_NOT),
        (EQUAL_TO_GN, 0.0, 5, CANNOT_TELL),
    ],
)
def test_a_claim_is_decided_by_test_and_interval(claim, mean, n, expected):
    assert verdict_of(claim, [mean + d for d in SPREAD[:n]]).outcome == expected


def test_identical_differences_decide_from_six_seeds_on_and_equal_ones_nothing():
    assert verdict_of(LCN_OVER_GN, [2.0] * 6).outcome == HOLDS
    assert verdict_of(LCN_OVER_GN, [2.0] * 5).outcome == CANNOT_TELL
    nothing = verdict_of(LCN_OVER_GN, [0.0] * 6)
    assert (nothing.outcome, nothing.p, nothing.needs) == (CANNOT_TELL, 1.0, "more than 1,000")
    assert verdict_of(EQUAL_TO_GN, [0.0] * 6).outcome == HOLDS


def test_holm_s_correction_takes_more_seeds_of_a_page_with_more_claims():
    other = ordered(("table8_bn", "table8_gn"))
    scores = {"table8_gn": [50.0] * 7, "table8_lcn": [53 + d for d in SPREAD[:7]]}
    scores["table8_bn"] = [52 + d for d in SPREAD[:7]]
    for n, outcome in ((6, CANNOT_TELL), (7, HOLDS)):  # 2 * 2/64 is above 0.05, 2 * 2/128 is not
        found = evidence_of({name: values[:n] for name, values in scores.items()})
        verdicts = judged([LCN_OVER_GN, other], found, "mini")
        assert [v.outcome for v in verdicts] == [outcome] * 2
        assert [v.corrected for v in verdicts] == [2 * 2 / 2**n] * 2
        assert {v.needs for v in verdicts} == ({"1"} if n == 6 else {""})


def test_all_contrasts_must_hold_and_one_that_does_not_refutes():
    claim = ordered(("table8_lcn", "table8_gn"), ("table8_lcn", "table8_bn"))
    scores = {"table8_lcn": [50 + d for d in SPREAD], "table8_gn": [40.0] * 9}
    (verdict,) = judged([claim], evidence_of(scores), "mini")
    assert (verdict.outcome, verdict.p) == (CANNOT_TELL, None)  # BN was not run
    scores["table8_bn"] = [60.0] * 9
    (verdict,) = judged([claim], evidence_of(scores), "mini")
    assert (verdict.outcome, verdict.p) == (DOES_NOT, 2 * 2 / 2**9)
    scores["table8_bn"] = [45.0] * 9
    (verdict,) = judged([claim], evidence_of(scores), "mini")
    assert (verdict.outcome, verdict.p) == (HOLDS, 2 / 2**9)


def test_a_mean_of_rows_is_taken_over_the_seeds_all_have():
    claim = ordered(("table8_lcn table8_bn", "table8_gn"))
    scores = {"table8_lcn": [50, 52, 99], "table8_bn": [54, 58, 99], "table8_gn": [50, 50]}
    (verdict,) = judged([claim], evidence_of(scores), "mini")
    (finding,) = verdict.findings
    assert (finding.difference.n, finding.difference.mean) == (2, 3.5)  # 52 - 50 and 55 - 50
    assert finding.published == pytest.approx((76.51 + 76.69) / 2 - 74.15)


def test_of_an_error_and_of_mismatch_less_is_better():
    scores = {"table6_lcn": [20 + d for d in SPREAD], "table6_gn": [22.0] * 9}
    better, worse = ordered(("table6_lcn", "table6_gn")), ordered(("table6_gn", "table6_lcn"))
    assert judged([better], evidence_of(scores), "mini")[0].outcome == HOLDS
    assert judged([worse], evidence_of(scores), "mini")[0].outcome == DOES_NOT
    mismatch = ordered(("table8_gn", "table8_lcn"), metric=("tile_mismatch",))
    scores = {"table8_gn": [1 + d for d in SPREAD], "table8_lcn": [3.0] * 9}
    (verdict,) = judged([mismatch], evidence_of(scores, metric="tile_mismatch"), "mini")
    assert verdict.outcome == HOLDS
    assert verdict.findings[0].published is None


GAIN = Claim("id", "says", "quote", "1", MORE, contrasts=(
    (("table8_lcn", "table8_gn"), ("table7_lcn", "table7_gn")),
))  # fmt: skip


@pytest.mark.parametrize(("small", "outcome"), [(1.0, HOLDS), (5.0, DOES_NOT), (3.0, CANNOT_TELL)])
def test_a_gain_is_compared_with_another_gain(small, outcome):
    scores = {
        "table8_lcn": [53 + d for d in SPREAD],
        "table8_gn": [50.0] * 9,
        "table7_lcn": [20 + small] * 9,
        "table7_gn": [20.0] * 9,
    }
    found = evidence_of(scores)
    for name in ("table7_lcn", "table7_gn"):  # whose first metric is another
        for run in found.runs["mini"][name].values():
            run.result["metrics"]["miou"] = run.result["metrics"].pop("overall_iou")
    (verdict,) = judged([GAIN], found, "mini")
    (finding,) = verdict.findings
    expected = [3 + d - small for d in SPREAD]
    assert finding.difference.values == pytest.approx(expected)
    assert verdict.outcome == outcome
    assert finding.what == "(lcn_c4_w31 - gn_g8) - (lcn_c4_w91 - gn_g8)"
    del found.runs["mini"]["table7_gn"]
    assert judged([GAIN], found, "mini")[0].outcome == NOT_RUN


def test_claims_of_the_miniatures_are_judged_on_each_of_them():
    pages = ("mini", "mini_long", "full")
    ids = {page: {claim.id for claim in claims() if claim.is_of(page)} for page in pages}
    assert ids["mini"] == ids["mini_long"] > ids["full"]
    assert "transfer" not in ids["full"]


def test_a_claim_without_runs_is_not_run():
    assert {verdict.outcome for verdict in judge(Evidence(), "mini")} == {NOT_RUN}
    assert {verdict.claim.id for verdict in judge(Evidence(), "camvid")} == {
        claim.id for claim in claims() if claim.id.startswith("camvid-")
    }


# Runs in folders


@pytest.fixture
def write_run(tmp_path):
    return lambda *overrides, **settings: fakes.write_run(tmp_path, *overrides, **settings)


@pytest.fixture
def evidence(tmp_path):
    return lambda: gather(finished_runs([tmp_path])[0])


def test_rows_of_our_own_count_on_a_page_of_their_own(write_run, evidence):
    for seed in range(6):
        write_run("experiment=camvid_lcn", data="full", seed=seed, score=36 + SPREAD[seed])
        write_run("experiment=camvid_gn", data="full", seed=seed, score=31.0)
    write_run("experiment=camvid_lcn", "task.optimizer.lr=0.5", data="full")
    found = evidence()
    assert (found.pages, len(found.left_out)) == (["camvid"], 1)
    line = next(v for v in judge(found, "camvid") if v.claim.id == "camvid-lcn-over-gn")
    assert str(line.findings[0]).startswith("lcn_c2_w79x53 - gn_g16: +5.05 [")
    text = readme_text(found)
    assert "## On CamVid" in text
    assert "| lcn_c2_w79x53 | 36.05 | ± 0.27 |" in text
    assert "| lcn_c2_w79x53 | +5.00 | +5.40 | +4.70 |" in text
    assert len(summary(found, [])) <= 10


def test_rows_with_settings_and_rows_that_start_from_another_are_told_apart(write_run, evidence):
    batch = ("data.batch_size=1", "data.total_batch=1", "task.scale_lr=true")
    write_run("experiment=table1_w18_gn", *batch, score=20.0)
    write_run("experiment=table1_w18_gn", score=21.0)
    write_run("experiment=table6_gn", name="imagenet/of-seed-0", age=9)
    write_run("experiment=table6_gn", name="imagenet/of-seed-1", seed=1, age=9)
    for seed, source in ((0, 0), (1, 0)):  # the second starts from the weights of another seed
        weights = f"task.backbone_checkpoint=runs/imagenet/of-seed-{source}/last.ckpt"
        write_run("experiment=table5_lcn", weights, seed=seed, name=f"coco/{seed}")
    found = evidence()
    name = f"table1_w18_gn {' '.join(batch)}"
    assert found.scores("mini", row_named(name), "miou") == {0: 20.0}
    assert found.scores("mini", row_named("table1_w18_gn"), "miou") == {0: 21.0}
    tuned = found.runs["mini"]["table5_lcn task.backbone_checkpoint=table6_gn"]
    assert [*tuned] == [0]
    assert [place.name for place in found.left_out] == ["1"]


def test_missing_runs_have_their_commands(write_run, evidence):
    for seed in range(6):
        place = write_run("experiment=camvid_lcn", data="full", seed=seed, score=36 + SPREAD[seed])
        write_run("experiment=camvid_gn", data="full", seed=seed, score=31.0)
    text = missing_text(evidence(), "camvid")
    assert text.startswith("# On CamVid\n")
    lines = text.splitlines()
    (both,) = [line for line in lines if "experiment=camvid_lcn,camvid_gn " in line]
    assert both.startswith("python train.py -m ")
    assert both.endswith(" data=full seed=6")  # of two claims, seven seeds reach 0.025
    assert str(place) in lines[-1]
    assert lines[-1].startswith("python scripts/consistency.py ")
    write_run("experiment=table6_gn", name="imagenet/gn")
    text = missing_text(evidence(), "mini")
    assert "task.backbone_checkpoint=" in text
    assert f"{place.parents[1]}/imagenet/gn/last.ckpt data=mini seed=0" in text
    assert "# after that: python train.py experiment=table5_lcn" in text
    assert "experiment=table3_c2" not in text  # the same experiment as table1_w18_lcn


def test_missing_runs_of_the_long_miniature_are_no_runs_of_the_short_one(write_run, evidence):
    for seed in range(6):
        write_run("experiment=table8_lcn", seed=seed)
        write_run("experiment=table8_gn", seed=seed, data="mini_long")
    lines = missing_text(evidence(), "mini_long").splitlines()
    assert lines[0] == "# On the long miniature"
    commands = [line for line in lines if "train.py" in line]
    assert all(" data=mini_long seed=" in line for line in commands)
    (lcn,) = [line for line in commands if "table8_lcn" in line]
    assert "seed=0,1,2,3,4,5" in lcn
    (small,) = [line for line in commands if "experiment=table7_gn 'task" in line]
    assert small.startswith(
        "python train.py -m experiment=table7_gn 'task.crop=[286,286]' task.eval_halo=46 data="
    )
    assert any("experiment=inria_lrn task.optimizer.lr=0.0001 " in line for line in commands)


def test_every_claim_names_its_commands():
    for claim in claims():
        for page in ("camvid", "mini", "mini_long", "full"):
            if claim.is_of(page):
                commands = commands_of(claim, page)
                assert all(command.endswith("seed=0,1,2,3,4,5") for command in commands)
                assert len(commands) == bool([n for n in claim.rows if " " not in n]) + sum(
                    " " in name for name in claim.rows
                )


def test_scores_beside_the_metrics(write_run, tmp_path):
    curve = "epoch,step,miou\n1,10,\n2,20,20\n3,30,\n4,40,40\n"
    folder = write_run("experiment=table8_lcn", curve=curve, tile_mismatch=1.5)
    (run,) = finished_runs([folder])[0]
    assert score_of(run, "tile_mismatch") == 1.5
    assert score_of(run, "class_iou.water") == run.result["class_iou"]["water"]
    assert score_of(run, "class_iou.sea") is score_of(run, "nothing") is None
    # 90 % of 40 is 36: between 20 at epoch 2 and 40 at epoch 4, so at 3.6 of 4
    assert score_of(run, "steps_to_90") == pytest.approx(90.0)
    run.metrics["miou"] = [None, None, None, None]
    assert score_of(run, "steps_to_90") is None


# Windows and checks


def test_windows_are_those_of_the_runs_or_of_the_published_sizes(write_run, evidence):
    by_id = {claim.id: claim for claim in claims()}
    assert windows_of(by_id["imagenet-as-gn"], Evidence(), "mini") == [
        "lcn_c32_w127 as published: GN by construction under either rule, no layer windowed"
    ]
    lines = windows_of(by_id["large-window-near-gn"], Evidence(), "full")
    assert "lcn_c2_w383 as published: GN by construction under the released rule in training" in (
        lines
    )
    write_run("experiment=table8_lcn")
    (line,) = windows_of(by_id["chesapeake-lcn-over-gn"], evidence(), "mini")
    assert line == "lcn_c4_w31: training 1 of 8, evaluation 3 of 8"


def test_rows_of_one_norm_whose_maps_differ_are_told_apart(write_run, evidence):
    small = ("task.crop=[286,286]", "task.eval_halo=46")
    write_run("experiment=table7_lcn", data="mini_long")
    folder = write_run("experiment=table7_lcn", *small, data="mini_long")
    (folder / "audit.csv").write_text("phase,name,windowed\ntraining,l0,False\n")
    (claim,) = [claim for claim in claims() if claim.id == "larger-images"]
    assert windows_of(claim, evidence(), "mini_long")[:2] == [
        "lcn_c4_w91: training 1 of 8, evaluation 3 of 8",
        "lcn_c4_w91 crop=[286,286] eval_halo=46: training 0 of 1: "
        "GN by construction under either rule, no layer windowed",
    ]


def test_the_layers_at_full_scale_are_those_that_the_maps_leave():
    # Maps of the stem are a half and a quarter of the crop, so 256 x 512: 383 covers one side.
    assert at_full_scale()["table4_w383"]["training"][:2] == (1, 0)
    assert at_full_scale()["table6_lcn"]["training"] == (0, 0, 53)
    assert at_full_scale()["table7_lcn"]["evaluation"] == (12, 12, 18)  # in windows of 576
    assert {name for name in published_rows() if "lcn" in name or name[:6] in ("table3", "table4")}
    assert {*at_full_scale()} >= {n for n, r in published_rows().items() if r.norm["name"] == "lcn"}


@pytest.mark.parametrize(
    ("window", "sees"),
    [("(31, 31)", True), ("[31, 31]", True), ("(64, 31)", False), ("all", False), ("", False)],
)
def test_the_released_rule_takes_both_sides(window, sees):
    assert sees_window(window, "64", "128") is sees


def test_checks_hold_and_are_recorded(tmp_path):
    names = ["window-limit", "windows-approach-gn"]
    found = run_checks(names, tmp_path)
    assert [result.holds for result in found.values()] == [True, True]
    recorded = read_checks(tmp_path)
    assert [*recorded] == names
    assert recorded["window-limit"]["torch"]
    assert read_checks(tmp_path / "nowhere") == {}


def test_checks_find_a_layer_that_is_wrong(monkeypatch):
    import lcn.functional

    right = lcn.functional.local_context_norm
    monkeypatch.setattr(
        lcn.functional, "local_context_norm", lambda x, **settings: 1.001 * right(x, **settings)
    )
    assert CHECKS["window-limit"]().holds is False
    assert CHECKS["windows-approach-gn"]().holds is False


def test_the_command_names_an_unknown_check(script):
    done = script("claims", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nothing: no such check; there are window-limit, ")


def test_results_are_of_this_repository():
    assert CLAIMS_FILE == ROOT / "results" / "claims.yaml"


def test_a_group_is_of_runs_that_differ_in_the_seed_alone():
    def group(*overrides):
        return Run(configuration(("task=chesapeake", *overrides))[0], "data", 1).group

    assert group("seed=1") == group("seed=2")
    assert group("task.optimizer.lr=0.5") != group() != group("norm=gn")
