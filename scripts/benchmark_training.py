"""Steps of a training on the CPU: memory format, precision and compiled code, for every task.

Used by ``scripts/benchmark.py --only training``. A step is forward, loss, backward and the
optimizer, on random images of the miniature's size and batch (CamVid, which has none: the crops it
is trained on). The ways are taken in turns; each time is the smallest.
"""

import argparse
import time
from collections.abc import Callable

import torch
from benchmark_table import Table

from tasks.config import compose
from tasks.models import build_model
from tasks.modules.optimization import make_optimizer
from tasks.runs.plan.calibration import training_loss
from tasks.runs.plan.step import autocast, random_batch

TASKS = ("cityscapes", "camvid", "coco", "imagenet", "chesapeake", "inria")
Settings = tuple[bool, str, bool]  # channels-last, precision, compiled
PLAIN: Settings = (False, "32-true", False)


def measure(options: argparse.Namespace, table: Table, clock: Callable[[], float]) -> None:
    compiled = (False, True) if options.compile else (False,)
    ways: list[Settings] = [
        (channels_last, precision, code)
        for code in compiled
        for precision in ("32-true", "bf16-mixed")
        for channels_last in ((True,) if code else (False, True))
    ]
    for task in options.tasks:
        steps = {way: training_step(task, way) for way in ways}
        for step in steps.values():
            step()
        best = dict.fromkeys(ways, float("inf"))
        end = time.perf_counter() + 10 * options.seconds
        turns = 0
        while turns < 3 or time.perf_counter() < end:
            for way, step in steps.items():
                start = clock()
                step()
                best[way] = min(best[way], clock() - start)
            turns += 1
        for way, seconds in best.items():
            table.add_step(task, way, seconds, best[PLAIN])


def training_step(task: str, way: Settings) -> Callable[[], None]:
    channels_last, precision, code = way
    cfg = compose(
        [
            f"task={task}",
            "norm=lcn",
            *(["data=mini"] if task != "camvid" else []),
            f"trainer.channels_last={str(channels_last).lower()}",
            f"trainer.precision={precision}",
            f"trainer.compile={str(code).lower()}",
            "trainer=cpu",
        ]
    )
    if cfg.task.num_classes is None:  # the dataset says how many: the miniatures have at most ten
        cfg.task.class_names = [str(number) for number in range(10)]
        cfg.task.num_classes = cfg.task.outputs = 10
    torch.manual_seed(0)
    model = build_model(cfg).train()
    loss_of = training_loss(cfg, model)
    optimizer = make_optimizer(model, cfg, cfg.data.batch_size, 10**6)["optimizer"]
    batch = random_batch(cfg, cfg.data.batch_size, torch.device("cpu"))

    def step() -> None:
        with autocast(precision, "cpu"):
            loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
