"""Full disks, no permission, no memory, an ASCII locale: one message, and nothing lost."""

import ast
import contextlib
import errno
import io
import logging
import os
import resource
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, configuration, write_cityscapes

from tasks import miniatures
from tasks.config import as_given, compose
from tasks.data import open_datasets
from tasks.errors import InputError, command, lack, replacing, write_atomically
from tasks.models import check_network
from tasks.protocol import check_facts
from tasks.runs import launch
from tasks.runs.callbacks import AtomicCheckpoints
from tasks.runs.directory import LogFile, Run


@contextlib.contextmanager
def files_of_at_most(size):
    """The system itself refuses to make a file larger, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --------------------------------------------------------------------------------- full disks


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    with (
        files_of_at_most(1000),
        pytest.raises(InputError, match=r"result\.json cannot be written: File too large; free"),
    ):
        write_atomically(path, "x" * 5000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"weight": torch.arange(9)}, path)
    for size in (0, 100, 50_000):  # in the header, and among the weights
        with files_of_at_most(size), pytest.raises(InputError, match=r"last\.ckpt cannot be writ"):
            AtomicCheckpoints().save_checkpoint({"weight": torch.rand(100_000)}, path)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert torch.load(path)["weight"].tolist() == list(range(9))


def test_a_log_that_does_not_fit_is_named(tmp_path, capsys):
    file = LogFile(tmp_path / "train.log", "utf-8")
    with files_of_at_most(10), pytest.raises(InputError, match=r"train\.log cannot be written"):
        file.emit(logging.makeLogRecord({"msg": "a line that is longer"}))
    assert capsys.readouterr().err == ""
    with contextlib.suppress(OSError):
        file.close()


def test_a_temporary_file_goes_with_whatever_fails(tmp_path):
    for kind in (KeyboardInterrupt, ZeroDivisionError):  # a defect stays one
        with contextlib.suppress(kind), replacing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise kind
        assert temporary.name == "x.tmp"
    assert not os.listdir(tmp_path)


def test_a_miniature_that_does_not_fit_is_named_and_gone(tmp_path):
    def generate(folder):
        folder.mkdir()
        (folder / "picture.png").write_bytes(bytes(5000))

    with files_of_at_most(1000), pytest.raises(InputError, match="cannot be written: File too"):
        miniatures.generate_once(tmp_path, "x", 1, 0, generate)
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/data cannot be written: Not a directory"):
        miniatures.generate_once(tmp_path / "file" / "data", "x", 1, 0, generate)


# ------------------------------------------------------------------------------ no permission


def refuse(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "runs")


def test_a_place_that_cannot_be_written_is_named_and_a_finished_run_there_is_shown(
    tmp_path, monkeypatch
):
    cfg = configuration(("experiment=table8_gn", "data=mini", f"runs={tmp_path}"))[0]
    with Run(cfg, "", 1) as run:
        pass
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(InputError, match=r"cannot be written: Read-only file system; give a fol"):
        Run(cfg, "", 1).__enter__()
    assert logging.getLogger("train").handlers == []
    from fakes import write_run

    finished = write_run(tmp_path / "other", "experiment=table8_gn")
    (finished / "result.json").rename(run.directory / "result.json")
    with Run(cfg, "", 1) as run:
        assert run.was_finished


def test_runs_that_is_a_file_is_named(tmp_path):
    (tmp_path / "runs").touch()
    cfg = configuration(("experiment=table8_gn", "data=mini", f"runs={tmp_path / 'runs'}"))[0]
    with pytest.raises(InputError, match="cannot be written: Not a directory; give another place"):
        Run(cfg, "", 1).__enter__()


# ---------------------------------------------------------------------------------- no memory


def test_no_memory_is_a_message():
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**55)
    for error in (
        MemoryError(), of_torch.value, OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
    ):  # fmt: skip
        assert lack(error).startswith("out of memory"), error
    for error in (RuntimeError("shape"), ValueError(), OSError(errno.ENOENT, "x"), KeyError("x")):
        assert lack(error) is None


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt(), 130, "stopped; give the same command again\n"),
     (OSError(errno.ENOSPC, "No space left on device", "x"), 2, "error: x: No space left on devi")],
)  # fmt: skip
def test_a_script_that_is_stopped_or_has_no_space_shows_no_trace(capsys, error, code, message):
    @command
    def main():
        raise error

    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == code
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(("target", "code"), [("/dev/full", 2), ("closed pipe", 141)])
def test_output_that_cannot_be_written_shows_no_trace(target, code):
    script = "from tasks.errors import command\ncommand(lambda: print('x' * 100000))()"
    if target == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(target, os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--halo", "-1", "'-1' is neither auto nor a whole number"),
        ("--tile", "1.5", "'1.5' is no whole number of at least 1"),
        ("--bands", "1,a", "'a' is no whole number of at least 1"),
        ("--memory", "nan", "'nan' is no number above 0"),
    ],
)
def test_an_options_wrong_number_is_explained(script, option, value, why):
    done = script("predict", "run", "x.png", "--out", "out", f"{option}={value}")
    assert done.returncode == 2
    assert done.stderr.endswith(f"argument {option}: {why}\n")


def test_every_script_ends_as_a_command():
    scripts = [path for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text()]
    assert len(scripts) > 8
    for path in scripts:
        assert "@command\ndef main" in path.read_text(), path


def test_a_script_without_memory_says_so(capsys):
    @command
    def main():
        raise MemoryError

    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory: free some")


# -------------------------------------------------------------------------------------- sweeps


def test_a_sweep_counts_its_own_files_alone(tmp_path, monkeypatch, capsys):
    from omegaconf import OmegaConf

    monkeypatch.setattr(launch, "_endings", {})
    for number in range(3):
        launch._write(tmp_path / f"{number}.json", launch.Ending([f"seed={number}"]))
    for name, content in (("7.json", "{}"), ("notes.json", "[]")):  # not of a sweep
        (tmp_path / name).write_text(content)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    monkeypatch.setattr(launch.Sweep, "folder", None)
    launch.Sweep().on_multirun_start(config)
    assert sorted(os.listdir(tmp_path)) == ["7.json", "notes.json"]
    launch._write(tmp_path / "0.json", launch.Ending(["seed=5"], "finished", 0))
    assert launch.summarize(tmp_path) == 0
    assert "1 of 1 runs that were started" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "why"), [("norm=glob(x*)", "the glob(...) matches no option"), ("norm=gn", "none")]
)
def test_the_advice_about_glob_is_only_where_it_is_true(
    tmp_path, monkeypatch, capsys, argument, why
):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", argument])
    monkeypatch.setattr(launch, "_endings", {})
    assert launch.summarize(tmp_path) == 2
    assert f"the sweep has no runs: {why}" in capsys.readouterr().err


# ------------------------------------------------------------------------- locales and the home


def calls_without_encoding(path):
    """Lines of a source file that read or write text in the locale's encoding."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {keyword.arg for keyword in node.keywords}
        words = [a.value for a in node.args if isinstance(a, ast.Constant)]
        modes = [w for w in words if isinstance(w, str) and set(w) <= set("rwaxbt+")]
        if getattr(getattr(node.func, "value", None), "id", "") == "rasterio":
            continue
        of_path = name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
        opens = name == "open" and (isinstance(node.func, ast.Name) or modes or given & {"newline"})
        text = opens and not any("b" in mode for mode in modes)
        asks = name in ("run", "Popen", "check_output") and given & {"text", "universal_newlines"}
        if (of_path or text or asks or name == "FileHandler") and "encoding" not in given:
            yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_text_file_is_utf_8():
    places = [
        place
        for path in [ROOT / "train.py", *(p for f in ("lcn", "tasks", "scripts")
                     for p in sorted((ROOT / f).rglob("*.py")))]
        for place in calls_without_encoding(path)
    ]  # fmt: skip
    own = "tasks/identity.py"  # whose read_text is of a package's metadata
    assert [place for place in places if not place.startswith(own)] == []


def test_the_walk_finds_what_it_looks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    source = tmp_path / "x.py"
    source.write_text(
        'open(p)\nopen(p, "w")\np.read_text()\np.open("w", newline="")\nFileHandler(p)\n'
        'open(p, "rb")\np.write_text(x, encoding="utf-8")\nImage.open(p)\n'
    )
    assert [place[-1] for place in calls_without_encoding(source)] == list("12345")


def test_a_console_of_ascii_takes_every_character(tmp_path):
    place = os.fsencode(tmp_path) + b"/gr\xc3\xbcn"
    done = subprocess.run(
        [sys.executable, "scripts/runs.py", place, "\u4e2d".encode()], cwd=ROOT,
        capture_output=True, env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"gr\xc3\xbcn" in done.stderr


def test_console_escapes_what_does_not_fit(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    command(lambda: print("\u00fc \udcc3 \ud800"))()
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xfc \xc3 \\ud800\n"


def test_the_home_folder_is_written_as_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("runs", "data.root", "checkpoint", "hydra.sweep.dir"):
        assert as_given(f"{key}=~/x") == f"{key}={tmp_path}/x"
        assert as_given(f'{key}="~/x"') == f"{key}={tmp_path}/x"
    assert as_given("runs=~/a b(c") == f'runs="{tmp_path}/a b(c"'
    assert as_given("~logger") == "~logger"
    assert as_given("logger.project=~x") == "logger.project=~x"
    assert compose(["runs=~/x"]).runs == f"{tmp_path}/x"


# ---------------------------------------------------------------- what can be said beforehand


def test_a_split_without_labels_is_named_before_the_training(tmp_path, monkeypatch):
    from tasks.data.cityscapes import Cityscapes

    root = write_cityscapes(tmp_path, {"train": 1, "val": 1})
    monkeypatch.setattr(Cityscapes, "labelled", False)
    with pytest.raises(InputError, match=r"data\.eval_split=val of cityscapes has no labels"):
        open_datasets(compose([f"data.root={root}"]))
    with pytest.raises(InputError, match=r"task\.test_split=val has no labels"):
        open_datasets(compose([f"data.root={root}", "task.test_split=val"]))


def test_facts_cannot_be_set():
    check_facts(compose([]))
    with pytest.raises(InputError, match=r"task\.facts\.primary: facts are how results are"):
        check_facts(compose(["task.facts.primary=loss"]))


@pytest.mark.parametrize("task", ["cityscapes", "imagenet", "coco", "inria", "chesapeake"])
def test_a_network_is_checked_without_data_or_weights(task):
    check_network(compose([f"task={task}", "data=mini", "norm=gn"]))
    with pytest.raises(InputError, match="divi"):
        check_network(compose([f"task={task}", "data=mini", "norm=lcn", "norm.c_group=7"]))
