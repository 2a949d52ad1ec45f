"""Run directories as ``train.py`` leaves them, but for their checkpoints."""

import csv
import io
import json
import os
import time
from pathlib import Path
from typing import Any

from conftest import configuration
from omegaconf import OmegaConf

from tasks.protocol import task_facts

HOME = "/home/someone"
CITIES = ("bellingham", "bloomington", "innsbruck", "san_francisco", "east_tyrol", "overall")


def write_run(
    folder: Path, *overrides: str, score: float = 50.0, seed: int = 0, data: str = "mini",
    name: str | None = None, finished: bool = True, curve: str | None = None,
    log: str | None = None, age: float = 0, **changes: Any,
) -> Path:  # fmt: skip
    """A run's directory, in a folder of its task unless it has a name.

    Args:
        folder: of runs.
        overrides: of the configuration.
        score: of the first metric; each further one has one more.
        seed: of the run.
        data: a choice of ``data``.
        name: of the directory.
        finished: whether there is a result.
        curve: text of ``metrics.csv``; None: of eight epochs, every second evaluated.
        log: text of ``train.log``, if there is one.
        age: seconds since its files were written.
        changes: of the result.
    """
    cfg, text = configuration((*overrides, f"data={data}"))
    task, facts = cfg.task.name, task_facts(cfg.task.name)
    name = name or f"{task}/{'-'.join(overrides).replace('/', '_')}-{data}-{seed}-0a1b2c3d"
    directory = folder / name
    directory.mkdir(parents=True)
    text = text.replace("\nseed: 0\n", f"\nseed: {seed}\n").replace("root: data/", f"root: {HOME}/")
    (directory / "config.yaml").write_text(text, encoding="utf-8")
    (directory / ".lock").touch()
    curve = learning_curve(facts.primary, score, seed) if curve is None else curve
    (directory / "metrics.csv").write_text(curve, encoding="utf-8")
    (directory / "audit.csv").write_text(audited(cfg.norm.name.startswith("lcn")))
    if finished:
        names = facts.metrics
        if facts.metrics_by_group:
            names = [f"{city}_{kind}" for city in CITIES for kind in ("iou", "acc")]
        norm = OmegaConf.to_container(cfg.norm)
        result = {
            "status": "finished", "experiment": None, "task": task, "model": cfg.task.model.name,
            "norm": norm | ({"window_used": [7, 7]} if "window" in norm else {}),
            "data": data, "dataset": f"{task}-{data}", "seed": seed,
            "metrics": {name: score + place for place, name in enumerate(names)},
            "paper": None, "epochs": cfg.trainer.max_epochs, "total_batch": cfg.data.total_batch,
            "versions": {"torch": "2.9.9", "numpy": "2.1.0"}, "device": "cpu", "world_size": 1,
            "wall_seconds": 120.0, "git_commit": "0123456789abcdef0123-dirty",
            "overrides": [f"data.root={HOME}/data"],
        }  # fmt: skip
        if task in ("cityscapes", "chesapeake"):
            result["class_iou"] = {n: score + i for i, n in enumerate(cfg.task.class_names)}
        (directory / "result.json").write_text(json.dumps(result | changes), encoding="utf-8")
    if log is not None:
        (directory / "train.log").write_text(log, encoding="utf-8")
    for path in directory.glob("[!.]*"):
        os.utime(path, (time.time() - age,) * 2)
    return directory


def learning_curve(primary: str, score: float, seed: int) -> str:
    """``metrics.csv`` of eight epochs, of which every second was evaluated."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["epoch", "step", "lr", "loss", "seconds", primary])
    for epoch in range(1, 9):
        value = "" if epoch % 2 else score - 8 / epoch
        lines.writerow([epoch, 10 * epoch, 0.01, 2 / epoch + seed / 20, 30.0 * epoch, value])
    return text.getvalue()


def audited(is_local: bool) -> str:
    """``audit.csv`` of eight layers: a local norm sees a window in one, and evaluated in three."""
    lines = ["phase,name,windowed"]
    lines += [f"training,l{i},{is_local and i == 0}" for i in range(8)]
    lines += [f"evaluation,l{i},{is_local and i < 3}" for i in range(8)]
    return "\n".join(lines) + "\n"
