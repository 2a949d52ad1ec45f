"""A damaged run is named once, whoever reads it, and all others are served."""

import json
import os
import time
from pathlib import Path

import pytest
from conftest import configuration
from fakes import write_run
from omegaconf import OmegaConf

from tasks.errors import InputError
from tasks.runs.directory import Run
from tasks.runs.files import read_yaml
from tasks.runs.listing import read_state
from tasks.runs.record import find_runs, finished_runs, flattened, read_result, read_run


def text(name, content):
    return lambda run: (run / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def replaced(name, old, new):
    def damage(run):
        content = (run / name).read_bytes()
        assert old in content, "nothing to damage"
        (run / name).write_bytes(content.replace(old, new))

    return damage


def result_with(**changes):
    def damage(run):
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(result | changes))

    return damage


def instead(name, make):
    def damage(run):
        (run / name).unlink()
        make(run / name)

    return damage


def cut(name, share):
    def damage(run):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(len(content) * share)])

    return damage


def huge(path):
    with path.open("wb") as file:
        file.truncate(2**40)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DAMAGES = {
    "result, empty": text("result.json", ""),
    "result, a list": text("result.json", "[]"),
    "result, null": text("result.json", "null"),
    "result, cut": cut("result.json", 0.5),
    "result, without metrics": result_with(metrics=None),
    "result, text for a score": result_with(metrics={"miou": "high"}),
    "result, text for a class": result_with(class_iou={"road": "high"}),
    "result, number for a version": result_with(versions={"torch": 2}),
    "result, no norm": result_with(norm={"name": "gn"}),
    "result, of another run": result_with(seed=99),
    "result, list for a device": result_with(device=[]),
    "result, 100,000 brackets": text("result.json", "[" * 100_000),
    "result, deep": text("result.json", '{"a":' * 500 + "1" + "}" * 500),
    "result, bytes": text("result.json", b'{"status": "\xff"}'),
    "result, long number": text("result.json", '{"seed": ' + "9" * 10_000 + "}"),
    "result, text for the paper's score": result_with(paper={"table": 8, "miou": "high"}),
    "result, half a character": result_with(class_iou={"\ud800": 1.0}),
    "result, a directory": instead("result.json", Path.mkdir),
    "result, a pipe": instead("result.json", os.mkfifo),
    "result, a device": instead("result.json", lambda path: path.symlink_to("/dev/zero")),
    "result, huge": instead("result.json", huge),
    "config, none": instead("config.yaml", lambda path: None),
    "config, empty": text("config.yaml", ""),
    "config, cut": cut("config.yaml", 0.3),
    "config, a list": text("config.yaml", "[1, 2]"),
    "config, of something else": text("config.yaml", "a: 1\n"),
    "config, bomb": text("config.yaml", BOMB),
    "result, a score that is no number": result_with(metrics={"miou": float("nan")}),
    "config, merge bomb": text("config.yaml", "a: &a {b: 1}\nc: {<<: [*a, *a]}\n"),
    "config, within itself": text("config.yaml", "task: &t {name: *t}\n"),
    "config, deep": text("config.yaml", "a: " + "[" * 50_000),
    "config, deeper than any": text("config.yaml", "a: " + "[" * 50 + "]" * 50),
    "config, missing value": replaced("config.yaml", b"seed: 0", b"seed: ???"),
    "config, interpolation": replaced("config.yaml", b"seed: 0", b"seed: ${seed}"),
    "config, tag": replaced("config.yaml", b"seed: 0", b"seed: !!python/object/apply:os.getpid []"),
    "config, text for a seed": replaced("config.yaml", b"seed: 0", b"seed: zero"),
    "config, other task": replaced("config.yaml", b"name: chesapeake", b"name: nowhere"),
    "config, key twice": replaced("config.yaml", b"seed: 0", b"seed: 0\nseed: 0"),
    "config, bytes": replaced("config.yaml", b"seed: 0", b"seed: 0 # \xe9"),
    "config, NUL": replaced("config.yaml", b"seed: 0", b"seed: 0\0"),
    "config, two documents": replaced("config.yaml", b"seed: 0", b"seed: 0\n---"),
    "config, huge number": replaced("config.yaml", b"seed: 0", b"seed: 0x" + b"f" * 5000),
    "config, a directory": instead("config.yaml", Path.mkdir),
    "config, a pipe": instead("config.yaml", os.mkfifo),
    "config, huge": instead("config.yaml", huge),
    "metrics, empty": text("metrics.csv", ""),
    "metrics, bytes": replaced("metrics.csv", b"0.01", b"0.0\xff"),
    "metrics, NUL": replaced("metrics.csv", b"0.01", b"0.0\0"),
    "metrics, text": replaced("metrics.csv", b"0.01", b"fast"),
    "metrics, cut in a line": cut("metrics.csv", 0.7),
    "metrics, last digit cut": lambda run: (run / "metrics.csv").write_bytes(
        (run / "metrics.csv").read_bytes()[:-2]
    ),
    "metrics, no epochs": replaced("metrics.csv", b"epoch,", b"time,"),
    "metrics, epoch nan": replaced("metrics.csv", b"\n1,", b"\nnan,"),
    "metrics, a directory": instead("metrics.csv", Path.mkdir),
    "metrics, a pipe": instead("metrics.csv", os.mkfifo),
    "audit, cut": cut("audit.csv", 0.5),
    "audit, a pipe": instead("audit.csv", os.mkfifo),
}
OF_UNFINISHED = {k: v for k, v in DAMAGES.items() if k.startswith(("config", "metrics"))}
OF_UNFINISHED |= {
    "lock, a pipe that is none": instead(".lock", lambda path: path.symlink_to(path)),
    "log, a directory": lambda run: (run / "train.log").mkdir(),
    "log, a pipe": lambda run: os.mkfifo(run / "train.log"),
}


def damaged_runs(folder, damages, finished):
    """A run per damage, by the kind of damage."""
    found = {}
    for number, (kind, damage) in enumerate(damages.items()):
        name = f"damaged{number:03}"
        found[kind] = write_run(folder, "experiment=table8_gn", name=name, finished=finished)
        damage(found[kind])
    return found


@pytest.mark.parametrize("command", ["runs", "tables", "report"])
def test_damaged_runs_are_named_once_each_and_the_others_served(script, tmp_path, command):
    damaged = damaged_runs(tmp_path / "runs", DAMAGES, finished=True)
    output = [] if command == "runs" else ["--out", tmp_path / "out"]
    started = time.monotonic()
    done = script(command, tmp_path / "runs", *output)  # nothing but damaged runs
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no ")
    good = write_run(tmp_path / "runs", "experiment=table8_lcn", score=61.25, name="good")
    done = script(command, tmp_path / "runs", *output)
    assert time.monotonic() - started < 60  # a bomb takes longer, a pipe takes for ever
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    for kind, directory in damaged.items():
        named = [line for line in lines if line.startswith(f"left out: {directory}")]
        assert len(named) == 1, (kind, named)
        assert len(named[0]) < 500, kind
    assert len(lines) == len(damaged)
    assert str(good) not in done.stderr
    written = {"tables": "mini/table8.csv", "report": "report.html"}.get(command)
    assert "61.25" in ((tmp_path / "out" / written).read_text() if written else done.stdout)


def test_a_result_and_a_configuration_that_disagree_are_both_named(tmp_path):
    run = write_run(tmp_path, "experiment=table8_gn")
    replaced("config.yaml", b"unet_slim", b"unat_slim")(run)
    with pytest.raises(InputError) as error:
        read_run(run)
    assert f"{run / 'result.json'} and {run / 'config.yaml'}" in str(error.value)


def test_unfinished_damaged_runs_are_named_and_listed_are_the_others(script, tmp_path):
    damaged = damaged_runs(tmp_path, OF_UNFINISHED, finished=False)
    del damaged["config, none"]  # no run at all
    write_run(tmp_path, "experiment=table8_lcn", name="good", finished=False)
    done = script("runs", tmp_path)
    assert done.stdout.endswith("\n1 run: 1 stopped\n")
    lines = done.stderr.splitlines()
    for kind, directory in damaged.items():
        assert len([line for line in lines if str(directory) in line]) == 1, kind
    assert len(lines) == len(damaged)


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind.startswith("result")])
def test_training_names_a_damaged_result(tmp_path, kind):
    if kind in ("result, of another run",):  # its own configuration is written anew
        return
    directory = write_run(tmp_path, "experiment=table8_gn")
    DAMAGES[kind](directory)
    with pytest.raises(InputError, match=str(directory / "result.json")):
        read_result(directory)


def test_a_run_whose_result_is_damaged_is_left_unlocked(tmp_path):
    cfg = configuration(("experiment=table8_gn", "data=mini", f"runs={tmp_path}"))[0]
    run = Run(cfg, "", 1)
    run.directory.mkdir(parents=True)
    for _ in range(2):  # a run that kept the lock would make the second one Busy
        (run.directory / "result.json").write_text("{")
        with pytest.raises(InputError, match="damaged"), Run(cfg, "", 1):
            pass
    assert "damaged" in (run.directory / "train.log").read_text()
    (run.directory / "result.json").unlink()
    with run:
        assert not run.was_finished


def test_a_folder_that_only_has_a_file_called_config_does_not_hide_the_runs_in_it(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    run = write_run(tmp_path, "experiment=table8_gn")
    (run / "wandb").mkdir()
    (run / "wandb" / "config.yaml").write_text("a: 1\n")
    assert set(find_runs([tmp_path]).names) == {tmp_path, run}
    assert [found.directory for found in finished_runs([tmp_path, run, tmp_path])[0]] == [run]


YOUNGER = (
    "task.facts", "task.holdout_split", "task.model.kind", "task.outputs", "task.bands",
    "task.resize", "task.steps", "task.scale_lr", "task.eval_splits", "task.median_epochs",
    "data.width", "data.sampling", "data.lr_factor", "data.resize", "data.patches_per_epoch",
    "data.holdout", "data.total_batch", "data.steps", "trainer.max_steps",
    "trainer.checkpoint_minutes", "task.test_split", "task.eval_split",
)  # fmt: skip
"""Keys that the configurations of the first version did not have."""


def test_runs_of_the_first_version_are_listed_counted_and_reported(script, tmp_path):
    runs = tmp_path / "runs"
    old = write_run(runs, "experiment=table1_w18_gn", score=42.5)
    own = write_run(runs, "norm=lcn", "norm.window=31", score=37.75)
    for directory in (old, own):
        config = OmegaConf.to_container(OmegaConf.load(directory / "config.yaml"))
        for key in YOUNGER:
            *path, last = key.split(".")
            node = config
            for part in path:
                node = node[part]
            del node[last]
        OmegaConf.save(OmegaConf.create(config), directory / "config.yaml")
        result = json.loads((directory / "result.json").read_text())
        for key in ("dataset", "world_size"):
            del result[key]
        (directory / "result.json").write_text(json.dumps(result))
        (directory / "audit.csv").unlink()
    assert read_state(old).epochs == 28
    done = script("tables", runs, "--out", tmp_path / "out")
    assert done.stderr == ""
    assert ",42.5000," in (tmp_path / "out" / "mini" / "table1.csv").read_text()
    done = script("report", runs, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "42.50" in page
    assert "37.75" in page


@pytest.mark.parametrize(
    "written",
    ["1e-3", "1.5e3", "2001-01-01", "yes", "~", "0x1F", "017", ".inf", "1.0e-05", "+1", "1.", "a b",
     "'1'", '"x\\ny"', "[1, {a: b}]", "{}", "[]", "-.5", "1_000", "'???x'", "|\n  two\n  lines"],
)  # fmt: skip
def test_yaml_is_read_as_omegaconf_reads_it(tmp_path, written):
    path = tmp_path / "config.yaml"
    path.write_text(f"key: {written}\nother: [{{x: 1}}]\n")
    assert read_yaml(path) == OmegaConf.to_container(OmegaConf.load(path))


@pytest.mark.parametrize("experiment", ["table1_w18_lcn", "table5_bn", "table6_lcn", "table7_gn"])
def test_a_configuration_is_read_as_omegaconf_reads_it(tmp_path, experiment):
    path = write_run(tmp_path, f"experiment={experiment}") / "config.yaml"
    assert read_yaml(path) == OmegaConf.to_container(OmegaConf.load(path))


def test_curves_and_audit_are_those_of_the_files(tmp_path):
    run = read_run(write_run(tmp_path, "experiment=table8_lcn", score=60.0))
    assert run.curve("miou") == ([2, 4, 6, 8], [56.0, 58.0, 60 - 8 / 6, 59.0])
    assert run.curve("loss")[1][:2] == [2.0, 1.0]
    assert run.curve("nothing") == ([], [])
    assert run.windowed == {"training": (1, 8), "evaluation": (3, 8)}


def test_flattened_names_every_leaf():
    tree = {"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": {}}
    assert flattened(tree) == {"a.b.c": 1, "a.d": [1, {"e": 2}], "f": {}}
