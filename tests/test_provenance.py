"""What a run was made with is kept in it, and `runs.py replay` makes it again."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import ROOT, copy_source, write_cityscapes

from tasks import identity
from tasks.errors import InputError
from tasks.identity import Code, installed_packages, read_code, without_home
from tasks.runs import replay
from tasks.runs.provenance import read_starts, write_start

NAME = ["-c", "user.name=a", "-c", "user.email=a@b"]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *NAME, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit_all(folder: Path) -> str:
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "all")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A small checkout with this project's folders, and nothing changed in it."""
    root = tmp_path / "checkout"
    for name in ("lcn", "tasks", "scripts", "configs/norm", "docs"):
        (root / name).mkdir(parents=True)
    (root / "train.py").write_text("import tasks\n")
    (root / "lcn/layers.py").write_text("eps = 1e-5\n")
    (root / "lcn/old.py").write_text("old\n")
    (root / "configs/norm/lcn.yaml").write_text("window: 227\n")
    (root / "docs/page.md").write_text("page\n")
    (root / ".gitignore").write_text("*.pyc\n")
    commit_all(root)
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


def change(root: Path) -> None:
    """One change of every kind: edited, added, staged, removed, renamed, binary, executable."""
    (root / "lcn/layers.py").write_text("eps = 1e-3\n")
    (root / "configs/norm/mine ä.yaml").write_bytes(b"window: 31\r\nlatin: \xe4")
    (root / "tasks/staged.py").write_text("staged\n")
    git(root, "add", "tasks/staged.py")
    (root / "tasks/staged.py").write_text("staged, then changed\n")
    (root / "lcn/old.py").rename(root / "lcn/new.py")
    (root / "scripts/blob").write_bytes(bytes(range(256)) * 4)
    (root / "train.py").chmod(0o755)


def test_code_that_is_the_commit_has_no_patch(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "docs/page.md").write_text("other words\n")
    (checkout / "notes.txt").write_text("not code\n")
    (checkout / "lcn/layers.pyc").write_text("ignored\n")
    assert read_code(checkout) == Code(commit)


def test_the_patch_makes_the_code_out_of_the_commit(checkout, tmp_path):
    change(checkout)
    status = git(checkout, "status", "--porcelain")
    code = read_code(checkout)
    assert code.commit == git(checkout, "rev-parse", "HEAD") + "-dirty"
    assert (code.left_out, code.rewritten, code.problem) == ((), (), None)
    assert git(checkout, "status", "--porcelain") == status  # nothing staged, nothing written

    git(tmp_path, "clone", "--quiet", str(checkout), "again")
    (tmp_path / "diff.patch").write_bytes(code.patch)
    git(tmp_path / "again", "apply", "../diff.patch")
    assert files(tmp_path / "again") == files(checkout)
    assert os.access(tmp_path / "again/train.py", os.X_OK)
    assert read_code(tmp_path / "again") == code


def test_settings_of_git_and_of_the_caller_change_nothing(checkout, tmp_path, monkeypatch):
    change(checkout)
    code = read_code(checkout)
    for setting in ("diff.noprefix=true", "color.ui=always", "diff.external=false", "core.abbrev=4",
                    "diff.context=0", "core.quotePath=true", "diff.renames=copies"):  # fmt: skip
        git(checkout, "config", *setting.split("="))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "of another checkout"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "of a hook"))
    assert read_code(checkout) == code


def test_large_files_are_left_out_and_named(checkout, monkeypatch):
    (checkout / "configs/weights.bin").write_bytes(os.urandom(1_100_000))
    code = read_code(checkout)
    assert (code.patch, code.left_out) == (b"", ("configs/weights.bin (1.1 MB)",))
    assert code.commit.endswith("-dirty")

    (checkout / "lcn/layers.py").write_text("eps = 1e-3\n")
    monkeypatch.setattr(identity, "LARGEST_PATCH", 1000)
    for name in "abc":
        (checkout / f"tasks/{name}.py").write_text(400 * "x")
    code = read_code(checkout)
    assert b"eps = 1e-3" in code.patch
    assert [name.split()[0] for name in code.left_out] == ["configs/weights.bin", "tasks/c.py"]


def test_the_patch_does_not_name_the_machine(checkout, monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setattr("socket.gethostname", lambda: "titan")
    lines = {
        "root: /home/alice/data": "root: ~/data",
        "root: /home/alice": "root: ~",
        "root: /home/alicea/x": "root: /home/alicea/x",
        "root: /data/alice/cityscapes": "root: /data/USER/cityscapes",
        f"root: {checkout}/data": "root: ./data",
        "from: alice@titan:/data": "from: USER@HOST:/data",
        "url: http://titan:8080/": "url: http://HOST:8080/",
        "alice = titan": "alice = titan",
    }
    (checkout / "configs/mine.yaml").write_text("\n".join(lines))
    code = read_code(checkout)
    added = [line[1:] for line in code.patch.decode().splitlines() if re.match(r"\+[^+]", line)]
    assert added == [*lines.values()]
    assert code.rewritten == ("configs/mine.yaml",)


def test_a_home_directory_that_is_no_name_is_left_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert without_home("root: /data/x") == "root: /data/x"
    monkeypatch.setenv("HOME", "/root")
    assert without_home("/root /root/x /rooted a/root") == "~ ~/x /rooted a/root"


def test_without_a_checkout_there_is_no_commit(checkout, tmp_path, monkeypatch):
    shutil.rmtree(checkout / ".git")
    assert read_code(checkout) == Code(None)
    (tmp_path / "other.txt").write_text("somebody else's")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "--quiet", "--message", "others")
    assert read_code(checkout) == Code(None)
    monkeypatch.setenv("PATH", "")
    assert read_code(ROOT) == Code(None)


def test_a_checkout_that_git_cannot_compare_is_said(checkout):
    (checkout / "lcn/nested").mkdir()
    git(checkout / "lcn/nested", "init", "--quiet")  # git refuses a repository without a commit
    code = read_code(checkout)
    assert code.commit is None
    assert "nested" in code.problem


def test_installed_packages_are_constraints_for_pip(tmp_path):
    packages = installed_packages()
    for name in ("torch", "numba", "hydra-core"):
        assert re.search(rf"^{name}=={re.escape(version(name))}$", packages, re.MULTILINE)
    assert "/" not in packages
    (tmp_path / "requirements.txt").write_text(packages)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--dry-run", "--quiet"]
    subprocess.run([*command, "-c", tmp_path / "requirements.txt", "torch"], check=True)


# What a run notes when it starts, and when it continues


CLEAN, EDITED, OTHER = Code("a" * 40), Code("a" * 40 + "-dirty", b"edited"), Code("b" * 40)


def test_a_run_notes_the_code_it_starts_with(tmp_path):
    (start,) = write_start(tmp_path, EDITED, "torch==2.9\n", ["norm=lcn"])
    assert (start.git_commit, start.patch) == (EDITED.commit, "diff.patch")
    assert (tmp_path / "diff.patch").read_bytes() == b"edited"
    assert (tmp_path / "requirements.txt").read_text() == "torch==2.9\n"
    assert read_starts(tmp_path) == [start]

    # no checkpoint yet: it begins anew, and what it was made with before is gone
    (start,) = write_start(tmp_path, CLEAN, "torch==2.9\n", ["norm=lcn"])
    assert (start.git_commit, start.patch) == (CLEAN.commit, None)
    assert not (tmp_path / "diff.patch").exists()


def test_a_run_continued_with_other_code_keeps_both(tmp_path):
    write_start(tmp_path, EDITED, "torch==2.9\n", ["norm=lcn"])
    (tmp_path / "last.ckpt").touch()
    (same,) = write_start(tmp_path, EDITED, "torch==2.9\n", ["norm=lcn", "trainer.devices=2"])
    assert same.overrides == ["norm=lcn", "trainer.devices=2"]

    first, second = write_start(tmp_path, Code(EDITED.commit, b"again"), "torch==2.9\n", [])
    assert first == same
    assert (second.patch, second.requirements) == ("diff.2.patch", "requirements.txt")
    assert (tmp_path / "diff.patch").read_bytes() == b"edited"
    assert (tmp_path / "diff.2.patch").read_bytes() == b"again"

    *_, third = write_start(tmp_path, OTHER, "torch==2.10\n", [])
    assert (third.git_commit, third.patch) == (OTHER.commit, None)
    assert third.requirements == "requirements.3.txt"
    assert read_starts(tmp_path) == [first, second, third]
    assert len(write_start(tmp_path, OTHER, "torch==2.10\n", [])) == 3


def test_a_run_begun_before_there_was_a_note_says_so(tmp_path):
    (tmp_path / "last.ckpt").touch()
    unknown, start = write_start(tmp_path, CLEAN, "torch==2.9\n", [])
    assert (unknown.git_commit, start.git_commit) == (None, CLEAN.commit)


@pytest.mark.parametrize("text", ["", "[", "{}x", "[1]", '[{"git_commit": null}]', "\0"])
def test_a_damaged_note_is_named(tmp_path, text):
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(InputError, match=r"provenance\.json is damaged"):
        read_starts(tmp_path)


# Replay


@pytest.fixture
def replayed(checkout, tmp_path, monkeypatch, capsys):
    """Calls the command on a run of the small checkout; gives what it printed."""
    monkeypatch.setattr(replay, "ROOT", checkout)
    run = tmp_path / "run"
    run.mkdir()

    def call(into: Path) -> str:
        replay.replay_command([str(run), "--into", str(into)], Path)
        return capsys.readouterr().out

    return run, call


def test_replay_writes_commit_and_changes_and_says_how_to_train(replayed, checkout, tmp_path):
    run, call = replayed
    change(checkout)
    was = files(checkout)
    code = read_code(checkout)
    overrides = ["norm=lcn", "runs=elsewhere", "data.root=<path>", "data.crop=[32,64]"]
    write_start(run, code, "torch==2.9\n", overrides)
    git(checkout, "checkout", "--quiet", "--force", "HEAD")  # the code goes on
    (checkout / "lcn/later.py").write_text("later\n")
    git(checkout, "add", "lcn/later.py")
    git(checkout, "commit", "--quiet", "--message", "later")

    printed = call(tmp_path / "again")
    assert files(tmp_path / "again") == was
    assert read_code(tmp_path / "again") == code
    assert f"pip install -c {run / 'requirements.txt'} -e '.[experiments]'" in printed
    assert ".venv/bin/python train.py norm=lcn 'data.root=<path>' 'data.crop=[32,64]'" in printed
    assert "put your own paths in place of <path>" in printed


def test_replay_says_what_it_cannot_restore(replayed, checkout, tmp_path):
    run, call = replayed
    commit = git(checkout, "rev-parse", "HEAD")
    write_start(run, Code(commit + "-dirty", b"", ("a.bin (2.0 MB)",), ("b.yaml",)), "", [])
    (run / "last.ckpt").touch()
    write_start(run, Code(commit + "-dirty", b"", ("a.bin (3.0 MB)",), ("b.yaml",)), "", [])
    printed = call(tmp_path / "again")
    for part in ("continued with other code", "by hand: a.bin (3.0 MB)", "taken out of: b.yaml"):
        assert part in printed


def test_replay_of_a_run_that_cannot_be_replayed_is_refused(replayed, checkout, tmp_path):
    run, call = replayed
    into = tmp_path / "again"
    commit = git(checkout, "rev-parse", "HEAD")

    def refused(why: str) -> None:
        with pytest.raises(InputError, match=why):
            call(into)

    refused("its code is not known")
    write_start(run, Code(None), "", [])
    refused("not made from a git checkout")
    write_start(run, Code("c" * 40), "", [])
    refused(f"there is no commit {'c' * 40}")
    write_start(run, Code(commit + "-dirty", b"diff --git a/x b/x\n"), "", [])
    refused("cannot be written into")
    assert not into.exists()
    into.mkdir()
    (into / "mine").touch()
    refused("is not empty")
    assert [path.name for path in into.iterdir()] == ["mine"]


def test_replay_of_a_run_of_an_older_version(replayed, checkout, tmp_path):
    run, call = replayed
    result = {"overrides": ["norm=lcn"], "versions": {"python": "3.11.7", "lcn": "0.1.0"}}
    commit = git(checkout, "rev-parse", "HEAD")
    (run / "result.json").write_text(json.dumps(result | {"git_commit": f"{commit}-dirty"}))
    with pytest.raises(InputError, match="did not keep the difference"):
        call(tmp_path / "again")
    (run / "result.json").write_text(json.dumps(result | {"git_commit": commit}))
    assert "pip install -c constraints.txt" in call(tmp_path / "again")
    assert files(tmp_path / "again") == files(checkout)


LARGER_WEIGHTS = """
_init = HRNetV2.__init__


def _init_larger(self, *args, **kwargs):
    _init(self, *args, **kwargs)
    for weight in self.parameters():
        weight.data.mul_(1.01)


HRNetV2.__init__ = _init_larger
"""


@pytest.mark.slow
def test_a_replayed_run_is_the_same_to_the_last_bit(tmp_path):
    """With changed code; the unchanged commit gives other weights, so the patch was needed."""
    clone = copy_source(tmp_path / "clone")
    (clone / ".gitignore").write_text("__pycache__/\n/runs/\n")
    commit_all(clone)
    data = write_cityscapes(tmp_path / "cityscapes", {"train": 8, "val": 3})
    settings = ["norm=mine", "seed=1", f"data.root={data}", "data.workers=0", "trainer=cpu"]
    command = ["python", "train.py", *settings, "data.crop=[32,64]", "data.batch_size=4",
               "trainer.max_steps=3", "trainer.max_epochs=2"]  # fmt: skip

    def run(folder: Path, words: list[str]) -> str:
        """Runs a command of Python's in a folder whose code it is; what it printed."""
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run([sys.executable, *words[1:]], cwd=folder, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def only_run(folder: Path) -> Path:
        (directory,) = (folder / "runs/cityscapes").iterdir()
        return directory

    norm = (clone / "configs/norm/gn.yaml").read_text()
    (clone / "configs/norm/mine.yaml").write_text(norm)
    network = clone / "tasks/models/hrnet.py"
    network.write_text(network.read_text() + LARGER_WEIGHTS)
    run(clone, command)
    original = only_run(clone)
    assert (original / "diff.patch").read_bytes().count(b"diff --git") == 2
    for name in ("provenance.json", "diff.patch", "requirements.txt", "result.json"):
        assert str(tmp_path) not in (original / name).read_text(), name

    into = tmp_path / "again"
    git(clone, "checkout", "--quiet", "--force", "HEAD")
    printed = run(
        clone, ["python", "scripts/runs.py", "replay", str(original), "--into", str(into)]
    )
    (line,) = [line for line in printed.splitlines() if " train.py " in line]
    words = [word.replace("<path>", str(data)) for word in shlex.split(line)]
    run(into, words)
    replica = only_run(into)
    assert replica.name == original.name
    results = [json.loads((d / "result.json").read_text()) for d in (original, replica)]
    for key in ("metrics", "best", "steps", "git_commit", "versions", "overrides"):
        assert results[0][key] == results[1][key], key
    assert (replica / "diff.patch").read_bytes() == (original / "diff.patch").read_bytes()
    weights = [torch.load(d / "last.ckpt")["state_dict"] for d in (original, replica)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    git(into, "checkout", "--quiet", "HEAD", "--", "tasks/models/hrnet.py")
    shutil.rmtree(into / "runs")
    run(into, words)
    others = torch.load(only_run(into) / "last.ckpt")["state_dict"]
    assert not all(torch.equal(weights[0][name], others[name]) for name in others)
