"""A thousand runs are listed and reported in reasonable time, counted in seconds of a CPU."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from fakes import write_run

from tasks.evidence.rows import published_rows

EPOCHS, LAYERS = 100, 72

CURVE = "epoch,step,lr,loss,seconds,miou\n" + "".join(
    f"{epoch},{100 * epoch},{0.01 / epoch},{2 / epoch},{30.5 * epoch},{50 - 8 / epoch}\n"
    for epoch in range(1, EPOCHS + 1)
)
AUDIT = "phase,name,kind,channels,height,width,window,windowed\n" + "".join(
    f'{phase},stage{layer}.norm,LocalContextNorm,64,128,256,"[31, 31]",{layer < 40}\n'
    for phase in ("training", "evaluation")
    for layer in range(LAYERS)
)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> Path:
    """A thousand runs of published rows, one in ten of a window that no row has."""
    folder = tmp_path_factory.mktemp("many")
    names = list(published_rows())
    for number in range(1000):
        seed, row = divmod(number, len(names))
        overrides = [f"experiment={names[row]}"]
        if number % 10 == 0:
            overrides = ["norm=lcn", f"norm.window={11 + 2 * row}"]
        run = write_run(folder, *overrides, seed=seed, score=40 + number % 17, curve=CURVE)
        (run / "audit.csv").write_text(AUDIT)
    return folder


def seconds_of(*command: object) -> float:
    """Of a CPU, that a process takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_a_thousand_runs_are_listed_in_two_seconds(thousand):
    assert min(seconds_of("scripts/runs.py", thousand) for _ in range(3)) < 2


@pytest.mark.slow
def test_a_thousand_runs_are_reported_in_twenty_seconds(thousand, tmp_path):
    assert seconds_of("scripts/report.py", thousand, "--out", tmp_path) < 20
