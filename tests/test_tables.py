"""Tables and claims from finished runs, on ``result.json`` files written here."""

import csv
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from tasks.config import options
from tasks.evidence.claims import claims
from tasks.evidence.rows import published_rows
from tasks.evidence.tables import csv_text, write_tables
from tasks.evidence.verdicts import claims_text, judge


def lines_of(text):
    return list(csv.DictReader(text.splitlines()))


def line_of(evidence, experiment, scale="mini"):
    row = published_rows()[experiment]
    (line,) = [
        line
        for line in lines_of(csv_text(evidence, scale, row.table))
        if all(line[key] == row.published[key] for key in row.keys)
    ]
    return line


def test_rows_are_the_paper_s_in_its_order():
    found = [
        {key: value for key, value in row.published.items() if key != "table"}
        for row in published_rows().values()
    ]
    published = [
        line
        for table in range(1, 9)
        for line in csv.DictReader((ROOT / f"results/paper/table{table}.csv").open())
    ]
    assert set(published_rows()) == {n for n in options("experiment") if n.startswith("table")}
    as_text = [
        {k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()} for row in found
    ]
    assert as_text == published


def test_a_row_is_mean_deviation_and_difference_to_gn_over_common_seeds(write_run, evidence):
    for seed, score in enumerate((60.0, 62.0, 64.0)):
        write_run("experiment=table8_lcn", seed=seed, score=score)
    for seed, score in ((0, 59.0), (1, 60.0), (7, 10.0)):
        write_run("experiment=table8_gn", seed=seed, score=score)
    line = line_of(evidence(), "table8_lcn")
    assert (line["status"], line["n"], line["seeds"]) == ("run", "3", "0 1 2")
    assert (line["miou"], line["miou_sd"], line["miou_paper"]) == ("62.0000", "2.0000", "76.51")
    assert (line["miou_minus_gn"], line["miou_minus_gn_n"]) == ("1.5000", "2")
    assert (line["miou_minus_gn_low"], line["miou_minus_gn_high"]) == ("", "")  # of two seeds
    assert line["miou_minus_gn_paper"] == "2.36"
    assert line_of(evidence(), "table8_gn")["miou_minus_gn"] == ""


def test_six_seeds_have_an_interval_around_their_mean(write_run, evidence):
    for seed, gain in enumerate((1.0, 2.0, 3.0, 1.5, 2.5, 2.0)):
        write_run("experiment=table8_lcn", seed=seed, score=60 + seed + gain)
        write_run("experiment=table8_gn", seed=seed, score=60 + seed)
    line = line_of(evidence(), "table8_lcn")
    low, high = (float(line[f"miou_minus_gn_{end}"]) for end in ("low", "high"))
    assert (line["miou_minus_gn"], line["miou_minus_gn_n"]) == ("2.0000", "6")
    assert 1.2 < low < 1.75 < 2.25 < high < 2.8


def test_one_seed_is_shown_without_deviation_and_interval(write_run, evidence):
    write_run("experiment=table8_lcn", score=60.0)
    write_run("experiment=table8_gn", score=61.0)
    line = line_of(evidence(), "table8_lcn")
    assert (line["miou"], line["miou_sd"], line["miou_minus_gn"]) == ("60.0000", "", "-1.0000")
    assert (line["miou_minus_gn_low"], line["miou_minus_gn_high"]) == ("", "")


def test_rows_without_a_run_are_shown_as_not_run(write_run, evidence, tmp_path):
    write_run("experiment=table8_lcn")
    found = evidence()
    count = 0
    for table in range(1, 9):
        for line in lines_of(csv_text(found, "mini", table)):
            count += 1
            is_run = (table, line["norm"]) == (8, "lcn")
            assert (line["status"], line["n"]) == (("run", "1") if is_run else ("not run", "0"))
    assert count == 36
    write_tables(found, tmp_path / "out")
    assert "not run" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_counts_in_every_row_that_is_its_experiment(write_run, evidence):
    write_run("norm=lcn", "norm.window=227", score=41.0)
    write_run("experiment=table2_g16", score=40.0)
    found = evidence()
    for experiment in ("table1_w18_lcn", "table3_c2", "table4_w227"):
        line = line_of(found, experiment)
        assert (line["miou"], line["miou_minus_gn"]) == ("41.0000", "1.0000"), experiment
    assert line_of(found, "table1_w18_gn")["miou"] == "40.0000"
    assert line_of(found, "table1_w48_gn")["status"] == "not run"
    assert len(found.distinct("mini")) == 2


def test_ln_and_gn_with_one_group_are_one_row(write_run, evidence):
    write_run("norm=ln", score=33.0)
    assert line_of(evidence(), "table2_g1")["miou"] == "33.0000"
    assert line_of(evidence(), "table1_w18_ln")["miou"] == "33.0000"


def test_miniature_and_full_scale_never_mix(write_run, evidence, tmp_path):
    write_run("experiment=table8_lcn", score=60.0)
    write_run("experiment=table8_gn", score=50.0, data="full")
    write_tables(evidence(), tmp_path / "out")
    for scale, expected in (("mini", {"lcn": "60.0000"}), ("full", {"gn": "50.0000"})):
        text = (tmp_path / "out" / scale / "table8.csv").read_text()
        assert {x["norm"]: x["miou"] for x in lines_of(text) if x["n"] != "0"} == expected
        assert {x["miou_minus_gn"] for x in lines_of(text)} == {""}
    for verdict in judge(evidence(), "mini"):
        assert all(finding.difference is None for finding in verdict.findings)


def test_the_two_lengths_of_the_miniature_never_mix(write_run, evidence, tmp_path):
    write_run("experiment=table8_lcn", score=60.0)
    write_run("experiment=table8_gn", score=50.0, data="mini_long")
    write_run("experiment=table8_bn", "trainer.max_epochs=7", score=40.0, data="mini_long")
    found = evidence()
    write_tables(found, tmp_path / "out")
    for scale, expected in (("mini", {"lcn": "60.0000"}), ("mini_long", {"gn": "50.0000"})):
        text = (tmp_path / "out" / scale / "table8.csv").read_text()
        assert {x["norm"]: x["miou"] for x in lines_of(text) if x["n"] != "0"} == expected
    for page in ("mini", "mini_long"):
        assert all(v.findings[0].difference is None for v in judge(found, page))
    (reason,) = found.left_out.values()
    assert "epochs 7 instead of 21" in reason
    text = (tmp_path / "out" / "README.md").read_text()
    assert "## On the long miniature" in text
    assert text.index("## On the miniature") < text.index("## On the long miniature")


def test_tables_of_an_earlier_call_do_not_stay_beside_a_readme_that_denies_them(
    write_run, evidence, tmp_path
):
    write_run("experiment=table8_lcn", data="full")
    write_tables(evidence(), tmp_path / "out")
    (tmp_path / "runs").rename(tmp_path / "moved")
    write_run("experiment=table8_lcn")
    write_tables(evidence(), tmp_path / "out")
    lines = lines_of((tmp_path / "out" / "full" / "table8.csv").read_text())
    assert {line["status"] for line in lines} == {"not run"}


def test_a_scale_without_runs_writes_no_csv(write_run, evidence, tmp_path):
    write_run("experiment=table8_lcn")
    written = write_tables(evidence(), tmp_path / "out")
    assert not (tmp_path / "out" / "full").exists()
    assert len(written) == 8 + 1
    assert all(path.exists() for path in written)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["trainer.max_epochs=1"], "epochs 1 instead of"),
        (["data.scale=0.5"], "data.scale 0.5 instead of 0.25"),
        (["data.total_batch=3"], "total_batch 3 instead of"),
        (["task.optimizer.lr=0.5"], "task.optimizer.lr 0.5 instead of 0.001"),
        (["checkpoint=elsewhere/last.ckpt"], "checkpoint a file instead of None"),
        (["norm.c_group=8"], "no row has unet_slim with lcn_c8_w31"),
    ],
)
def test_runs_with_other_settings_are_left_out_and_said(write_run, evidence, overrides, why):
    write_run("experiment=table8_gn")
    folder = write_run("experiment=table8_lcn", *overrides)
    found = evidence()
    assert line_of(found, "table8_lcn")["status"] == "not run"
    assert list(found.left_out) == [folder]
    assert why in found.left_out[folder]
    assert "\n" not in found.left_out[folder]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"epochs": 2}, "epochs 2 instead of"),
        ({"status": "running"}, "status is running"),
        ({"metrics": {}}, "no value of miou, pixel_acc"),
        ({"metrics": {"pixel_acc": 1.0}}, "no value of miou"),
    ],
)
def test_results_that_cannot_stand_in_a_table_are_left_out(write_run, evidence, changes, why):
    write_run("experiment=table8_gn")
    write_run("experiment=table8_lcn", **changes)
    (reason,) = evidence().left_out.values()
    assert why in reason


def test_real_photographs_trained_with_other_crops_are_no_published_row(write_run, evidence):
    write_run("experiment=table1_w18_gn", data="full", score=70.0)
    write_run("norm=gn", "data.crop=[192,256]", data="full", score=30.0, seed=1)
    assert line_of(evidence(), "table1_w18_gn", "full")["seeds"] == "0"


def test_full_scale_coco_may_start_from_a_backbone_and_the_miniature_not(write_run, evidence):
    for data in ("mini", "full"):
        write_run("experiment=table5_lcn", "task.backbone_checkpoint=gn/last.ckpt", data=data)
    assert line_of(evidence(), "table5_lcn", "full")["status"] == "run"
    assert line_of(evidence(), "table5_lcn", "mini")["status"] == "not run"


def test_of_the_same_row_and_seed_the_newest_counts(write_run, evidence):
    for name, score, time in (("a", 1.0, 2000), ("b", 2.0, 3000), ("c", 3.0, 1000)):
        folder = write_run("experiment=table8_lcn", score=score, name=name)
        os.utime(folder / "result.json", (time, time))
    found = evidence()
    assert line_of(found, "table8_lcn")["miou"] == "2.0000"
    assert {place.name for place in found.left_out} == {"a", "c"}
    assert all("newer" in reason for reason in found.left_out.values())


def test_a_key_younger_than_the_run_is_taken_as_it_is_today(write_run, evidence):
    folder = write_run("experiment=table8_lcn")
    config = OmegaConf.load(folder / "config.yaml")
    del config.task.scale_lr, config.data.lr_factor, config.data.stand_in
    OmegaConf.save(config, folder / "config.yaml")
    assert line_of(evidence(), "table8_lcn")["status"] == "run"


def markdown_tables(text):
    """Every table: its header, its rule and its lines, as lists of cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    return [
        [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()]
        for block in blocks
    ]


def test_readme_has_every_table_beside_the_paper_s(write_run, evidence, tmp_path):
    for seed in (0, 1):
        write_run("experiment=table7_lcn", seed=seed, score=44.0 + 2 * seed)
        write_run("experiment=table7_gn", seed=seed, score=43.0 + seed)
    write_tables(evidence(), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    checks, found, *tables = markdown_tables(text)
    assert text.index("## What the results") < text.index("## How claims are") < text.index("| ")
    assert "generated by `python scripts/tables.py`" in text
    assert "### What holds here" in text
    assert "Runs: 4. Commits: 0123456789ab-dirty. PyTorch: 2.9.9. Devices: cpu." in text
    assert str(tmp_path) not in text
    assert len(checks) + len(found) == 4 + sum(not c.rows or c.is_of("mini") for c in claims())
    assert len(tables) == 2  # Table 7's twelve metrics; of the others none was run
    for header, rule, *lines in (checks, found, *tables):
        assert {len(header)} == {len(rule)} | {len(line) for line in lines}
    header, rule, *lines = tables[1]
    assert dict(zip(header, rule, strict=True))["overall_iou"] == "--:"
    (lcn,) = [dict(zip(header, line, strict=True)) for line in lines if "lcn" in line]
    # the eleventh metric: ten more than the first
    assert (lcn["overall_iou"], lcn["overall_iou, paper"]) == ("55.00 ± 1.41", "69.90")
    assert (lcn["n"], lcn["paper - GN"]) == ("2", "+6.19")
    assert lcn["overall_iou - GN"] == "+1.50"


def test_same_runs_give_the_same_files(write_run, evidence, tmp_path):
    write_run("experiment=table8_lcn")
    texts = []
    for name in ("one", "two"):
        files = write_tables(evidence(), tmp_path / name)
        texts.append([file.read_bytes() for file in files])
    assert texts[0] == texts[1]
    assert not list(tmp_path.rglob("*.tmp"))


def test_claims_on_the_console_have_their_numbers(write_run, evidence):
    for seed in (0, 1, 2):
        write_run("experiment=table8_lcn", seed=seed, score=52.0)
        write_run("experiment=table8_gn", seed=seed, score=50.0)
    lines = claims_text(evidence()).splitlines()
    assert lines[1] == "On the miniature, 6 runs"
    (index,) = [i for i, line in enumerate(lines) if "LCN over GN, Chesapeake" in line]
    said = " ".join(lines[index].split())
    assert said == "cannot tell LCN over GN, Chesapeake (3 more seeds)"
    assert lines[index + 1].strip() == "lcn_c4_w31 - gn_g8: +2.00, n 3"


def tables_command(*arguments):
    command = [sys.executable, "scripts/tables.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_command_writes_tables_and_says_what_holds_and_what_is_left_out(write_run, tmp_path):
    write_run("experiment=table8_lcn")
    left_out = write_run("experiment=table8_gn", "trainer.max_epochs=1")
    done = tables_command(tmp_path / "runs", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"left out: {left_out}" in done.stdout
    assert "not run" in done.stdout
    assert (tmp_path / "out" / "mini" / "table8.csv").exists()


def test_command_without_a_run_says_so_and_writes_nothing(write_run, tmp_path):
    write_run("experiment=table8_gn", "trainer.max_epochs=1")
    for place in (tmp_path / "runs", tmp_path / "nowhere"):
        done = tables_command(place, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert f"no finished run of a row below {place}" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_tables_need_no_torch():
    code = "import sys, tasks.evidence.tables; sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
