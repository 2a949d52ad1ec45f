"""A signal is answered while a network is only evaluated or predicts."""

import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tasks.runs.callbacks import StopsAtOnce


class Asked(pl.LightningModule):
    """Sends its own process a signal in its second batch of five."""

    def __init__(self, number: int):
        super().__init__()
        self.number, self.seen = number, 0

    def step(self) -> None:
        self.seen += 1
        if self.seen == 2:
            os.kill(os.getpid(), self.number)

    def validation_step(self, batch, index):
        self.step()

    def test_step(self, batch, index):
        self.step()

    def predict_step(self, batch, index):
        self.step()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["validate", "test", "predict"])
def test_it_stops_within_the_batch(number, what, tmp_path):
    before = {n: signal.getsignal(n) for n in StopsAtOnce.SIGNALS}
    module = Asked(number)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[StopsAtOnce()], enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    try:
        with pytest.raises(SystemExit):
            getattr(trainer, what)(module, DataLoader(torch.zeros(5, 1)))
        assert module.seen == 2
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
