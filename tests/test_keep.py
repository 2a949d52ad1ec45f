"""Runs kept beside the code say what the runs say, and nothing of the machine."""

import fakes
import pytest

from tasks.evidence.gather import gather
from tasks.evidence.tables import write_tables
from tasks.runs.record import finished_runs

HERE = "/home/someone/study"


@pytest.fixture
def runs(tmp_path):
    """A row, one that starts from another's weights, and one that has not finished."""
    place = tmp_path / "runs"
    for seed in range(2):
        fakes.write_run(place, "experiment=table8_lcn", seed=seed, score=60.0 + seed)
        fakes.write_run(place, "experiment=table6_gn", seed=seed, name=f"imagenet/of-seed-{seed}")
        weights = f"task.backbone_checkpoint={HERE}/of-seed-{seed}/last.ckpt"
        tuned = fakes.write_run(
            place, "experiment=table5_lcn", weights, seed=seed, score=20.0 + seed,
            name=f"coco/tuned-{seed}", age=9, overrides=["task.backbone_checkpoint=<path>"],
        )  # fmt: skip
        (tuned / "provenance.json").write_text("[]")
        (tuned / "diff.patch").write_text("a patch")
    fakes.write_run(place, "experiment=table8_gn", finished=False)
    for result in place.rglob("result.json"):  # as train.py writes it
        result.write_text(result.read_text().replace("/home/someone/data", "<path>"))
    for directory in {path.parent for path in place.rglob("config.yaml")}:
        (directory / "last.ckpt").write_bytes(b"weights")
        (directory / "train.log").write_text(f"run     {directory}\n")
    return place


def tables(place, out):
    runs, damaged = finished_runs([place])
    assert not damaged
    evidence = gather(runs)
    write_tables(evidence, out)
    counted = {name for page in evidence.runs.values() for name in page}
    return counted, {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.*")}


def test_what_is_kept_gives_the_tables_of_the_runs(script, runs, tmp_path):
    into = tmp_path / "kept"
    done = script("runs", "keep", runs, "--into", into)
    assert (done.returncode, done.stdout) == (0, f"kept in {into}: 6 new, 0 that were there\n")
    counted, from_runs = tables(runs, tmp_path / "a")
    assert {"table8_lcn", "table6_gn"} <= counted
    assert any("table6_gn" in name and name != "table6_gn" for name in counted)  # by its weights
    assert tables(into, tmp_path / "b") == (counted, from_runs)


def test_no_weights_no_log_and_no_path_are_kept(script, runs, tmp_path):
    script("runs", "keep", runs, "--into", tmp_path / "kept")
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "config.yaml", "result.json", "metrics.csv", "audit.csv", "provenance.json", "diff.patch",
    }  # fmt: skip
    for path in files:
        assert "/home/" not in path.read_text(), path


def test_a_run_is_kept_once_and_never_replaced(script, runs, tmp_path):
    into = tmp_path / "kept"
    script("runs", "keep", runs, "--into", into)
    again = script("runs", "keep", runs, "--into", into)
    assert again.stdout == f"kept in {into}: 0 new, 6 that were there\n"
    (run,) = runs.glob("chesapeake/*table8_lcn*-0-*")
    (run / "result.json").write_text((run / "result.json").read_text().replace("60.0", "61.0"))
    kept = into / "chesapeake" / run.name / "result.json"
    before = kept.read_bytes()
    refused = script("runs", "keep", runs, "--into", into)
    assert refused.returncode == 2
    assert "another result" in refused.stderr
    assert run.name in refused.stderr
    assert kept.read_bytes() == before
    assert not list(into.rglob("*.tmp"))


def test_runs_of_the_long_miniature_are_kept_beside_those_of_the_short_one(script, tmp_path):
    for data in ("mini", "mini_long"):
        fakes.write_run(tmp_path / "runs", "experiment=table8_lcn", data=data)
    done = script("runs", "keep", tmp_path / "runs", "--into", tmp_path / "kept")
    assert done.stdout == f"kept in {tmp_path / 'kept'}: 2 new, 0 that were there\n"
    evidence = gather(finished_runs([tmp_path / "kept"])[0])
    for page in ("mini", "mini_long"):
        assert [run.data for run in evidence.distinct(page)] == [page]


def test_without_a_finished_run_nothing_is_kept(script, tmp_path):
    done = script("runs", "keep", tmp_path, "--into", tmp_path / "kept")
    assert (done.returncode, done.stderr) == (2, f"error: no finished run below {tmp_path}\n")
    assert not (tmp_path / "kept").exists()
