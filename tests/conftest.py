"""Shared by the tests: tiny data in Cityscapes' format, real samples, train.py as a process."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
import importlib.util
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from tasks.config import compose
from tasks.evidence.gather import gather
from tasks.runs.record import finished_runs

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real samples; the test is skipped where there is none."""
    if not REAL.is_dir():
        pytest.skip("no real samples (../shared/data)")
    return REAL


def copy_source(to: Path) -> Path:
    """A copy of the source as it is now, without what is generated: for what changes its folder."""
    generated = shutil.ignore_patterns(
        ".*", "data", "runs", "demo", "report", "wandb", "benchmark", "build", "dist", "*.egg-info"
    )

    def ignored(folder: str, names: list[str]) -> set[str]:
        return generated(folder, names) if Path(folder) == ROOT else {"__pycache__"} & {*names}

    return Path(shutil.copytree(ROOT, to, ignore=ignored))


def run_two_processes(folder: Path, script: str, *arguments: str) -> str:
    """What a script prints that starts two processes of DDP; it is given a free port first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    file = folder / "ddp.py"
    file.write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, file, port, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def write_cityscapes(root: Path, splits: dict[str, int], size: tuple[int, int] = (64, 128)) -> Path:
    """A few images in Cityscapes' layout: horizontal bands of road, building and sky."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for index in range(count):
            stem = f"town_{index:06d}_000000"
            image_dir = root / "leftImg8bit" / split / "town"
            label_dir = root / "gtFine" / split / "town"
            image_dir.mkdir(parents=True, exist_ok=True)
            label_dir.mkdir(parents=True, exist_ok=True)
            bands = np.repeat(rng.permutation([7, 11, 23, 4]), -(-size[0] // 4))[: size[0]]
            label = np.repeat(bands[:, None], size[1], axis=1).astype(np.uint8)
            image = label[..., None] * [7, 3, 5] + rng.integers(0, 40, (*size, 3))
            Image.fromarray(image.astype(np.uint8)).save(image_dir / f"{stem}_leftImg8bit.png")
            Image.fromarray(label).save(label_dir / f"{stem}_gtFine_labelIds.png")
    return root


@functools.cache
def configuration(overrides: tuple[str, ...]) -> tuple[DictConfig, str]:
    """A run's configuration once its dataset is open, and the text of its ``config.yaml``."""
    cfg = compose(list(overrides))
    if cfg.task.num_classes is None:
        cfg.task.class_names = ["a", "b"]
        cfg.task.num_classes = cfg.task.outputs = 2
    return cfg, OmegaConf.to_yaml(cfg, resolve=True)


@pytest.fixture
def tiny_cityscapes(tmp_path: Path) -> Path:
    """8 training and 3 validation images of 64 x 128."""
    return write_cityscapes(tmp_path / "cityscapes", {"train": 8, "val": 3})


@pytest.fixture
def train(tmp_path: Path):
    """Runs ``python train.py`` with small settings; returns the finished process."""

    def run(*overrides: str, env: dict[str, str] | None = None, timeout: float = 240):
        command = [sys.executable, "train.py", f"runs={tmp_path / 'runs'}", *overrides]
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def script(monkeypatch, capsys):
    """Calls a script in this process, which is faster; returns what a process would."""

    def call(name: str, *arguments: object, cwd: Path = ROOT, columns: int = 1000):
        place = ROOT / "scripts" / f"{name}.py"
        specification = importlib.util.spec_from_file_location(name, place)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        command = [f"{name}.py", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.chdir(cwd)
        code = 0
        try:
            module.main()
        except SystemExit as leaving:
            code = leaving.code
        return subprocess.CompletedProcess(command, code, *capsys.readouterr())

    return call


@pytest.fixture
def write_run(tmp_path: Path):
    """Writes a finished run."""
    import fakes  # which needs this module

    return functools.partial(fakes.write_run, tmp_path / "runs")


@pytest.fixture
def evidence(tmp_path: Path):
    """Gathers the runs that were written."""
    return lambda: gather(finished_runs([tmp_path / "runs"])[0])
