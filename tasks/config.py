"""The command line's words: the configuration they give, and messages for people.

Nothing here imports torch, so that a mistake is answered at once.
"""

import argparse
import contextlib
import copy
import difflib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tasks.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


def _scaled(size: int | Sequence[int] | None, scale: float) -> int | ListConfig | None:
    """A length in pixels or several times a factor, rounded down and at least 1; None for None."""
    if size is None:
        return None
    if isinstance(size, int):
        return max(1, int(size * scale))
    return OmegaConf.create([max(1, int(side * scale)) for side in size])


OmegaConf.register_new_resolver("scaled", _scaled, replace=True)
OmegaConf.register_new_resolver("product", lambda a, b: a * b, replace=True)
OmegaConf.register_new_resolver("either", lambda holds, a, b: a if holds else b, replace=True)


PATHS = (
    "checkpoint", "runs", "data.root", "task.model.pretrained", "task.backbone_checkpoint",
    "hydra.sweep.dir", "hydra.run.dir",
)  # fmt: skip
"""Keys whose value is a path, in which ``~`` is the home folder."""


def as_given(argument: str) -> str:
    """An argument as Hydra is to take it: ``task.model=x`` chooses from a group, ``~`` is home."""
    key, separator, value = argument.partition("=")
    group = key.replace(".", "/")
    if separator and "." in key and (CONFIGS / group).is_dir():
        return f"{group}={value}"
    path = value.strip("\"'")
    if key.lstrip("+") in PATHS and path.startswith("~"):
        expanded = f"{key}={os.path.expanduser(path)}"
        return expanded if _is_readable(expanded) else f'{key}="{os.path.expanduser(path)}"'
    return argument


def path_of(text: str) -> Path:
    """A path of a command line, in which ``~`` is the home folder."""
    return Path(text).expanduser()


def is_norm(text: str) -> bool:
    """Whether a word of a command line is an override of the norm, not a path."""
    return text.startswith(("norm=", "norm."))


def positive(text: str) -> int:
    """A whole number of a command line.

    Raises:
        argparse.ArgumentTypeError: it is none, or below 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def amount(text: str) -> float:
    """A finite number above 0 of a command line.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")


def with_home(cfg: DictConfig) -> DictConfig:
    """The configuration with ``~`` in its paths as the home folder; ``cfg`` stays as it is."""
    paths = {key: OmegaConf.select(cfg, key) for key in PATHS}
    homes = {k: v for k, v in paths.items() if isinstance(v, str) and v.startswith("~")}
    if homes:
        cfg = copy.deepcopy(cfg)
    for key, path in homes.items():
        OmegaConf.update(cfg, key, os.path.expanduser(path))
    return cfg


def explain(error: Exception, arguments: list[str]) -> str:
    """One message for what Hydra or OmegaConf found wrong in a command line or a config file."""
    text = str(error)
    missing = re.search(r"Could not find '([\w/]+)/([^/']+)'", text)
    if missing:
        return _no_such_option(*missing.groups())
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)'", text)
    if unknown:
        key = unknown.group(1).partition("@")[0]
        matches = [a for a in arguments if a.lstrip("+~").partition("=")[0].split("@")[0] == key]
        where = matches[0] if matches else key
        return f"{where}: no such key; {_nearest(key, _valid_keys(arguments))}"
    several = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if several:
        return f"{several.group(1)}: several values are a sweep, which -m asks for"
    if isinstance(error, OverrideParseException):
        wrong = next(a for a in arguments if not _is_readable(a))
        return (
            f"{wrong}: cannot be read; quote a value with other signs than letters, digits and "
            f"/-_.: {_quoted(wrong)}"
        )
    for argument in arguments:  # Hydra stumbles over a group's option that is no word
        group, _, option = argument.partition("=")
        is_word = re.fullmatch(r"(?!true$|false$)[A-Za-z_][\w.-]*", option)
        if group and (CONFIGS / group).is_dir() and not is_word:
            return _no_such_option(group, option)
    return text.splitlines()[0] + " (python train.py --help explains the command line)"


def _is_readable(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _no_such_option(group: str, option: str) -> str:
    message = f"{group}={option}: no such {group}; "
    known = options(group)
    alike = [name for name in known if name.startswith(f"{option}_")]
    if alike:
        every = f"all {len(alike)} with -m '{group}=glob({option}_*)'"
        return f"{message}there are {', '.join(alike[:3])}, ...; {every}"
    return message + _nearest(option, known)


def _quoted(argument: str) -> str:
    """An argument as a shell and Hydra take it, whatever signs are in it."""
    key, _, value = argument.partition("=")
    return shlex.quote(f'{key}="{value.strip(chr(34))}"')


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if not close:  # the last part alone, such as `windw` for `norm.window`
        tails = {name.rpartition(".")[2]: name for name in known}
        tail = word.rpartition(".")[2]
        close = [tails[t] for t in difflib.get_close_matches(tail, tails, n=3, cutoff=0.6)]
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "there are: " + ", ".join(known) if len(known) < 50 else "see python train.py --cfg job"


def options(group: str) -> list[str]:
    """Names of the options of a config group, such as ``norm``."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def _valid_keys(arguments: list[str]) -> list[str]:
    """Every key and group of the configuration that the well-formed group choices give."""
    groups = {str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*") if p.is_dir()}
    choices = [
        a
        for a in arguments
        if a.partition("=")[0] in groups and a.partition("=")[2] in options(a.partition("=")[0])
    ]
    keys: list[str] = []

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, child in node.items():
            keys.append(f"{prefix}{key}")
            if isinstance(child, dict):
                walk(child, f"{prefix}{key}.")

    with contextlib.suppress(HydraException, OmegaConfBaseException):
        walk(plain(_compose(choices), resolve=False), "")
    return sorted(groups | set(keys))


def compose(overrides: list[str]) -> DictConfig:
    """The configuration that ``python train.py <overrides>`` would use.

    Raises:
        InputError: an override names something that does not exist.
    """
    try:
        return _compose(overrides)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise InputError(explain(error, overrides)) from None


def _compose(overrides: list[str]) -> DictConfig:
    overrides = [as_given(override) for override in overrides]
    if GlobalHydra.instance().is_initialized():
        return with_home(hydra.compose("train", overrides))
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return with_home(hydra.compose("train", overrides))


def _copied(tree: Any) -> Any:
    """The same tree of dicts and lists; `copy.deepcopy` takes 2.6 times as long."""
    if isinstance(tree, dict):
        return {key: _copied(child) for key, child in tree.items()}
    return [_copied(child) for child in tree] if isinstance(tree, list) else tree


def plain(node: DictConfig | dict[str, Any], resolve: bool = True) -> dict[str, Any]:
    """A part of a configuration as dicts and lists of its own, with every value resolved."""
    if isinstance(node, dict):
        return _copied(node)
    container = OmegaConf.to_container(node, resolve=resolve)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
