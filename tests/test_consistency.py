"""Tile mismatch: by hand, of exact tilings, in a run's result; norms converted at deployment."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from test_predict import write_raster
from test_tiling import network
from torch import nn

import lcn
from tasks.config import compose
from tasks.data import IGNORED
from tasks.data.tiles import Tile, TileSet, TileWindows, class_table
from tasks.errors import InputError
from tasks.identity import run_identity
from tasks.models import build_model, scaled_norm
from tasks.prediction.consistency import (
    SHOWN_TILES,
    Picture,
    compared_map,
    recorded_mismatch,
    tile_mismatch,
)
from tasks.prediction.network import Network, load_network, predict
from tasks.protocol import task_facts
from tasks.schema import check_config

SMALL = ("task=inria", "task.model.widths=[4,4,6]")
CPU = torch.device("cpu")


def picture(image: np.ndarray) -> Picture:
    return Picture(
        image.shape[:2],
        lambda p: image[p.top : p.top + p.height, p.left : p.left + p.width],
    )


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def one_layer() -> Network:
    """The sum of 3 x 3 pixels, zeros beyond the border: a building where it is above 8.5."""
    layer = nn.Conv2d(3, 1, 3, padding=1)
    nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.weight[:, 0])
    nn.init.constant_(layer.bias, -8.5)
    return Network(layer, compose(["task=inria", "task.mean=null", "task.std=null"])).double()


def test_the_mismatch_of_one_layer_is_the_one_counted_by_hand(one_layer):
    # Of a white image a tile sees 9 inside, 6 at its edges, 4 in its corners. The shifted tile of
    # 16 x 16 lies over the place where four others meet.
    others, own = np.full((2, 16, 16), 9.0)
    others[7:9, :] = others[:, 7:9] = 6
    others[7:9, 7:9] = 4
    own[[0, 15], :] = own[:, [0, 15]] = 6
    own[[0, 0, 15, 15], [0, 15, 0, 15]] = 4
    shares = [1 / (1 + np.exp(8.5 - sums)) for sums in (others, own)]

    white = picture(np.full((32, 32, 3), 255, dtype=np.uint8))
    found = tile_mismatch(one_layer, [white], (16, 16))
    # edges of the tile and of the others, without the 8 pixels that are both
    assert found.classes == 100 * (2 * (4 * 16 - 4) - 2 * 8) / 16**2
    assert found.probability == pytest.approx(100 * np.abs(shares[0] - shares[1]).mean())
    assert found.pixels == 16**2
    assert tile_mismatch(one_layer, [white], (16, 16), halo=(1, 1)).classes == 0


@pytest.mark.parametrize("norm", [["norm=bn"], ["norm=lcn", "norm.window=3"]], ids=str)
def test_exact_tilings_change_nothing(norm):
    net = network(*SMALL, *norm)
    image = picture(noise(229, 243))
    halo = int(np.ceil(max(net.audit(image.size).reach)))
    for shift in (4, 12):
        found = tile_mismatch(net, [image], (32, 32), (halo, halo), (shift, shift), limit=4)
        assert found.classes == 0
        assert found.probability < 1e-8
    assert tile_mismatch(net, [image], (32, 32), limit=4).classes > 0


@pytest.mark.parametrize("norm", ["gn", "ln", "in"])
def test_no_halo_helps_norms_of_the_whole_map(norm):
    net = network(*SMALL, f"norm={norm}", *(["norm.groups=2"] if norm == "gn" else []))
    found = tile_mismatch(net, [picture(noise(240, 240))], (32, 32), (64, 64), limit=4)
    assert found.classes > 0
    assert found.probability > 0


def test_a_map_shows_the_pixels_that_change(one_layer):
    image = 230 + noise(80, 96) % 26  # sums of 9 pixels around the 8.5 of the border
    found = compared_map(one_layer, picture(image), (16, 16), (0, 0), (8, 8))
    # shifted tiles that are whole: from 8 to 8 + 4 * 16 down, to 8 + 5 * 16 to the right
    np.testing.assert_array_equal(found.image, image[8:72, 8:88])
    rows, columns = np.ogrid[8:72, 8:88]
    first, second = (  # zeros beyond a tile make only its outermost pixels depend on it
        ((rows - by) % 16 == 0) | ((rows - by) % 16 == 15)
        | ((columns - by) % 16 == 0) | ((columns - by) % 16 == 15)
        for by in (0, 8)
    )  # fmt: skip
    assert found.changes.any()
    assert not found.changes[~(first | second)].any()
    whole = predict(one_layer, image)[8:72, 8:88]
    np.testing.assert_array_equal(found.classes[~first], whole[~first])
    share = tile_mismatch(one_layer, [picture(image)], (16, 16), shift=(8, 8))
    assert 100 * found.changes.mean() == pytest.approx(share.classes)


def test_of_a_large_image_the_map_shows_tiles_in_its_middle(one_layer):
    found = compared_map(one_layer, picture(noise(160, 320)), (16, 16), (0, 0), (8, 8))
    assert (found.classes != IGNORED).sum() == SHOWN_TILES * 16 * 16
    assert found.classes.shape[1] < 160
    assert found.image.shape[:2] == found.classes.shape


def test_what_cannot_be_compared_is_a_message(one_layer):
    white = picture(np.full((32, 32, 3), 255, dtype=np.uint8))
    for shift in ((0, 0), (16, 16)):
        with pytest.raises(InputError, match="predicted from two tiles"):
            tile_mismatch(one_layer, [white], (16, 16), shift=shift)


# What a run records


class White:
    """White squares as a dataset without tiles."""

    def __init__(self, *sides: int):
        self.sides = sides

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, index: int) -> dict:
        return {"image": np.full((self.sides[index],) * 2 + (3,), 255, dtype=np.uint8)}


def of_crop(side: int, halo: int) -> DictConfig:
    plain = ["task=inria", "task.mean=null", "task.std=null"]
    return compose([*plain, f"data.crop=[{side},{side}]", f"task.eval_halo={halo}"])


def test_a_run_records_the_tile_in_the_middle_of_each_image(one_layer, tmp_path):
    path = write_raster(tmp_path / "a.tif", np.full((70, 90, 3), 255, dtype=np.uint8))
    tiles = TileSet([Tile("a", path, None)], 3, class_table({0: 0}), "a", task_facts("inria"))
    for dataset in (White(40, 1, 41), TileWindows(tiles, (32, 32), 8)):
        alone, beside = (  # the evaluation's halo is inside of the crop
            recorded_mismatch(of_crop(16 + 2 * halo, halo), one_layer.model, dataset, CPU)
            for halo in (0, 1)
        )
        assert alone == pytest.approx(100 * (8 * 16 - 24) / 16**2, abs=1e-4)  # as by hand, above
        assert beside == 0


def test_images_without_room_for_two_tiles_record_nothing(one_layer):
    with pytest.raises(InputError, match="room for two"):
        recorded_mismatch(of_crop(16, 0), one_layer.model, White(1), CPU)


# Norms converted at deployment

GN, LCN = ["norm=gn", "norm.groups=2"], ["norm=lcn", "norm.groups=2", "norm.window=5"]


@pytest.fixture(scope="module")
def gn_run(tmp_path_factory) -> Path:
    """A run with GN that has not finished, with weights and biases as if it had been trained."""
    folder = tmp_path_factory.mktemp("gn")
    return write_last(folder, *GN)


def write_last(folder: Path, *overrides: str) -> Path:
    cfg = compose([*SMALL, *overrides, "trainer=cpu"])
    torch.manual_seed(0)
    model = build_model(cfg)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": weights, "norm": scaled_norm(cfg)}, folder / "last.ckpt")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return folder


def test_a_converted_network_is_the_other_norm_with_the_same_weights(gn_run):
    trained = load_network(gn_run, checkpoint="last").model
    used = load_network(gn_run, checkpoint="last", norm=LCN, convert=True).model
    for key, value in trained.state_dict().items():
        assert torch.equal(used.state_dict()[key], value)
    layers = {type(m) for m in used.modules()} & {nn.GroupNorm, lcn.LocalContextNorm}
    assert layers == {lcn.LocalContextNorm}
    assert {m.window for m in used.modules() if isinstance(m, lcn.LocalContextNorm)} == {(5, 5)}
    x = torch.randn(1, 3, 40, 48)
    wide = load_network(gn_run, checkpoint="last", norm=[*LCN[:2], "norm.window=all"], convert=True)
    torch.testing.assert_close(wide.model(x), trained(x), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(used(x), trained(x), atol=1e-2)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    run = write_last(tmp_path, "norm=bn")
    saved = torch.load(run / "last.ckpt")
    name = next(key for key in saved["state_dict"] if key.endswith("running_var"))
    saved["state_dict"][name][0] = float("nan")
    torch.save(saved, run / "last.ckpt")
    with pytest.raises(InputError, match=f"{name.removeprefix('model.')} is not finite"):
        load_network(run, checkpoint="last")


def test_keys_alone_change_the_runs_own_norm(gn_run):
    network = load_network(gn_run, checkpoint="last", norm=["norm.groups=1"], convert=True)
    assert network.norm == {"name": "gn", "groups": 1, "eps": 1e-5}


def test_another_norm_is_refused_unless_asked_for_and_bn_always(gn_run, tmp_path):
    with pytest.raises(InputError, match=r"another model: .*--convert"):
        load_network(gn_run, checkpoint="last", norm=LCN)
    with pytest.raises(InputError, match="cannot turn gn into bn"):
        load_network(gn_run, checkpoint="last", norm=["norm=bn"], convert=True)
    bn_run = write_last(tmp_path, "norm=bn")
    with pytest.raises(InputError, match="cannot turn bn into lcn"):
        load_network(bn_run, checkpoint="last", norm=LCN, convert=True)
    with pytest.raises(InputError, match="only mode=test"):
        check_config(compose(["task=inria", "convert=true"]))


def test_asking_for_a_conversion_names_no_other_run():
    plain, asked = (compose(["task=inria", f"convert={value}"]) for value in ("false", "true"))
    assert run_identity(plain, "d", 12) == run_identity(asked, "d", 12)


def test_the_script_writes_a_line_per_norm_halo_and_shift(gn_run, tmp_path, script):
    image = tmp_path / "scene.png"
    Image.fromarray(noise(96, 100)).save(image)
    command = [gn_run, "--checkpoint", "last", "--images", image, "--tile", 32]
    command += ["--halo", "0,100", "--shift", "4,16", "--out", tmp_path / "out"]
    refused = script("consistency", *command, *LCN)
    assert refused.returncode == 2
    assert "--convert" in refused.stderr
    for option, value in (("--tile", "0"), ("--halo", "4,-1"), ("--shift", "x")):
        wrong = script("consistency", gn_run, option, value)
        assert wrong.returncode == 2
        assert f"{value!r} is no " in wrong.stderr
    done = script("consistency", *command, "--convert", *LCN[:2], "norm.window=3,5")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "consistency.csv").open() as file:
        lines = list(csv.DictReader(file))
    cut = [(line["norm"], line["halo"], line["shift"]) for line in lines]
    norms = ("gn_g2", "lcn_g2_w3", "lcn_g2_w5")
    assert cut == [(n, h, s) for n in norms for s in ("4x4", "16x16") for h in ("0", "100")]
    for line in lines:  # a halo of 100 makes each tile the whole image
        assert (float(line["probability_change"]) > 0) == (line["halo"] == "0")
        assert line["exact"] == ("no" if line["halo"] == "0" else "yes")
    assert len(done.stdout.splitlines()) == 1 + len(lines)
    small = tmp_path / "a_small.png"  # comes first, and has no room for two tiles
    Image.fromarray(noise(12, 12)).save(small)
    index = command.index(image)
    beside = script("consistency", *command[:index], small, *command[index:])
    assert beside.returncode == 0, beside.stderr
    for end in (".png", "_maps.png"):
        assert Image.open(tmp_path / "out" / f"consistency{end}").width > 500


def test_predict_takes_another_norm_among_its_inputs(gn_run, tmp_path, script):
    image = noise(40, 52)
    Image.fromarray(image).save(tmp_path / "scene.png")
    command = [gn_run, tmp_path / "scene.png", *LCN, "--checkpoint", "last", "--out", tmp_path]
    assert script("predict", *command).returncode == 2
    done = script("predict", *command, "--convert")
    assert done.returncode == 0, done.stderr
    network = load_network(gn_run, checkpoint="last", norm=LCN, convert=True)
    classes = np.asarray(Image.open(tmp_path / "scene_classes.png"))
    np.testing.assert_array_equal(classes, predict(network, image))
