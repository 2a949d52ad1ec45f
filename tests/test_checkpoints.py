"""Files of weights are verified before they are used."""

import random
import zipfile

import pytest
import torch
from torch import nn

from tasks.errors import InputError
from tasks.models.checkpoint import check_complete, load_weights, read_checkpoint


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Conv2d(3, 8, 3)


def write(path, network):
    weights = {f"model.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "norm": {"name": "bn"}}, path)
    return path


def test_a_flipped_bit_is_never_loaded_in_silence(tmp_path, network):
    """200 files with 1 to 10 bits flipped anywhere: refused, or the weights are as they were."""
    path = write(tmp_path / "last.ckpt", network)
    sound = path.read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(sound)
        for _ in range(rng.randint(1, 10)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        copy = nn.Conv2d(3, 8, 3)
        try:
            load_weights(copy, str(path))
        except InputError:
            refused += 1
            continue
        for key, value in network.state_dict().items():
            assert torch.equal(copy.state_dict()[key], value)
    assert refused > 50  # the others hit padding between records


def test_every_byte_of_a_record_counts(tmp_path, network):
    path = write(tmp_path / "last.ckpt", network)
    sound = path.read_bytes()
    start = sound.index(network.weight.detach().numpy().tobytes())
    for place in range(start, start + network.weight.numel() * 4, 97):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(InputError, match="is damaged or no checkpoint"):
            read_checkpoint(str(path))


def test_what_is_no_file_or_no_archive_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_checkpoint(str(tmp_path / "none.ckpt"))
    with pytest.raises(InputError, match="is not a file"):
        read_checkpoint(str(tmp_path))
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(InputError, match="is damaged or no checkpoint"):
        read_checkpoint(str(bomb))


@pytest.mark.parametrize("key", ["optimizer_states", "callbacks", "global_step"])
def test_a_checkpoint_without_what_a_run_needs_is_not_continued(key):
    whole = {
        "optimizer_states": [{}], "lr_schedulers": [{}], "callbacks": {"History": {}},
        "loops": {"fit_loop": {}}, "epoch": 0, "global_step": 0,
    }  # fmt: skip
    check_complete(whole, "last.ckpt")
    with pytest.raises(InputError, match=f"cannot be continued: it has no {key}"):
        check_complete({**whole, key: None}, "last.ckpt")
