"""Every key of the configuration has a rule; wrong values are named before anything is loaded."""

import contextlib
import math
import subprocess
import sys

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from tasks.config import compose, options
from tasks.errors import InputError
from tasks.schema import RULES, check_config

# One value of each type, right or wrong, and what each key takes of them.
VALUES = {
    "word": "abc",
    "empty": "",
    "negative": -1,
    "zero": 0,
    "one": 1,
    "half": 0.5,
    "many": 2.5,
    "huge": 10**30,
    "true": True,
    "null": None,
    "nan": math.nan,
    "infinite": math.inf,
    "no list": [],
    "words": ["abc"],
    "numbers": [1, 2],
    "mixed": [1, "abc"],
    "mapping": {"abc": 1},
}
TAKES = {
    "word": "data.name data.root data.eval_split logger.project norm.name runs task.eval_split "
    "task.model.arch task.model.encoder task.model.name task.name",
    "word null": "checkpoint data.stand_in logger.entity task.backbone_checkpoint "
    "task.model.pretrained "
    "task.test_split task.holdout_split",
    "null": "logger paper plan.device",
    "": "mode task.interpolation task.facts task.kind task.model.kind task.optimizer.name "
    "task.schedule.name "
    "norm.window_unit trainer.accelerator trainer.strategy trainer.precision",
    "true": "norm.window_per_group convert data.holdout logger.csv logger.tensorboard logger.wandb "
    "task.optimizer.nesterov task.optimizer.decay_biases task.optimizer.decay_norms "
    "task.scale_lr trainer.channels_last trainer.compile trainer.deterministic "
    "trainer.progress_bar",
    "true null": "plan.calibrate logger.offline task.model.transposed",
    "one huge": "plan.objects norm.size data.batch_size data.epochs data.eval_batch_size "
    "data.eval_every "
    "data.total_batch logger.every_n_steps norm.c_group paper.table task.devices task.epochs "
    "task.eval_every task.median_epochs task.mini.eval_every task.mini.patches_per_epoch "
    "task.model.batch_size task.model.convolutions task.model.margin task.model.mini.batch_size "
    "task.model.mini.epochs task.model.mini.long trainer.accumulate trainer.max_epochs "
    "trainer.num_nodes",
    "one huge null": "plan.positives data.patches_per_epoch data.steps norm.groups "
    "task.num_classes task.outputs "
    "task.patches_per_epoch task.steps trainer.max_steps",
    "one huge null numbers": "data.resize task.resize",
    "one huge numbers": "norm.window",
    "zero one": "seed",
    "zero one huge": "norm.warmup_steps norm.r_steps norm.d_steps data.workers task.eval_halo",
    "negative one huge numbers": "trainer.devices",
    "null numbers": "data.crop task.crop task.scale_range",
    "numbers": "task.model.widths task.ratio_range task.model.mini.crop",
    "null words": "task.class_names",
    "words": "task.bands task.eval_splits",
    "null numbers mean": "task.mean task.std task.class_weights",
    "drops": "task.schedule.drops task.area_range",
    "one half many huge": "norm.window_lr_factor data.lr_factor task.mini.lr_factor "
    "task.optimizer.lr "
    "task.optimizer.bias_lr_factor task.box_loss_beta",
    "zero one half many huge": "task.lighting norm.alpha norm.beta norm.d_max norm.k "
    "norm.eps task.optimizer.weight_decay task.schedule.power "
    "trainer.checkpoint_minutes",
    "one many huge": "norm.r_max",
    "one half many huge null": "norm.sigma",
    "zero one half": "norm.momentum task.flip task.color_jitter task.optimizer.momentum "
    "task.schedule.warmup "
    "task.schedule.warmup_from",
    "one half": "plan.utilization data.scale data.width task.mini.scale task.model.mini.width",
    "null mapping": "data.sampling norm.windows",
    "mapping": "task.mini.sampling",
    "word empty zero one half many huge negative true nan infinite": "paper.row.*",
}
MINIATURES = ("cityscapes", "coco", "imagenet", "inria", "chesapeake")
COMPOSITIONS = [
    *([f"task={task}"] for task in options("task")),
    *([f"task={task}", f"data={data}"] for task in MINIATURES for data in ("mini", "mini_long")),
    *([f"norm={norm}"] for norm in options("norm")),
    *([f"trainer={trainer}"] for trainer in options("trainer")),
    ["logger=[wandb,tensorboard]", "experiment=table7_lcn"],
    ["logger=csv", "task=inria", "task/model=smp"],
]


@pytest.mark.parametrize("overrides", COMPOSITIONS, ids=" ".join)
def test_what_the_files_say_passes(overrides):
    check_config(compose(overrides))


def test_every_key_takes_values_of_its_type_alone():
    told = {key for keys in TAKES.values() for key in keys.split()}
    assert told == RULES.keys()
    for words, keys in TAKES.items():
        allowed = set(words.split()) - {"mean", "drops"}
        for key in keys.split():
            found = {name for name, value in VALUES.items() if RULES[key].allows(value)}
            assert found == allowed, key


WRONG = {
    "trainer.devices=abc": "trainer.devices=abc: must be auto, -1 (all), a whole number",
    "trainer.devices=[0,0]": "trainer.devices=[0, 0]: must be",
    "trainer.precision=8": "trainer.precision=8: must be 32-true or 16-mixed",
    "trainer.max_steps=0": "trainer.max_steps=0: must be a whole number of at least 1, or null",
    "seed=5000000000": "seed=5000000000: must be a whole number from 0 to 4,294,967,295",
    "trainer.accumulate=0": "trainer.accumulate=0: must be auto, or a whole number of at least 1",
    "runs=null": "runs=None: must be a path",
    "task/model=resnet50": "resnet50 is a network for classification, but task=cityscapes is",
    "task.class_weights=[1,2]": "must have 19 values, one per output",
    "task.class_names=[road]": "task.class_names has 1 names, task.num_classes is 19",
    "task.mean=null": "task.mean and task.std: set both",
    "task.std=[1,2]": "task.std=[1, 2]: must have 3 values, one per task.bands",
    "task.optimizer.name=adam": "adam has no momentum; remove with ~task.optimizer.momentum",
    "task.schedule.name=step": "step needs +task.schedule.drops=...",
    "task.optimizer=5": "task.optimizer=5: is a group of keys, such as task.optimizer.name",
    "data=5": "data=5: no such data",
    "~task.optimizer.lr": "task.optimizer.lr is missing",
    "~data.crop": "data.crop is missing",
    "+foo=1": "foo: no such key",
    "+trainer.limit_train_batches=1": "trainer.limit_train_batches: no such key; did you mean",
    "+task.optimizer.betas=[0.9,0.9]": "task.optimizer.betas: no such key",
    "data.crop=${nowhere}": "data.crop",
    "checkpoint=nowhere.ckpt": "checkpoint=nowhere.ckpt: there is no such file",
    "task.model.pretrained=nowhere.pth": "task.model.pretrained=nowhere.pth: there is no such file",
    "data.eval_split=test": "data.eval_split=test: must be train or val",
    "norm=lcn norm.groups=4 norm.c_group=8": "norm.groups=4 norm.c_group=8: give one of the two",
    "norm=gn norm.groups=null": "norm.groups=None: must be a whole number of at least 1, or C",
    "experiment=pretrained_table1_w18_gn": "task.model.pretrained is missing: give",
    "task=imagenet task.optimizer.name=adam": "adam has no momentum, nesterov; remove with",
    "convert=true": "convert=true mode=train: only mode=test",
    "task=camvid data=mini_long": "data=mini_long: task=camvid has no miniature; leave",
    "data.holdout=true": "data.holdout=True: must be false with task=cityscapes",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed(override):
    with pytest.raises(InputError) as raised:
        check_config(compose(override.split()))
    assert WRONG[override] in str(raised.value)


def test_gpus_by_number_and_a_cpu_do_not_go_together():
    with pytest.raises(InputError, match=r"trainer.devices=\[0\]: numbers of GPUs"):
        check_config(compose(["trainer=cpu", "trainer.devices=[0]"]))


@pytest.mark.parametrize("key", [key for key in RULES if "*" not in key])
def test_no_value_of_any_type_is_more_than_a_message(key, wrong_values):
    """Whatever the rules say of a value, checking it never raises anything else."""
    for cfg in wrong_values(key):
        with contextlib.suppress(InputError):
            check_config(cfg)


@pytest.fixture(scope="module")
def wrong_values():
    base = OmegaConf.create(OmegaConf.to_container(compose(["task=inria"]), resolve=True))

    def of_key(key: str):
        for value in VALUES.values():
            cfg = OmegaConf.create(OmegaConf.to_container(base))
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
            yield cfg

    return of_key


def test_the_check_imports_no_torch():
    code = "import sys, tasks.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
