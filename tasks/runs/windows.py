"""Runs of norm=lcn_learned: where windows start, their history, the fixed norm at the end."""

import csv
import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from omegaconf import DictConfig
from torch import nn

from lcn import LearnedContextNorm
from lcn.audit import measure_feature_maps
from tasks.config import plain
from tasks.errors import write_atomically
from tasks.protocol import given_norm


def learned_layers(model: nn.Module) -> dict[str, LearnedContextNorm]:
    """By name, in the model's order."""
    modules = model.named_modules()
    return {name: layer for name, layer in modules if isinstance(layer, LearnedContextNorm)}


def bound_starts(model: nn.Module, shape: tuple[int, ...], forward: Any = None) -> None:
    """Starts each window at most at the size of its map in training.

    A window that starts far beyond would have to come back before anything changes.
    """
    layers = learned_layers(model)
    sizes = measure_feature_maps(model, shape, forward) if layers else {}
    for name, layer in layers.items():
        if name in sizes:
            with torch.no_grad():
                layer.start.copy_(layer.start.minimum(layer.start.new_tensor(sizes[name])))


class WindowHistory(pl.Callback):
    """A line per epoch and layer in ``windows.csv``; kept in the checkpoint, as `History`.

    At the end writes the fixed configuration, see `write_fixed_norm`.
    """

    def __init__(self, directory: Path, cfg: DictConfig):
        self.directory, self.cfg = directory, cfg
        self.rows: list[tuple[int, str, float, float]] = []

    def state_dict(self) -> dict:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        self.rows = [tuple(row) for row in state["rows"]]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not self.rows:
            self._add(module, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._add(module, trainer.current_epoch + 1)
        values: dict[str, float] = {}
        for _, name, p, q in self.rows[-len(learned_layers(_network(module))) :]:
            values |= {f"window/{name}/p": p, f"window/{name}/q": q}
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(("epoch", "layer", "p", "q"))
            writer.writerows(self.rows)
            write_atomically(self.directory / "windows.csv", text.getvalue())

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            write_fixed_norm(self.directory, self.cfg, _network(module))

    def _add(self, module: pl.LightningModule, epoch: int) -> None:
        for name, layer in learned_layers(_network(module)).items():
            p, q = layer.current_window()
            self.rows.append((epoch, name, round(p, 4), round(q, 4)))


def _network(module: pl.LightningModule) -> nn.Module:
    return module.model  # type: ignore[return-value]


def write_fixed_norm(directory: Path, cfg: DictConfig, model: nn.Module) -> None:
    """Writes ``fixed/norm/lcn_fixed.yaml``: ``norm=lcn`` with the windows that were learned.

    Rounded to odd whole numbers, where a real window is a window of cells. A layer whose groups
    have windows of their own gets their geometric mean.
    """
    norm = given_norm(plain(cfg.norm))
    fixed: dict[str, Any] = {"name": "lcn"}
    fixed |= {key: norm[key] for key in ("c_group", "groups", "eps") if key in norm}
    fixed["windows"] = {
        name: [2 * round((side - 1) / 2) + 1 for side in layer.current_window()]
        for name, layer in learned_layers(model).items()
    }
    text = (
        "# The windows that a run of norm=lcn_learned ended with, by layer. Train with them:\n"
        "#   python train.py --config-dir RUN/fixed norm=lcn_fixed ...\n"
        + yaml.safe_dump(fixed, sort_keys=False)
    )
    path = directory / "fixed" / "norm" / "lcn_fixed.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
