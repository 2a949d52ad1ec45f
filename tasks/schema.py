"""What every key of a configuration may be, checked before anything is loaded.

One table, `RULES`, has a line for each key. Nothing here imports torch.
"""

import difflib
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tasks.errors import InputError


class Rule(NamedTuple):
    """Which values a key may have, as a test and in words: "must be <words>"."""

    allows: Callable[[Any], bool]
    words: str


def whole(least: int, most: int | None = None) -> Rule:
    words = f"of at least {least}" if most is None else f"from {least} to {most:,}"
    return Rule(
        lambda v: _is_int(v) and least <= v and (most is None or v <= most),
        f"a whole number {words}",
    )


def number(least: float = -math.inf, most: float = math.inf, above: float | None = None) -> Rule:
    """A finite number; ``above`` in place of ``least`` leaves the bound itself out."""
    low = f"of at least {least:g}" if above is None else f"above {above:g}"
    if above is None and least == -math.inf:
        low = ""
    high = "" if most == math.inf else f" and at most {most:g}"
    words = f"a number {low}{high}".rstrip()

    def allows(value: Any) -> bool:
        if not (_is_int(value) or isinstance(value, float)) or not math.isfinite(value):
            return False
        return value <= most and (value >= least if above is None else value > above)

    return Rule(allows, words)


def one_of(*names: str) -> Rule:
    return Rule(lambda value: isinstance(value, str) and value in names, " or ".join(names))


def list_of(item: Rule, length: int | None = None) -> Rule:
    def allows(value: Any) -> bool:
        if not isinstance(value, list) or not value:
            return False
        return (length is None or len(value) == length) and all(map(item.allows, value))

    count = "" if length is None else f" of {length}"
    return Rule(allows, f"a list{count}, each {item.words}")


def either(*rules: Rule) -> Rule:
    words = " or ".join(rule.words for rule in rules)
    return Rule(lambda value: any(rule.allows(value) for rule in rules), words)


FLAG = Rule(lambda value: isinstance(value, bool), "true or false")
NULL = Rule(lambda value: value is None, "null")
TEXT = Rule(lambda v: isinstance(v, str) and v.strip() != "" and "\0" not in v, "a name")
PATH = Rule(TEXT.allows, "a path")
KIND = one_of("segmentation", "classification", "detection")
COUNT = whole(1)
SIZE = Rule(list_of(COUNT, 2).allows, "[height, width], in whole numbers of at least 1")
WINDOW = Rule(
    lambda value: value == "all" or COUNT.allows(value) or SIZE.allows(value),
    "one number, [height, width] or all, in whole numbers of at least 1",
)
GROUPS = Rule(
    lambda value: value == "C" or COUNT.allows(value), "a whole number of at least 1, or C"
)
SHARE = number(0, 1)
FACTOR = number(above=0, most=1)
RANGE = Rule(
    lambda v: list_of(number(above=0), 2).allows(v) and v[0] <= v[1],
    "[least, most], in numbers above 0",
)
DROPS = Rule(
    lambda v: list_of(SHARE).allows(v) and v == sorted(v),
    "an ascending list of numbers from 0 to 1",
)
WINDOWS = Rule(
    lambda v: isinstance(v, dict) and all(map(WINDOW.allows, v.values())),
    "{pattern of layer names: window}",
)
FACTS = Rule(
    lambda v: isinstance(v, dict) and "primary" in v, "the facts that tasks.protocol describes"
)
SAMPLING = Rule(
    lambda v: isinstance(v, dict) and all(map(COUNT.allows, v.values())),
    "{name: whole number of at least 1}",
)
DEVICES = Rule(
    lambda v: (
        (v in ("auto", -1) and not isinstance(v, bool))
        or COUNT.allows(v)
        or (list_of(whole(0)).allows(v) and len(set(v)) == len(v))
    ),
    "auto, -1 (all), a whole number of at least 1, or a list of GPUs' numbers",
)


def optional(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.allows(value), f"{rule.words}, or null")


MUST_BE_GIVEN = "(must be given)"
"""What an experiment says of a file that its command has to name."""

RULES: dict[str, Rule] = {
    "mode": one_of("train", "test", "plan"),
    "checkpoint": optional(PATH),
    "convert": FLAG,
    "seed": whole(0, 2**32 - 1),
    "runs": PATH,
    "paper.table": whole(1),
    "paper.row.*": Rule(lambda value: isinstance(value, str | int | float), "a cell of the table"),
    "paper": NULL,
    "plan.device": optional(
        one_of("t4", "v100", "rtx3090", "rtx4090", "a100", "a100_80gb", "h100")
    ),
    "plan.utilization": FACTOR,
    "plan.calibrate": optional(FLAG),
    "plan.objects": COUNT,
    "plan.positives": optional(COUNT),
    "task.name": TEXT,
    "task.kind": KIND,
    "task.num_classes": optional(COUNT),
    "task.outputs": optional(COUNT),
    "task.class_names": optional(list_of(TEXT)),
    "task.bands": list_of(TEXT),
    "task.crop": optional(SIZE),
    "task.eval_halo": whole(0),
    "task.resize": optional(either(COUNT, SIZE)),
    "task.patches_per_epoch": optional(COUNT),
    "task.scale_range": optional(RANGE),
    "task.area_range": Rule(lambda v: RANGE.allows(v) and v[1] <= 1, "[least, most], above 0 to 1"),
    "task.ratio_range": RANGE,
    "task.flip": SHARE,
    "task.interpolation": one_of("bilinear", "bicubic"),
    "task.color_jitter": number(0, 1),
    "task.lighting": number(0),
    "task.mean": optional(list_of(number())),
    "task.std": optional(list_of(number(above=0))),
    "task.backbone_checkpoint": optional(PATH),
    "task.box_loss_beta": number(above=0),
    "task.epochs": COUNT,
    "task.steps": optional(COUNT),
    "task.devices": COUNT,
    "task.optimizer.name": one_of("sgd", "adam"),
    "task.optimizer.lr": number(above=0),
    "task.optimizer.momentum": number(0, 1),
    "task.optimizer.weight_decay": number(0),
    "task.optimizer.nesterov": FLAG,
    "task.optimizer.bias_lr_factor": number(above=0),
    "task.optimizer.decay_biases": FLAG,
    "task.optimizer.decay_norms": FLAG,
    "task.scale_lr": FLAG,
    "task.schedule.name": one_of("poly", "step"),
    "task.schedule.power": number(0),
    "task.schedule.drops": DROPS,
    "task.schedule.warmup": SHARE,
    "task.schedule.warmup_from": SHARE,
    "task.class_weights": optional(list_of(number(0))),
    "task.eval_every": COUNT,
    "task.eval_split": TEXT,
    "task.eval_splits": list_of(TEXT),
    "task.holdout_split": optional(TEXT),
    "task.test_split": optional(TEXT),
    "task.median_epochs": COUNT,
    "task.facts": FACTS,
    "task.mini.scale": FACTOR,
    "task.mini.patches_per_epoch": COUNT,
    "task.mini.eval_every": COUNT,
    "task.mini.lr_factor": number(above=0),
    "task.mini.sampling": SAMPLING,
    "task.model.name": TEXT,
    "task.model.kind": KIND,
    "task.model.batch_size": COUNT,
    "task.model.pretrained": optional(PATH),
    "task.model.widths": list_of(COUNT),
    "task.model.convolutions": COUNT,
    "task.model.transposed": optional(FLAG),
    "task.model.margin": whole(1),
    "task.model.arch": TEXT,
    "task.model.encoder": TEXT,
    "task.model.mini.batch_size": COUNT,
    "task.model.mini.epochs": COUNT,
    "task.model.mini.long": COUNT,
    "task.model.mini.width": FACTOR,
    "task.model.mini.crop": SIZE,
    "norm.name": TEXT,
    "norm.groups": optional(GROUPS),
    "norm.c_group": GROUPS,
    "norm.window": WINDOW,
    "norm.window_unit": one_of("feature", "input"),
    "norm.windows": optional(WINDOWS),
    "norm.window_per_group": FLAG,
    "norm.window_lr_factor": number(above=0),
    "norm.eps": number(0),
    "norm.momentum": SHARE,
    "norm.r_max": number(1),
    "norm.d_max": number(0),
    "norm.warmup_steps": whole(0),
    "norm.r_steps": whole(0),
    "norm.d_steps": whole(0),
    "norm.size": COUNT,
    "norm.sigma": optional(number(above=0)),
    "norm.alpha": number(0),
    "norm.beta": number(0),
    "norm.k": number(0),
    "data.name": TEXT,
    "data.stand_in": optional(TEXT),
    "data.root": PATH,
    "data.scale": FACTOR,
    "data.width": FACTOR,
    "data.sampling": optional(SAMPLING),
    "data.lr_factor": number(above=0),
    "data.crop": optional(SIZE),
    "data.resize": optional(either(COUNT, SIZE)),
    "data.patches_per_epoch": optional(COUNT),
    "data.holdout": FLAG,
    "data.batch_size": COUNT,
    "data.total_batch": COUNT,
    "data.eval_batch_size": COUNT,
    "data.eval_split": TEXT,
    "data.epochs": COUNT,
    "data.steps": optional(COUNT),
    "data.eval_every": COUNT,
    "data.workers": whole(0),
    "trainer.accelerator": one_of("auto", "cpu", "gpu"),
    "trainer.devices": DEVICES,
    "trainer.num_nodes": COUNT,
    "trainer.strategy": one_of("auto", "ddp"),
    "trainer.accumulate": Rule(
        lambda v: v == "auto" or COUNT.allows(v), "auto, or a whole number of at least 1"
    ),
    "trainer.precision": one_of("32-true", "16-mixed", "bf16-mixed", "64-true"),
    "trainer.max_epochs": COUNT,
    "trainer.max_steps": optional(COUNT),
    "trainer.channels_last": Rule(lambda v: v == "auto" or FLAG.allows(v), "auto, true or false"),
    "trainer.compile": FLAG,
    "trainer.deterministic": FLAG,
    "trainer.checkpoint_minutes": number(0),
    "trainer.progress_bar": FLAG,
    "logger": NULL,
    "logger.csv": FLAG,
    "logger.tensorboard": FLAG,
    "logger.wandb": FLAG,
    "logger.project": TEXT,
    "logger.entity": optional(TEXT),
    "logger.offline": optional(FLAG),
    "logger.every_n_steps": COUNT,
}
"""By key; ``*`` stands for any last part."""

NEEDED = (
    "mode", "checkpoint", "seed", "runs", "norm.name", "task.name", "task.kind",
    "task.num_classes", "task.outputs", "task.class_names", "task.bands", "task.flip", "task.mean",
    "task.std", "task.devices", "task.optimizer.name", "task.optimizer.lr", "task.scale_lr",
    "task.schedule.name", "task.eval_splits", "task.test_split", "task.median_epochs",
    "task.model.name", "task.model.kind", "task.model.batch_size",
    *(key for key in RULES if key.startswith(("data.", "trainer.", "plan."))),
)  # fmt: skip
"""What no configuration can do without."""

_OF_GROUPS = {"weight_decay", "bias_lr_factor", "decay_biases", "decay_norms"}
OPTIMIZERS = {"sgd": {"momentum", "nesterov", *_OF_GROUPS}, "adam": _OF_GROUPS}
"""Settings of each optimizer besides its name and learning rate."""

SCHEDULES = {"poly": {"power"}, "step": {"drops"}}
"""What each schedule has to be told."""


def check_config(cfg: DictConfig) -> None:
    """Raises InputError naming the key, its value and what is allowed."""
    seen = set()
    try:
        if cfg.data.get("stand_in") and cfg.task.get("mini") is None:
            name = cfg.data.name
            raise InputError(
                f"data={name}: task={cfg.task.name} has no miniature; leave data={name} out"
            )
        for key, value in _leaves(cfg, ""):
            seen.add(key)
            rule = RULES.get(key) or RULES.get(f"{key.rpartition('.')[0]}.*")
            if rule is None:
                raise InputError(_unknown(key, value))
            if not rule.allows(value):
                raise InputError(f"{key}={value}: must be {rule.words}")
        for key in NEEDED:
            if key not in seen:
                raise InputError(f"{key} is missing; leave out ~{key}, or set it with +{key}=...")
        _check_together(cfg)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the configuration"
        raise InputError(f"{key}: {str(error).splitlines()[0]}") from None


def wrong_value(tree: dict[str, Any], prefix: str = "") -> str | None:
    """What is wrong with the first value of a stored configuration that no version could have.

    Keys may be missing or unknown, since other versions have others.
    """
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and (key not in RULES or _is_group(key)):
            wrong = wrong_value(value, f"{key}.")
        else:
            rule = RULES.get(key) or RULES.get(f"{prefix}*")
            wrong = None
            if rule is not None and not rule.allows(value):
                wrong = f"{key} is {str(value)[:60]}; it must be {rule.words}"
            elif rule is None and _is_group(key):
                wrong = f"{key} is {str(value)[:60]}; it must be a group of keys"
        if wrong is not None:
            return wrong
    return None


def _leaves(node: DictConfig, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key that has a rule, or no keys below it, with its value in plain Python."""
    for name in map(str, node):
        key = f"{prefix}{name}"
        value = node[name]
        if isinstance(value, DictConfig) and (key not in RULES or _is_group(key)):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@functools.cache
def _is_group(key: str) -> bool:
    return any(other.startswith(f"{key}.") for other in RULES)


def _unknown(key: str, value: Any) -> str:
    if _is_group(key):
        return f"{key}={value}: is a group of keys, such as {_first_below(key)}; set one of them"
    near = difflib.get_close_matches(key, RULES, n=1)
    hint = f"did you mean {near[0]}?" if near else "python train.py --cfg job prints every key"
    return f"{key}: no such key; {hint}"


def _first_below(key: str) -> str:
    return next(other for other in RULES if other.startswith(f"{key}."))


def _check_together(cfg: DictConfig) -> None:
    """What follows from several keys."""
    task, data = cfg.task, cfg.data
    if task.model.kind != task.kind:
        raise InputError(
            f"task.model={task.model.name} is a network for {task.model.kind}, but "
            f"task={task.name} is {task.kind}; choose another task/model"
        )
    if task.kind != "detection" and data.crop is None:  # which takes whole images
        raise InputError(f"data.crop={data.crop}: must be {SIZE.words}")
    if data.eval_split not in task.eval_splits:
        raise InputError(f"data.eval_split={data.eval_split}: must be {_or(task.eval_splits)}")
    if data.holdout and task.holdout_split is None:
        raise InputError(f"data.holdout={data.holdout}: must be false with task={task.name}")
    groups, c_group = cfg.norm.get("groups"), cfg.norm.get("c_group", 2)
    if cfg.norm.name == "gn" and groups is None:
        raise InputError(f"norm.groups={groups}: must be {GROUPS.words}")
    if groups is not None and c_group != 2:  # the default, not a wish
        raise InputError(f"norm.groups={groups} norm.c_group={c_group}: give one of the two")
    if cfg.get("convert") and cfg.mode != "test":
        raise InputError(
            f"convert=true mode={cfg.mode}: only mode=test converts a checkpoint's norm"
        )
    if cfg.mode == "test" and cfg.checkpoint is None:
        raise InputError("mode=test needs checkpoint=path/to/last.ckpt")
    weights = {"checkpoint": cfg.checkpoint, "task.model.pretrained": task.model.get("pretrained")}
    weights["task.backbone_checkpoint"] = task.get("backbone_checkpoint")
    for key, path in weights.items():  # before a miniature is generated
        if path == MUST_BE_GIVEN:
            raise InputError(
                f"{key} is missing: give {key}=FILE, weights of this network from ImageNet "
                "(docs/protocol.md names them)"
            )
        if path is not None and path.startswith("timm:") and key != "checkpoint":
            continue  # a name, not a file
        if path is not None and not Path(path).expanduser().is_file():
            raise InputError(f"{key}={path}: there is no such file")
    if None not in (task.model.get("pretrained"), task.get("backbone_checkpoint")):
        raise InputError(
            "task.model.pretrained and task.backbone_checkpoint: give one of the two; the first "
            "is the whole network, its backbone included"
        )
    bands = len(task.bands)
    if (task.mean is None) != (task.std is None):
        raise InputError("task.mean and task.std: set both, or null both")
    for key in ("mean", "std"):
        if task[key] is not None and len(task[key]) != bands:
            raise InputError(
                f"task.{key}={task[key]}: must have {bands} values, one per task.bands"
            )
    classes = task.num_classes
    if None not in (classes, task.class_names) and len(task.class_names) != classes:
        raise InputError(
            f"task.class_names has {len(task.class_names)} names, task.num_classes is {classes}"
        )
    if task.get("class_weights") is not None and len(task.class_weights) != max(2, task.outputs):
        raise InputError(
            f"task.class_weights={task.class_weights}: must have {max(2, task.outputs)} values, "
            "one per output of the network"
        )
    _check_settings("task.optimizer", task.optimizer, OPTIMIZERS, needed=False)
    _check_settings("task.schedule", task.schedule, SCHEDULES, needed=True)
    if OmegaConf.is_list(cfg.trainer.devices) and cfg.trainer.accelerator == "cpu":
        raise InputError(
            f"trainer.devices={cfg.trainer.devices}: numbers of GPUs, but trainer.accelerator=cpu; "
            "give how many processes, such as trainer.devices=2"
        )


def names_weights(cfg: DictConfig) -> bool:
    """Whether the network starts from weights of a file, or of timm."""
    given = cfg.task.model.get("pretrained"), cfg.task.get("backbone_checkpoint")
    return any(path is not None for path in given)


def _check_settings(key: str, given: DictConfig, known: dict[str, set[str]], needed: bool) -> None:
    """That an optimizer or a schedule has the settings of its name: all of them, or no others."""
    own, there = known[given.name], set(map(str, given))
    missing, foreign = own - there, there - own - {"name", "lr"}
    if needed and missing:
        wanted = ", ".join(f"+{key}.{name}=..." for name in sorted(missing))
        raise InputError(f"{key}.name={given.name} needs {wanted}")
    if not needed and foreign:
        extra = " ".join(f"~{key}.{name}" for name in sorted(foreign))
        raise InputError(
            f"{key}.name={given.name} has no {', '.join(sorted(foreign))}; remove with {extra}"
        )


def _or(names: Any) -> str:
    return " or ".join(map(str, names))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
