"""Gradients added over batches: the step, the schedule and the run are those of the total batch."""

import pytest
import pytorch_lightning as pl
import torch

from tasks.config import compose
from tasks.data import open_datasets
from tasks.data.loading import DataModule, TrainBatches
from tasks.errors import InputError
from tasks.models import build_model
from tasks.protocol import accumulated_batches
from tasks.runs.callbacks import Checkpoints
from tasks.runs.directory import Run
from tasks.runs.training import log_learning_rate, make_module, quiet_lightning

NORMS = {
    "gn": ["norm=gn", "norm.groups=4"],
    "lcn": ["norm=lcn", "norm.c_group=2", "norm.window=9"],
    "bn": ["norm=bn"],
}


class Rates(pl.Callback):
    """The learning rate of every batch."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def trained(root, norm, batch_size, accumulated, epochs=2, callbacks=()):
    """Weights after training on eight images, one step an epoch, and the trainer."""
    quiet_lightning()
    cfg = compose([
        "task=cityscapes", "task/model=unet_slim", f"data.root={root}", "data.crop=[32,48]",
        f"data.batch_size={batch_size}", "data.workers=0", f"trainer.max_epochs={epochs}",
        "task.model.widths=[8,8]", "task.model.convolutions=1", *NORMS[norm],
    ])  # fmt: skip
    datasets = open_datasets(cfg)
    torch.manual_seed(0)
    module = make_module(cfg, build_model(cfg), datasets.eval)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, precision="64-true", max_epochs=epochs, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, use_distributed_sampler=False, accumulate_grad_batches=accumulated,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, DataModule(cfg, datasets))
    return module.model.state_dict(), trainer


@pytest.mark.parametrize("norm", ["gn", "lcn"])
def test_the_step_is_that_of_the_total_batch(tiny_cityscapes, norm):
    """Although batches differ in how many of their pixels have a label."""
    whole, _ = trained(tiny_cityscapes, norm, 8, 1)
    for batch_size, accumulated in ((2, 4), (1, 8)):
        parts, trainer = trained(tiny_cityscapes, norm, batch_size, accumulated)
        assert trainer.global_step == 2
        for key, value in whole.items():
            torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-10, msg=key)


def test_batch_norm_sees_the_batches_it_is_given(tiny_cityscapes):
    whole, _ = trained(tiny_cityscapes, "bn", 8, 1)
    parts, _ = trained(tiny_cityscapes, "bn", 2, 4)
    assert (whole["head.weight"] - parts["head.weight"]).abs().max() > 1e-6


def test_the_schedule_counts_steps(tiny_cityscapes):
    rates = Rates()
    trained(tiny_cityscapes, "gn", 2, 2, epochs=2, callbacks=[rates])
    steps = [0.01 * (1 - step / 4) ** 0.9 for step in range(4)]
    assert rates.rates == pytest.approx([rate for rate in steps for _ in range(2)])


def test_no_checkpoint_is_written_between_the_batches_of_a_step(tiny_cityscapes, tmp_path):
    saved = []

    class Noted(Checkpoints):
        def _save(self, trainer):
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            saved.append((trainer.global_step, done))

    trained(tiny_cityscapes, "gn", 1, 4, epochs=1, callbacks=[Noted(tmp_path / "last.ckpt", 0)])
    assert [step for step, _ in saved] == [1, 2]


def test_an_epoch_holds_whole_total_batches():
    for accumulated, world_size in ((3, 1), (1, 3), (3, 2)):
        parts = [
            list(TrainBatches(26, 2, 0, rank, world_size, accumulated))
            for rank in range(world_size)
        ]
        total = 2 * world_size * accumulated
        order = [index for (batch,) in TrainBatches(26, 1, 0) for index in [batch[1]]]
        assert len(parts[0]) == 26 // total * accumulated
        for step in range(26 // total):
            found = {
                index
                for part in parts
                for batch in part[step * accumulated : (step + 1) * accumulated]
                for _, index in batch
            }
            assert found == set(order[step * total : (step + 1) * total])


@pytest.mark.parametrize(
    ("overrides", "world_size", "expected"),
    [
        (["experiment=table1_w18_lcn"], 1, 4),
        (["experiment=table1_w18_lcn"], 2, 2),
        (["experiment=table1_w18_lcn"], 4, 1),
        (["experiment=table1_w18_lcn"], 8, 1),
        (["experiment=table6_gn", "data.batch_size=64"], 1, 4),
        (["experiment=table5_gn"], 1, 4),
        (["experiment=table1_w18_lcn", "data=mini"], 1, 1),
    ],
)
def test_auto_reaches_the_protocol_s_total_batch(overrides, world_size, expected):
    cfg = compose([*overrides, "trainer.accumulate=auto"])
    assert accumulated_batches(cfg, world_size) == expected
    assert accumulated_batches(compose(overrides), world_size) == 1


def test_a_total_batch_that_cannot_be_reached_is_named():
    cfg = compose(["experiment=table1_w18_lcn", "trainer.accumulate=auto"])
    with pytest.raises(InputError, match=r"16 is no multiple of 12 \(3 x 4, devices x batch\)"):
        accumulated_batches(cfg, 3)


def test_a_run_is_the_same_however_its_total_batch_is_reached():
    def directory(norm, world_size, *overrides):
        cfg = compose([f"experiment=table1_w18_{norm}", *overrides])
        return Run(cfg, "t v", world_size).directory

    assert directory("lcn", 4) == directory("lcn", 1, "trainer.accumulate=4")
    assert directory("lcn", 1) != directory("lcn", 1, "trainer.accumulate=4")
    assert directory("bn", 4) != directory("bn", 1, "trainer.accumulate=4")


def test_too_small_a_total_batch_is_told_the_way_out(caplog):
    cfg = compose(["experiment=table1_w18_lcn"])
    log_learning_rate(cfg, 4)
    assert "set trainer.accumulate=auto, or change data.batch_size" in caplog.text
    caplog.clear()
    log_learning_rate(cfg, 32)
    assert "16: change data.batch_size" in caplog.text
