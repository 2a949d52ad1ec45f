"""What wandb and TensorBoard are given, read back from the files that they write offline."""

import csv
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import pytorch_lightning as pl
import wandb
import yaml
from conftest import ROOT, write_cityscapes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from tasks.config import compose
from tasks.errors import InputError
from tasks.runs.directory import Run
from tasks.runs.loggers import finish_loggers, make_loggers, read_audit, wandb_mode

KEY = "0123456789" * 4
SMALL = ["data.crop=[32,64]", "data.batch_size=4", "data.workers=0", "trainer=cpu"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing but offline runs, whatever key this machine has; and wandb's settings anew."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The home folder of one run of two epochs of two steps, evaluated after the second."""
    home = tmp_path_factory.mktemp("home-of-somebody")
    data = write_cityscapes(home / "cityscapes", {"train": 8, "val": 3})
    command = [
        sys.executable, "train.py", "experiment=table1_w18_gn", "logger=[wandb,tensorboard]",
        "logger.offline=true", "trainer.max_epochs=2", "data.eval_every=2",
        f"data.root={data}", f"runs={home / 'runs'}", *SMALL,
    ]  # fmt: skip
    env = {**os.environ, "HOME": str(home), "WANDB_API_KEY": KEY, "NUMBA_CACHE_DIR": str(home)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (home / "stdout").write_text(done.stdout)
    return home


@pytest.fixture(scope="module")
def directory(home) -> Path:
    (directory,) = (home / "runs/cityscapes").iterdir()
    return directory


class OfflineRun:
    """A ``.wandb`` file: its run, configuration, rows of the history and final summary.

    The file is a LevelDB log of protocol buffers after a header of seven bytes.
    """

    BLOCK, HEADER = 32768, struct.Struct("<IHB")  # checksum, length, kind of the piece

    def __init__(self, folder: Path):
        (self.path,) = folder.glob("*.wandb")
        self.history: list[dict] = []
        self.summary: dict = {}
        for record in self._records(self.path.read_bytes()):
            if record.HasField("run"):
                self.run = record.run
                self.config = {u.key: json.loads(u.value_json) for u in record.run.config.update}
            if record.HasField("history"):
                self.history.append(self._values(record.history.item))
            if record.HasField("summary"):
                self.summary |= self._values(record.summary.update)

    def _records(self, data: bytes):
        assert data[:4] == b":W&B"
        place, record = 7, b""
        while place + self.HEADER.size <= len(data):
            left = self.BLOCK - place % self.BLOCK
            if left < self.HEADER.size:
                place += left
                continue
            _, length, kind = self.HEADER.unpack_from(data, place)
            place += self.HEADER.size
            record += data[place : place + length]
            place += length
            if kind in (1, 4):  # whole, or the last piece
                yield wandb_internal_pb2.Record.FromString(record)
                record = b""

    @staticmethod
    def _values(items) -> dict:
        return {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items
        }

    def column(self, name: str) -> dict[int, float]:
        """The values of a metric by step."""
        return {row["_step"]: row[name] for row in self.history if name in row}


def sessions(directory: Path) -> list[OfflineRun]:
    return [OfflineRun(folder) for folder in sorted((directory / "wandb").glob("offline-run-*"))]


@pytest.fixture(scope="module")
def logged(directory) -> OfflineRun:
    (logged,) = sessions(directory)
    return logged


def test_wandb_groups_seeds_and_tells_table_norm_and_task(logged, directory):
    task, name = directory.parent.name, re.sub("-seed0-.*", "", directory.name)
    assert re.fullmatch(rf"{task}-{name}-[0-9a-f]{{8}}", logged.run.run_group)
    assert logged.run.job_type == "gn_g16"
    assert list(logged.run.tags) == ["cityscapes", "full", "gn", "table1"]
    assert logged.run.display_name == directory.name
    assert logged.run.project == "lcn"


def test_wandb_has_the_configuration_that_the_run_directory_has(logged, directory):
    written = yaml.safe_load((directory / "config.yaml").read_text())
    assert {key: logged.config[key] for key in written} == written
    assert written["data"]["root"] == "~/cityscapes"


def test_wandb_has_loss_and_learning_rate_of_every_step(logged):
    assert list(logged.column("loss")) == [0, 1, 2, 3]
    lr = logged.column("lr")
    assert lr == {step: pytest.approx(0.01 * (1 - step / 4) ** 0.9) for step in range(4)}


def test_wandb_has_metrics_cost_and_scores_by_class_of_every_epoch(logged, directory):
    with (directory / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    for name in ("seconds", "samples_per_second", "memory_mib"):
        values = [float(epoch[name]) for epoch in epochs]
        assert list(logged.column(name).values()) == values, name
    losses = [pytest.approx(float(epoch["loss"])) for epoch in epochs]
    assert logged.column("loss_epoch") == dict(zip((1, 3), losses, strict=True))
    result = json.loads((directory / "result.json").read_text())
    for name in ("miou", "pixel_acc", "mean_acc"):
        assert logged.column(name) == {3: pytest.approx(result["metrics"][name])}
    for name, iou in result["class_iou"].items():
        assert logged.column(f"class_iou/{name}") == ({} if iou is None else {3: iou})
    assert list(logged.column("val_loss")) == [3]


def test_wandb_s_summary_is_the_result(logged, directory):
    result = json.loads((directory / "result.json").read_text())
    expected = result["metrics"] | {
        name: result[name] for name in ("samples_per_second", "memory_mib")
    }
    assert {name: logged.summary[name] for name in expected} == expected
    assert logged.summary["windowed_layers_training"] == 0


def test_wandb_has_the_audit_as_a_table(logged, directory):
    path = logged.history[0]["audit/path"]
    table = json.loads((logged.path.parent / "files" / path).read_text())
    assert [table["columns"], *table["data"]] == read_audit(directory / "audit.csv")
    assert len(table["data"]) == 2 * 72


def test_wandb_has_pictures_with_masks_and_class_names(logged):
    (row,) = [row for row in logged.history if "validation/1/path" in row]  # one evaluation
    files = logged.path.parent / "files"
    for picture in ("validation/1", "validation/2", "validation/3"):
        assert (files / row[f"{picture}/path"]).stat().st_size > 1000
        for mask in ("ground_truth", "prediction"):
            assert (files / row[f"{picture}/masks/{mask}/path"]).is_file()
    assert b"traffic light" in logged.path.read_bytes()


def test_what_is_sent_holds_no_key_host_name_or_home_path(logged, home):
    sent = [logged.path, *(p for p in (logged.path.parent / "files").rglob("*") if p.is_file())]
    secrets = [KEY, str(home), home.name]
    if len(socket.gethostname()) > 4:  # a shorter one may occur by chance
        secrets.append(socket.gethostname())
    for path in sent:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path
    assert logged.run.host == ""
    for name in ("result.json", "config.yaml"):
        content = (logged.path.parents[2] / name).read_text()
        assert not [secret for secret in secrets if secret in content], name


def test_one_line_says_how_to_sync(home, directory):
    lines = [line for line in (home / "stdout").read_text().splitlines() if "wandb sync" in line]
    assert lines == [f"wandb   offline; to send it: wandb sync {directory / 'wandb'}"]


def test_tensorboard_has_the_same_numbers(directory, logged):
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    for name in ("loss", "lr", "miou", "loss_epoch", "samples_per_second", "class_iou/road"):
        scalars = {event.step: event.value for event in events.Scalars(name)}
        assert scalars == pytest.approx(logged.column(name)), name


def make_run(tmp_path: Path, *overrides: str) -> tuple[list, Run]:
    cfg = compose([f"runs={tmp_path / 'runs'}", *overrides])
    run = Run(cfg, "t v", 1)
    run.directory.mkdir(parents=True, exist_ok=True)
    return make_loggers(cfg, run), run


def test_a_continued_run_is_the_same_wandb_run(tmp_path):
    for steps in ((0, 1, 2), (1, 2, 3)):  # stopped after step 2, its checkpoint is of step 0
        (logger,), run = make_run(tmp_path, "logger=wandb", "logger.offline=true")
        for step in steps:
            logger.log_metrics({"loss": step / 10}, step)
        trainer = pl.Trainer(logger=[logger], accelerator="cpu", enable_checkpointing=False)
        finish_loggers(trainer, {"miou": 50.0})
        time.sleep(1.1)  # wandb names a session's folder after the second
    first, second = sessions(run.directory)
    assert first.run.run_id == second.run.run_id == (run.directory / "wandb_id").read_text().strip()
    assert second.run.resume
    assert first.column("loss") | second.column("loss") == {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.3}


def test_another_directory_of_the_same_row_is_another_wandb_run(tmp_path):
    ids = set()
    for place in ("here", "there"):
        (logger,), run = make_run(tmp_path / place, "logger=wandb", "logger.offline=true")
        logger.experiment.finish()
        ids.add(run.directory.name)
        ids.add(logger.experiment.id)
    assert len(ids) == 3  # one name, two ids


def test_loggers_are_chosen_by_name_and_csv_is_always_written(tmp_path, monkeypatch):
    assert make_run(tmp_path)[0] == make_run(tmp_path, "logger=csv")[0] == []
    (board,), _ = make_run(tmp_path, "logger=tensorboard")
    assert type(board).__name__ == "TensorBoardLogger"
    many = compose(["logger=[tensorboard,wandb,csv]", "logger.entity=team"]).logger
    assert (many.csv, many.tensorboard, many.wandb, many.entity) == (True, True, True, "team")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert make_run(tmp_path, "logger=[wandb,tensorboard]", "logger.offline=true")[0] == []


def test_loggers_do_not_change_a_run_s_name():
    names = {
        Run(compose(overrides), "t v", 1).directory.name
        for overrides in ([], ["logger=wandb"], ["logger=[wandb,tensorboard]", "logger.project=x"])
    }
    assert len(names) == 1


def test_wandb_is_offline_unless_it_has_a_key(monkeypatch, tmp_path):
    assert wandb_mode(None) == "offline"
    with pytest.raises(InputError, match="wandb has no key"):
        wandb_mode(False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert (wandb_mode(None), wandb_mode(False), wandb_mode(True)) == (
        "online",
        "online",
        "offline",
    )
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9 login user password {KEY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode(None) == "online"


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_s_own_mode_is_respected(monkeypatch, mode):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wandb_mode(None) == mode


def dashboard(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/wandb_dashboard.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def panels_by_kind(panels: list[dict]) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for panel in panels:
        found[panel["viewType"]].append(panel["config"])
    return found


def test_dashboard_compares_norms_task_by_task():
    done = dashboard("--dry-run", "--entity", "team", "--data", "mini")
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    primary = ["miou", "miou", "miou", "ap_bbox", "top1_err", "overall_iou"]  # tasks by name
    assert [w["entity"] for w in sent["workspaces"]] == ["team"] * 6
    for workspace, metric in zip(sent["workspaces"], primary, strict=True):
        section = workspace["spec"]["section"]
        (runs,) = section["runSets"]
        assert [key["name"] for key in runs["grouping"]] == ["jobType"]
        panels = [p for s in section["panelBankConfig"]["sections"] for p in s["panels"]]
        kinds = panels_by_kind(panels)
        lines = {config["metrics"][0]: config for config in kinds["Run History Line Plot"]}
        assert {metric, "loss_epoch", "lr"} <= set(lines)
        assert {config["groupBy"] for config in lines.values()} == {"jobType"}
        assert metric in [config["metrics"][0] for config in kinds["Bar Chart"]]
        assert {config["yAxis"] for config in kinds["Scatter Plot"]} == {f"summary:{metric}"}
    grids = [block for block in sent["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 2 * 6
    assert json.dumps(grids).count('"Run Comparer"') == 6
    assert all('"mini"' in json.dumps(grid) and '"full"' not in json.dumps(grid) for grid in grids)


def test_dashboard_without_a_key_is_one_line():
    done = dashboard("--task", "cityscapes")
    assert done.returncode == 2
    assert done.stderr == "error: wandb has no key; log in first: wandb login (or see --dry-run)\n"
