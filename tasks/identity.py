"""What decides a run's result, and what it was made with: settings, seeds, files, versions, code.

Nothing here imports torch when it is imported.
"""

import functools
import getpass
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from omegaconf import DictConfig

from tasks.config import ROOT, plain
from tasks.protocol import canonical_norm, learning_rate

SETTLED_ELSEWHERE = (
    "epochs", "steps", "devices", "scale_lr", "crop", "resize", "patches_per_epoch", "eval_split",
    "eval_splits", "holdout_split", "mini",
)  # fmt: skip
"""Keys of a task that reach a run through `data`, `trainer` or the learning rate."""


def run_identity(cfg: DictConfig | dict, dataset: str, total_batch: int) -> dict:
    """What decides a run's result, and therefore names its directory."""
    task = plain(cfg["task"])
    task["optimizer"]["lr"] = learning_rate(cfg, total_batch)
    for key in (*SETTLED_ELSEWHERE, "facts"):
        task.pop(key, None)
    model = task["model"]
    for key in ("kind", "batch_size", "mini"):
        model.pop(key, None)
    if model.get("pretrained") is None and not model["name"].startswith("hrnet"):
        model.pop("pretrained", None)  # HRNets alone had the key from the beginning
    for settings, key in ((model, "pretrained"), (task, "backbone_checkpoint")):
        if key in settings:
            settings[key] = file_digest(settings[key])
    data = plain(cfg["data"])
    data.pop("stand_in", None)  # runs older than the key have none
    for key in (
        "root",
        "batch_size",
        "total_batch",
        "eval_batch_size",
        "workers",
        "epochs",
        "steps",
        "lr_factor",
    ):
        data.pop(key)
    identity = {
        "task": task,
        "norm": canonical_norm(plain(cfg["norm"])),
        "data": data,
        "dataset": dataset,
        "total_batch": total_batch,
        "seed": cfg["seed"],
        "checkpoint": file_digest(cfg["checkpoint"]),
        "epochs": cfg["trainer"]["max_epochs"],
        "steps": cfg["trainer"]["max_steps"],
        "precision": cfg["trainer"]["precision"],
    }
    if cfg["norm"]["name"] in ("bn", "brn"):  # whose statistics are those of one device's images
        identity["batch_per_device"] = cfg["data"]["batch_size"]
    accumulated = cfg["trainer"].get("accumulate", 1)  # older runs have no such key
    if cfg["norm"]["name"] in ("bn", "brn", "sync_bn") and accumulated != 1:
        identity["accumulated"] = (
            accumulated  # running statistics are then of more, smaller batches
        )
    return identity


def stable_seed(*parts: int | str) -> int:
    """63 bits that follow from the parts, the same in every process and on every platform."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def file_digest(path: str | None) -> str | None:
    """The first 12 hexadecimal digits of the file's SHA-256; None for no path, a name of timm's."""
    if path is not None and path.startswith("timm:"):
        return path
    if path is None or not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on most; `installed_packages` has all of them."""
    import lcn  # and torch with it, which whoever has numbers has imported

    found = {"python": sys.version.split()[0], "local-context-norm": lcn.__version__}
    for package in ("torch", "torchvision", "pytorch-lightning", "timm", "numba", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def installed_packages() -> str:
    """Every installed package with its version, as a file that ``pip install -c`` takes.

    A package that came from a folder or an address is a comment: no index has it, and where it came
    from is this machine's.
    """
    lines = {}
    for package in distributions():
        name = package.metadata["Name"]
        if name and name != "local-context-norm" and name.lower() not in lines:  # the first is used
            is_local = package.read_text("direct_url.json") is not None
            mark = "# not from an index: " if is_local else ""
            lines[name.lower()] = f"{mark}{name}=={package.version}\n"
    return "".join(lines[name] for name in sorted(lines))


CODE = ("lcn", "tasks", "scripts", "configs", "train.py")
"""What a run's numbers can depend on, of the files of a checkout."""

LARGEST_FILE, LARGEST_PATCH = 2**20, 10 * 2**20  # bytes of changed files that a patch takes


@dataclass(frozen=True)
class Code:
    """The code of a checkout, files that are not yet added to git included.

    Attributes:
        commit: 40 hexadecimal digits, with ``-dirty`` if the code differs from it; None where there
            is no checkout.
        patch: how the code differs, as ``git apply`` takes it.
        left_out: changed files that are too large for the patch, with their sizes.
        rewritten: changed files in which the patch writes the home directory as ``~`` or hides
            another name of this machine.
        problem: why there is no commit, where there is a checkout.
    """

    commit: str | None
    patch: bytes = b""
    left_out: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    problem: str | None = None


@functools.cache
def running_code() -> Code:
    """The code of this process, as it was at the first call: files may change while it runs."""
    return read_code(ROOT)


def read_code(root: Path) -> Code:
    """The code below ``root``, the folder of train.py."""
    try:
        is_checkout = bool(git(root, "ls-files", "--", "train.py"))  # not if others' is around it
        commit = git(root, "rev-parse", "HEAD").decode().strip()
    except (OSError, subprocess.SubprocessError):
        return Code(None)
    if not is_checkout:
        return Code(None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _against_commit(root, commit, Path(folder) / "index")
    except (OSError, subprocess.SubprocessError) as error:
        errors = (getattr(error, "stderr", None) or b"").decode(errors="replace").split("\n")
        return Code(None, problem=errors[0] or str(error))


def _against_commit(root: Path, commit: str, index: Path) -> Code:
    """Uses a copy of git's index, in which new files stand as such."""
    top = Path(git(root, "rev-parse", "--show-toplevel").decode().removesuffix("\n"))
    shutil.copy(root / git(root, "rev-parse", "--git-path", "index").decode().strip(), index)
    present = [name for name in CODE if (root / name).exists()]
    git(root, "add", "--intent-to-add", "--", *present, index=index)
    git(root, "update-index", "-q", "--refresh", index=index, check=False)
    names = git(root, "diff-index", "--name-only", "-z", "HEAD", "--", *CODE, index=index)
    changed = [os.fsdecode(name) for name in names.split(b"\0") if name]
    sizes = {name: _size(top / name) for name in changed}
    left_out, total = [], 0
    for name in sorted(changed, key=lambda name: (sizes[name], name)):
        total += sizes[name]
        if sizes[name] > LARGEST_FILE or total > LARGEST_PATCH:
            left_out.append(name)
    patch = b""
    if len(left_out) < len(changed):
        patch = git(
            root, "diff-index", "--patch", "--binary", "--full-index", "--no-color", "--no-renames",
            "--no-ext-diff", "--no-textconv", "HEAD", "--", *CODE,
            *(f":(top,literal,exclude){name}" for name in left_out), index=index,
        )  # fmt: skip
    patch, rewritten = _without_machine(patch, root)
    return Code(
        f"{commit}-dirty" if patch or left_out else commit,
        patch,
        tuple(f"{name} ({sizes[name] / 1e6:.1f} MB)" for name in sorted(left_out)),
        rewritten,
    )


def _size(path: Path) -> int:
    return path.lstat().st_size if path.is_symlink() or path.exists() else 0


def git(root: Path, *arguments: str, index: Path | None = None, check: bool = True) -> bytes:
    """What git prints in a folder, whatever checkout the caller's environment is about.

    Raises:
        subprocess.SubprocessError: git failed, or gave no answer for a minute.
        OSError: there is no git.
    """
    local = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX",
             "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE", "GIT_LITERAL_PATHSPECS"}  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in local}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    if index is not None:
        environment["GIT_INDEX_FILE"] = str(index)
    command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "core.quotePath=off", *arguments]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, check=check, timeout=60
    ).stdout


def without_home(text: str) -> str:
    """The text with this user's home directory written as ``~``."""
    home = Path.home()
    if home == Path(home.anchor):
        return text
    return re.sub(rf"(?<![\w.~-]){re.escape(str(home))}(?![\w-])", "~", text)


def _without_machine(patch: bytes, root: Path) -> tuple[bytes, tuple[str, ...]]:
    """The patch without this machine's names in the lines that it adds, and the files concerned.

    They are the checkout's folder, the home directory, the user in a path, and the host in an
    address. Other lines are the commit's.
    """
    lines, rewritten, name = patch.decode("utf-8", "surrogateescape").split("\n"), [], ""
    for number, line in enumerate(lines):
        if line.startswith("diff --git "):
            name = line.rpartition(" b/")[2]
        elif line.startswith("+") and not line.startswith("+++ "):
            lines[number] = _without_names(line, root)
            if lines[number] != line and name not in rewritten:
                rewritten.append(name)
    return "\n".join(lines).encode("utf-8", "surrogateescape"), tuple(rewritten)


def _without_names(line: str, root: Path) -> str:
    line = re.sub(rf"(?<![\w.~-]){re.escape(str(root))}(?![\w-])", ".", line)
    line = without_home(line)
    host = socket.gethostname()
    user = _user()
    if user not in ("", "root"):  # the latter is no name
        line = re.sub(rf"(?<![\w.~-])((?:/[\w.+-]+)*/){re.escape(user)}(?![\w.-])", r"\1USER", line)
        line = re.sub(rf"(?<![\w.-]){re.escape(user)}(?=@)", "USER", line)
    if host != "localhost":
        line = re.sub(rf"(//|@){re.escape(host)}(?![\w-])", r"\1HOST", line)
    return line


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have none
        return ""
