"""A training of so many steps, continued from what it wrote at the end of an epoch."""

import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from tasks.config import compose
from tasks.data import open_datasets
from tasks.data.loading import DataModule
from tasks.models import build_model
from tasks.runs.directory import Run
from tasks.runs.training import make_module, make_trainer


class Keeps(pl.Callback):
    """A copy of the checkpoint as it is when the second epoch starts."""

    def __init__(self, to: Path):
        self.to = to

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            shutil.copy(Path(trainer.default_root_dir) / "last.ckpt", self.to)


def fit(runs: Path, data: Path, batch_size: int, checkpoint=None, callbacks=()):
    """Weights and history after five steps."""
    cfg = compose([
        "task=cityscapes", "task/model=unet_slim", f"data.root={data}", "data.crop=[32,48]",
        "task.model.widths=[8,8]", "task.model.convolutions=1", "norm=gn", "norm.groups=4",
        f"data.batch_size={batch_size}", "data.workers=0", "trainer=cpu", "trainer.max_epochs=6",
        "trainer.max_steps=5", "trainer.progress_bar=false", f"runs={runs}",
    ])  # fmt: skip
    datasets = open_datasets(cfg)
    torch.manual_seed(0)
    module = make_module(cfg, build_model(cfg), datasets.eval)
    with Run(cfg, datasets.identity, 1) as run:
        trainer, history = make_trainer(cfg, run, datasets)
        trainer.callbacks += callbacks
        trainer.fit(module, DataModule(cfg, datasets), ckpt_path=checkpoint)
    rows = [(row["epoch"], row["step"], row["loss"], row["lr"]) for row in history.rows]
    return module.model.state_dict(), rows


@pytest.mark.parametrize("batch_size", [8, 4])  # one and two steps an epoch
def test_it_comes_to_the_same_numbers(tiny_cityscapes, tmp_path, batch_size):
    kept = tmp_path / "kept.ckpt"
    callbacks = [Keeps(kept)]
    whole, rows = fit(tmp_path / "whole", tiny_cityscapes, batch_size, callbacks=callbacks)
    assert rows[-1][1] == 5
    ours, ours_rows = fit(tmp_path / "again", tiny_cityscapes, batch_size, checkpoint=kept)
    assert ours_rows == rows
    assert all(torch.equal(ours[key], value) for key, value in whole.items())
