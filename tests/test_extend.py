"""docs/extend.md followed to the letter in a copy of the repository: it tests, trains, reports."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = ROOT / "docs" / "extend.md"
PARTS = ("configs", "lcn", "results", "scripts", "tasks", "train.py")
BLOCK = re.compile(r"\*\*`(?P<path>[^`]+)`\*\*\n+(?P<blocks>(?:```\w+\n.*?\n```\n+)+)", re.DOTALL)


def changes():
    """The page's files: (path, language, text) of every block under a path."""
    for file in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        for language, text in re.findall(r"```(\w+)\n(.*?)\n```\n", file["blocks"], re.DOTALL):
            yield file["path"], language, text + "\n"


def edited(text: str, diff: str, path: str) -> str:
    """A file's text after a diff without line numbers, whose old lines it has exactly once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(old) == 1, f"docs/extend.md is out of date: {path} has not once\n{old}"
    return text.replace(old, new)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the repository with everything that the page adds."""
    copy = tmp_path_factory.mktemp("extended")
    for part in PARTS:
        source = ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, copy / part)
    for path, language, text in changes():
        file = copy / path
        if language == "diff":
            file.write_text(edited(file.read_text(encoding="utf-8"), text, path), encoding="utf-8")
        else:
            assert not file.exists(), f"{path} is there already"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return copy


def run(folder: Path, *command: str) -> str:
    """What a command prints, with the copy's code and not this checkout's."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_of_a_block_stands_in_its_section_s_table():
    text = PAGE.read_text(encoding="utf-8")
    for section in re.split(r"\n## ", text)[1:]:
        table = "".join(line for line in section.splitlines() if line.startswith("|"))
        for file in BLOCK.finditer(section):
            assert f"`{file['path']}`" in table


def test_the_page_s_own_tests_pass(extended):
    tests = sorted({path for path, *_ in changes() if path.startswith("tests/")})
    assert len(tests) == 3
    assert "failed" not in run(extended, "-m", "pytest", "-q", *tests)


def test_what_the_page_adds_trains_is_listed_and_reported(extended):
    run(
        extended, "train.py", "-m", "experiment=discs_gn", "data=mini", "task/model=stack",
        "norm=gn,rms", "trainer=cpu", "trainer.max_epochs=2",
    )  # fmt: skip
    results = [json.loads(file.read_text()) for file in extended.glob("runs/**/result.json")]
    found = sorted((result["model"], result["norm"]["name"]) for result in results)
    assert found == [("stack", "gn"), ("stack", "rms")]
    for result in results:
        assert list(result["metrics"]) == ["miou", "pixel_acc"]
        assert set(result["class_iou"]) == {"background", "disc"}
    assert "2 runs: 2 finished" in run(extended, "scripts/runs.py")
    run(extended, "scripts/report.py", "runs", "--out", "report")
    report = (extended / "report" / "report.html").read_text(encoding="utf-8")
    assert "Discs" in report
    assert "rms_g16" in report


def test_a_choice_of_data_is_a_page_and_an_option_of_the_commands(extended):
    printed = run(extended, "scripts/tables.py", "--missing", "mini_brief")
    assert printed.startswith("# On the brief miniature\n")
    assert " data=mini_brief seed=" in printed
    printed = run(extended, "train.py", "experiment=table8_lcn", "data=mini_brief", "--cfg", "job")
    assert "stand_in: brief miniature" in printed


def test_the_data_check_draws_the_new_task(extended):
    printed = run(extended, "scripts/check_data.py", "task=discs", "data=mini", "--pictures", "out")
    assert "everything is as it should be" in printed
    assert (extended / "out" / "discs.png").exists()
