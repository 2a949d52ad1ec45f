"""The command line's words: the configuration they give, and messages for people.

Nothing here imports torch, so that a mistake is answered at once.
"""

import contextlib
import difflib
import re
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tasks.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


def _scaled(size, scale):
    """A length in pixels or several times a factor, rounded down and at least 1; None for None."""
    if size is None:
        return None
    if isinstance(size, int):
        return max(1, int(size * scale))
    return OmegaConf.create([max(1, int(side * scale)) for side in size])


OmegaConf.register_new_resolver("scaled", _scaled, replace=True)
OmegaConf.register_new_resolver("product", lambda a, b: a * b, replace=True)
OmegaConf.register_new_resolver("either", lambda holds, a, b: a if holds else b, replace=True)


def as_group_choice(argument: str) -> str:
    """``task.model=x`` as ``task/model=x`` where there is such a group."""
    key, separator, value = argument.partition("=")
    group = key.replace(".", "/")
    is_group = separator and "." in key and (CONFIGS / group).is_dir()
    return f"{group}={value}" if is_group else argument


def explain(error: Exception, arguments: list[str]) -> str:
    """One message for what Hydra or OmegaConf found wrong in a command line or a config file."""
    text = str(error)
    missing = re.search(r"Could not find '([\w/]+)/([^/']+)'", text)
    if missing:
        group, option = missing.groups()
        return f"{group}={option}: no such {group}; {_nearest(option, options(group))}"
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)'", text)
    if unknown:
        key = unknown.group(1).partition("@")[0]
        matches = [a for a in arguments if a.lstrip("+~").partition("=")[0].split("@")[0] == key]
        where = matches[0] if matches else key
        return f"{where}: no such key; {_nearest(key, _valid_keys(arguments))}"
    return text.splitlines()[0] + " (python train.py --help explains the command line)"


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

    def walk(node: DictConfig, prefix: str) -> None:
        for key in node:
            keys.append(f"{prefix}{key}")
            child = OmegaConf.to_container(node, resolve=False)[key]
            if isinstance(child, dict):
                walk(node[key], f"{prefix}{key}.")

    with contextlib.suppress(HydraException, OmegaConfBaseException):
        walk(_compose(choices), "")
    return sorted(groups | set(keys))


def compose(overrides: list[str]) -> DictConfig:
    """The configuration that ``python train.py <overrides>`` would use.

    Raises:
        InputError: an override names something that does not exist.
    """
    try:
        return _compose(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error, overrides)) from None


def _compose(overrides: list[str]) -> DictConfig:
    if GlobalHydra.instance().is_initialized():
        return hydra.compose("train", overrides)
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("train", overrides)


def check_config(cfg: DictConfig) -> None:
    """Raises InputError naming the key, its value and what is allowed."""
    if cfg.task.kind != "detection":  # which takes whole images
        _pair(cfg, "data.crop")
    for key in ("data.batch_size", "data.eval_batch_size", "data.eval_every", "trainer.max_epochs"):
        _require(cfg, key, _is_positive_int, "a whole number of at least 1")
    _require(cfg, "data.workers", lambda v: _is_int(v) and v >= 0, "a whole number of at least 0")
    _require(cfg, "data.scale", lambda v: _is_number(v) and 0 < v <= 1, "above 0 and at most 1")
    splits = cfg.task.eval_splits
    _require(cfg, "data.eval_split", lambda v: v in splits, " or ".join(splits))
    possible = (False,) if cfg.task.holdout_split is None else (False, True)
    words = " or ".join(str(value).lower() for value in possible)
    _require(cfg, "data.holdout", lambda v: v in possible, f"{words} with task={cfg.task.name}")
    _require(cfg, "mode", lambda v: v in ("train", "test"), "train or test")
    _require(cfg, "seed", lambda v: _is_int(v) and v >= 0, "a whole number of at least 0")
    _require(cfg, "task.optimizer.lr", lambda v: _is_number(v) and v > 0, "above 0")
    if "groups" in cfg.norm:
        _require(cfg, "norm.groups", _is_count_or("C"), "a whole number of at least 1, or C")
    if "c_group" in cfg.norm:
        _require(cfg, "norm.c_group", _is_count_or("C"), "a whole number of at least 1, or C")
    if "window" in cfg.norm and cfg.norm.window != "all":
        _pair(cfg, "norm.window", single=True)
    if "window_unit" in cfg.norm:
        units = ("feature", "input")
        _require(cfg, "norm.window_unit", lambda v: v in units, " or ".join(units))
    if cfg.mode == "test" and cfg.checkpoint is None:
        raise InputError("mode=test needs checkpoint=path/to/last.ckpt")


def _value(cfg: DictConfig, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _require(cfg: DictConfig, key: str, holds, allowed: str) -> None:
    value = _value(cfg, key)
    if not holds(value):
        raise InputError(f"{key}={value}: must be {allowed}")


def _pair(cfg: DictConfig, key: str, single: bool = False) -> None:
    value = _value(cfg, key)
    if single and _is_positive_int(value):
        return
    is_list = hasattr(value, "__len__") and not isinstance(value, str)
    if not (is_list and len(value) == 2 and all(_is_positive_int(v) for v in value)):
        forms = "one number, [height, width] or all" if single else "[height, width]"
        raise InputError(f"{key}={value}: must be {forms}, in whole numbers of at least 1")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or isinstance(value, float)


def _is_positive_int(value: object) -> bool:
    return _is_int(value) and value >= 1


def _is_count_or(word: str):
    return lambda value: value == word or _is_positive_int(value)
