"""Values of a configuration that cannot be meant, found before anything is loaded."""

from omegaconf import DictConfig

from tasks.errors import InputError


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
    _require(
        cfg, "data.holdout", lambda v: v in (False, cfg.task.name == "inria"), "false but for INRIA"
    )
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
