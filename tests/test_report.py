"""The comparison of finished runs."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from tasks.figures import densest_window


@pytest.mark.parametrize("seed", range(5))
def test_densest_window_is_the_one_that_a_search_finds(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((17, 30)) < 0.1
    top, left, height, width = densest_window(mask)
    assert (height, width) == (4, 7)
    best = max(
        mask[i : i + 4, j : j + 7].sum() for i in range(17 - 4 + 1) for j in range(30 - 7 + 1)
    )
    assert mask[top : top + height, left : left + width].sum() == best > 0


def report(*arguments):
    command = [sys.executable, "scripts/report.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_report_shows_every_run_beside_the_paper_and_draws_it(train, tiny_cityscapes, tmp_path):
    for norm in ("gn", "lcn"):
        done = train(
            f"experiment=table1_w18_{norm}", f"data.root={tiny_cityscapes}", "data.crop=[32,64]",
            "data.batch_size=4", "data.workers=0", "trainer=cpu", "trainer.max_epochs=1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = report(tmp_path / "runs", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    results = [json.loads(f.read_text()) for f in (tmp_path / "runs").rglob("result.json")]
    assert len(results) == 2
    for result in results:
        (line,) = [t for t in done.stdout.splitlines() if f" {result['norm']['name']}_" in t]
        cells = [f"{value:.2f}" for value in result["metrics"].values()]
        cells += [f"{result['paper'][name]:.2f}" for name in result["metrics"]]
        assert line.split()[2:] == cells
    for name in ("learning_curves.png", "predictions.png"):
        assert str(tmp_path / "report" / name) in done.stdout
        picture = np.asarray(Image.open(tmp_path / "report" / name).convert("L"))
        assert picture.std() > 5, name


def test_report_without_a_finished_run_says_so(tmp_path):
    done = report(tmp_path)
    assert done.returncode == 2
    assert "no finished run" in done.stderr
    assert "Traceback" not in done.stderr
