"""Maps of images and rasters by a run, as files."""

import argparse
import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from PIL import Image
from rasterio.transform import from_origin
from safetensors.torch import save_file
from test_machine import files_of_at_most

from lcn import LocalContextNorm
from tasks.config import compose
from tasks.errors import InputError
from tasks.models import build_model
from tasks.prediction.command import predict_all
from tasks.prediction.maps import NODATA, Options, predict_map
from tasks.prediction.masked import masked_norm
from tasks.prediction.network import Network, device_of, load_network, predict
from tasks.prediction.parts import entered
from tasks.prediction.source import Source, find_images


def make_export(folder: Path, *overrides: str) -> Path:
    cfg = compose(["task=inria", "task.model.widths=[4,4]", "trainer=cpu", *overrides])
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    save_file(build_model(cfg).state_dict(), folder / "model.safetensors")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return make_export(tmp_path_factory.mktemp("export") / "bn", "norm=bn")


@pytest.fixture(scope="module")
def network(export) -> Network:
    return load_network(export)


def write_raster(path: Path, image: np.ndarray, **options) -> Path:
    profile = {"crs": "EPSG:32633", "transform": from_origin(5e5, 4e6, 0.3, 0.3), **options}
    with rasterio.open(
        path, "w", driver="GTiff", height=image.shape[0], width=image.shape[1],
        count=image.shape[2], dtype=image.dtype, **profile,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(image, -1, 0))
    return path


def noise(height: int, width: int, bands: int = 3) -> np.ndarray:
    return np.random.default_rng(3).integers(1, 256, (height, width, bands), dtype=np.uint8)


def run(network, path, out, **options):
    said = []
    written = predict_map(network, path, out, Options(**options), said.append, lambda *_: None)
    return written, said


@pytest.mark.parametrize("cog", [False, True])
def test_a_rasters_map_keeps_place_and_colours_and_equals_the_whole_image(network, tmp_path, cog):
    image = noise(600, 703)
    path = write_raster(tmp_path / "scene.tif", image)
    (target,), said = run(network, path, tmp_path / "out", core=256, cog=cog)
    assert "exact" in said[0]
    assert "not" not in said[0]
    with rasterio.open(target) as file, rasterio.open(path) as source:
        assert (file.crs, file.transform) == (source.crs, source.transform)
        assert file.nodata == NODATA
        assert file.compression.value == "DEFLATE"
        assert file.is_tiled
        assert file.colormap(1)[1] == (255, 255, 255, 255)
        np.testing.assert_array_equal(file.read(1), predict(network, image))
        layout = file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT")
        assert (layout == "COG", bool(file.overviews(1))) == (cog, cog)
    _, said = run(network, path, tmp_path / "out", core=256, cog=cog)
    assert "there already" in said[0]
    assert names_in(tmp_path / "out") == ["scene_classes.tif"]


def test_a_stopped_prediction_continues_to_the_same_bytes(network, tmp_path):
    path = write_raster(tmp_path / "scene.tif", noise(300, 260))
    (straight,), _ = run(network, path, tmp_path / "straight", core=64)
    calls = 0

    def stop(done, total):
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_map(network, path, tmp_path / "out", Options(core=64), lambda _: None, stop)
    assert not (tmp_path / "out" / "scene_classes.tif").exists()
    assert (tmp_path / "out" / ".scene.parts" / "000000.tif").exists()
    with pytest.raises(InputError, match="another prediction"):
        run(network, path, tmp_path / "out", core=96)
    (continued,), _ = run(network, path, tmp_path / "out", core=64)
    assert continued.read_bytes() == straight.read_bytes()
    _, said = run(network, path, tmp_path / "out", core=64)
    assert "there already" in said[0]  # so a stopped folder of images continues
    assert names_in(tmp_path / "out") == ["scene_classes.tif"]
    with pytest.raises(InputError, match="--overwrite"):
        run(network, path, tmp_path / "out", core=96)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def started(export: Path, source: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "scripts/predict.py", export, source, "--out", out, "--tile", 32]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_processes_divide_a_raster_and_one_may_be_killed(export, network, tmp_path):
    path = write_raster(tmp_path / "scene.tif", noise(900, 160))
    (straight,), _ = run(network, path, tmp_path / "straight", core=32)
    out = tmp_path / "out"
    victim = started(export, path, out)
    while not (out / ".scene.parts" / "000002.tif").exists():
        assert victim.poll() is None, victim.communicate()[1]
        time.sleep(0.005)
    victim.kill()
    victim.communicate()
    assert not (out / "scene_classes.tif").exists()  # it was killed amid its work
    both = [started(export, path, out) for _ in range(2)]
    for process in both:
        assert process.communicate()[1].count("error") == 0
        assert process.returncode == 0
    assert (out / "scene_classes.tif").read_bytes() == straight.read_bytes()
    assert names_in(out) == ["scene_classes.tif"]


def test_who_waited_for_the_last_part_predicts_nothing_again(tmp_path):
    folder = tmp_path / "parts"
    with entered(folder, "plan", False) as parts:
        waiting = subprocess.Popen(
            [sys.executable, "-c", WAITING, str(folder)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        with parts.claimed(0, wait=True) as mine:
            assert mine
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == "None\n"  # the other cannot have it
            parts.path(0).touch()
        with parts.finishing() as first_here:
            if first_here:
                parts.remove()
    rest = waiting.communicate()[0]
    assert rest == "False\n"
    assert not folder.exists()


WAITING = """
import sys
import time
from pathlib import Path
from tasks.prediction.parts import entered
with entered(Path(sys.argv[1]), "plan", False) as parts:
    with parts.claimed(0, wait=False) as mine:
        print(mine, flush=True)
    with parts.claimed(0, wait=True) as mine:
        print(mine, flush=True)
    with parts.finishing() as first_here:
        if first_here:
            parts.remove()
"""


def test_a_crash_between_two_results_does_not_look_finished(network, tmp_path, monkeypatch):
    path = write_raster(tmp_path / "scene.tif", noise(90, 70))
    straight, _ = run(network, path, tmp_path / "straight", core=32, probabilities=True)
    out = tmp_path / "out"
    run(network, path, out, core=64, probabilities=True)  # what is replaced
    replace = os.replace

    def crash(source, target):
        if Path(target).parent == out and "classes" in str(target):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", crash)
    options = {"core": 32, "probabilities": True}
    with pytest.raises(KeyboardInterrupt):
        run(network, path, out, **options, overwrite=True)
    assert names_in(out) == [".scene.parts", "scene_probabilities.tif"]
    monkeypatch.undo()
    written, _ = run(network, path, out, **options)
    assert [p.read_bytes() for p in written] == [p.read_bytes() for p in straight]
    assert names_in(out) == ["scene_classes.tif", "scene_probabilities.tif"]


def test_pixels_without_data_are_not_predicted_and_do_not_matter(tmp_path):
    net = load_network(make_export(tmp_path / "lcn", "norm=lcn", "norm.window=9"))
    image = noise(66, 75)
    image[20:45, 15:50] = 0
    path = write_raster(tmp_path / "a.tif", image, nodata=0)
    other = np.where((image == 0), 200, image).astype(np.uint8)
    masked = write_raster(tmp_path / "b.tif", other, tiled=True, blockxsize=32, blockysize=32)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as file:
        file.write_mask((image != 0).any(-1))
    results = []
    for source in (path, masked):
        (target,), _ = run(net, source, tmp_path / "out", core=32)
        with rasterio.open(target) as file:
            results.append(file.read(1))
    np.testing.assert_array_equal(results[0] == NODATA, (image == 0).all(-1))
    np.testing.assert_array_equal(*results)


def test_a_norm_that_cannot_leave_out_pixels_refuses_them_and_no_raster_that_has_none(tmp_path):
    net = load_network(make_export(tmp_path / "pn", "norm=pn"))
    image = noise(66, 75)
    path = write_raster(tmp_path / "a.tif", image, nodata=0)
    (target,), _ = run(net, path, tmp_path / "out")
    with rasterio.open(target) as file:
        assert (file.read(1) != NODATA).all()
    image[20:30, 20:30] = 0
    path = write_raster(tmp_path / "b.tif", image, nodata=0)
    with pytest.raises(InputError, match="cannot leave out pixels without data"):
        run(net, path, tmp_path / "out")


@pytest.mark.parametrize("window", [5, (3, 40), "all"])
def test_masked_statistics_are_those_of_the_known_cells(window):
    layer = LocalContextNorm(4, 2, window)
    torch.nn.init.normal_(layer.weight)
    x, known = torch.randn(1, 4, 12, 15), torch.rand(12, 15) > 0.4
    found = masked_norm(layer, x, known)
    p, q = (12, 15) if window == "all" else (window, window) if window == 5 else (3, 15)
    for i, j in [(0, 0), (6, 7), (11, 14), (3, 13)]:
        top, left = min(max(i - p // 2, 0), 12 - p), min(max(j - q // 2, 0), 15 - q)
        inside = known[top : top + p, left : left + q]
        for c in range(4):
            group = x[0, c // 2 * 2 : c // 2 * 2 + 2, top : top + p, left : left + q].double()
            values = group[:, inside]
            want = (x[0, c, i, j] - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
            want = (want * layer.weight[c] + layer.bias[c]) * known[i, j]
            torch.testing.assert_close(found[0, c, i, j], want.float())
    everything = masked_norm(layer, x, torch.ones(12, 15, dtype=torch.bool))
    torch.testing.assert_close(everything, layer(x), atol=1e-5, rtol=1e-5)


def test_the_command_names_what_it_cannot_read_and_goes_on(export, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(70, 53)).save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "cut.tif").write_bytes(b"II*\0 cut")
    write_raster(tmp_path / "in" / "five.tif", noise(40, 40, 5))
    write_raster(tmp_path / "in" / "signed.tif", noise(4, 4).astype(np.int16))
    command = [sys.executable, "scripts/predict.py", export, tmp_path / "in", "--out"]
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "left out" in done.stderr
    assert "cut.tif" in done.stderr
    assert "five.tif has 5 bands; this network takes 3" in done.stderr
    assert "signed.tif: int16 is not supported" in done.stderr
    assert "1 of 4 images predicted" in done.stdout
    classes = np.asarray(Image.open(tmp_path / "out" / "good_classes.png"))
    assert classes.shape == (70, 53)
    assert (tmp_path / "out" / "good_color.png").exists()


def test_probabilities_sum_to_one_and_agree_with_the_classes(network, tmp_path):
    path = write_raster(tmp_path / "scene.tif", noise(90, 70))
    (classes, shares), _ = run(network, path, tmp_path / "out", core=32, probabilities=True)
    with rasterio.open(classes) as file, rasterio.open(shares) as other:
        values = other.read()
        np.testing.assert_allclose(values.sum(0), 1, atol=1e-5)
        np.testing.assert_array_equal(values.argmax(0), file.read(1))
    with pytest.raises(InputError, match="--overwrite"):
        run(network, path, tmp_path / "out", core=32)


@pytest.mark.parametrize("core", [24, 8])  # with a core of 8 more than two tiles hold a pixel
def test_a_blended_raster_is_the_blended_image(tmp_path, core):
    net = load_network(make_export(tmp_path / "gn", "norm=gn", "norm.groups=2"))
    image = noise(70, 83)
    path = write_raster(tmp_path / "scene.tif", image)
    options = {"core": core, "halo": 10, "blend": True}
    (classes, shares), said = run(net, path, tmp_path / "o", **options, probabilities=True)
    assert "blended" in said[0]
    assert "consistency.py" in said[0]
    with rasterio.open(classes) as file, rasterio.open(shares) as other:
        found = other.read()
        np.testing.assert_allclose(
            found, predict(net, image, **options, probabilities=True), atol=1e-6
        )
        np.testing.assert_array_equal(file.read(1), found.argmax(0))
    (alone,), _ = run(net, path, tmp_path / "alone", **options)
    with rasterio.open(alone) as file:
        np.testing.assert_array_equal(file.read(1), found.argmax(0))
    image[10:40, 20:50] = 0
    (masked,), _ = run(net, write_raster(tmp_path / "m.tif", image, nodata=0), tmp_path, **options)
    with rasterio.open(masked) as file:
        np.testing.assert_array_equal(file.read(1) == NODATA, (image == 0).all(-1))


def test_bands_are_chosen_and_sixteen_bits_scaled(network, tmp_path):
    image = noise(50, 60)
    wide = (image[..., ::-1].astype(np.uint16)) * 10
    path = write_raster(tmp_path / "wide.tif", wide)
    (target,), _ = run(network, path, tmp_path / "out", bands=(3, 2, 1), scale=2550.0)
    with rasterio.open(target) as file:
        np.testing.assert_array_equal(file.read(1), predict(network, image))


def test_values_that_are_not_finite_are_no_data_and_never_a_class(network, tmp_path):
    image = noise(50, 60)
    values = (image / 255).astype(np.float32)
    values[10:20, 30:45, 1] = np.nan
    values[40, 5] = np.inf
    path = write_raster(tmp_path / "holes.tif", values)
    (target,), _ = run(network, path, tmp_path / "out")
    lost = ~np.isfinite(values).all(-1)
    with rasterio.open(target) as file:
        found = file.read(1)
    np.testing.assert_array_equal(found == NODATA, lost)
    with pytest.raises(InputError, match="not finite"):
        predict(network, values)
    plain = write_raster(tmp_path / "plain.tif", image)
    with pytest.raises(InputError, match="not finite"):
        run(network, plain, tmp_path / "out", scale=1e-300)
    assert not (tmp_path / "out" / "plain_classes.tif").exists()


@pytest.mark.parametrize("cog", [False, True])
def test_a_raster_that_gdal_could_not_write_whole_is_no_result(network, tmp_path, monkeypatch, cog):
    path = write_raster(tmp_path / "scene.tif", noise(90, 70))
    (straight,), _ = run(network, path, tmp_path / "straight", core=32, cog=cog)
    name = "scene_classes.cog.tif" if cog else "scene_classes.tif"
    opened = rasterio.open

    def cut_short(place, mode="r", **options):  # what a full disk leaves, and no error
        if mode == "r" and Path(place).name == name and Path(place).exists():
            os.truncate(place, Path(place).stat().st_size - 200)
        return opened(place, mode, **options)

    monkeypatch.setattr("rasterio.open", cut_short)
    with pytest.raises(InputError, match=rf"{name} cannot be written .*is the disk full"):
        run(network, path, tmp_path / "out", core=32, cog=cog)
    assert names_in(tmp_path / "out") == [".scene.parts"]
    monkeypatch.undo()
    (again,), _ = run(network, path, tmp_path / "out", core=32, cog=cog)
    assert again.read_bytes() == straight.read_bytes()


def test_a_full_disk_is_named_by_every_part_and_result(network, tmp_path):
    path = write_raster(tmp_path / "scene.tif", noise(90, 70))
    for size in (0, 300, 1000, 1500):
        with files_of_at_most(size), pytest.raises(InputError, match="cannot be written"):
            run(network, path, tmp_path / "out", core=32)
        left = names_in(tmp_path / "out" / ".scene.parts")
        assert not any(name.endswith(".tmp") for name in left)
    assert names_in(tmp_path / "out") == [".scene.parts"]
    run(network, path, tmp_path / "out", core=32)
    assert names_in(tmp_path / "out") == ["scene_classes.tif"]


def test_probabilities_of_an_earlier_prediction_do_not_stay_beside_new_classes(network, tmp_path):
    path, out = write_raster(tmp_path / "scene.tif", noise(40, 50)), tmp_path / "out"
    run(network, path, out, probabilities=True)
    (out / "scene_classes.tif").unlink()
    with pytest.raises(InputError, match=r"scene_probabilities\.tif exists; .* --overwrite"):
        run(network, path, out)
    run(network, path, out, overwrite=True)
    assert names_in(out) == ["scene_classes.tif"]
    foreign = write_raster(out / "scene_probabilities.tif", noise(4, 5)).read_bytes()
    run(network, path, out, overwrite=True)  # not ours: it stays
    assert (out / "scene_probabilities.tif").read_bytes() == foreign


@pytest.mark.parametrize("kind", ["folder", "another picture"])
def test_only_maps_are_overwritten(network, tmp_path, kind):
    path, out = write_raster(tmp_path / "scene.tif", noise(40, 50)), tmp_path / "out"
    out.mkdir()
    target = out / "scene_classes.tif"
    target.mkdir() if kind == "folder" else write_raster(target, noise(4, 5))
    for overwrite, message in ((False, "exists"), (True, "is no map of a prediction: move it")):
        with pytest.raises(InputError, match=f"scene_classes.tif {message}"):
            run(network, path, out, overwrite=overwrite)
    assert names_in(out) == ["scene_classes.tif"]


@pytest.mark.parametrize("what", ["file", "lock", "plan.json", "no text"])
def test_what_stands_in_the_place_of_parts_is_named(network, tmp_path, what):
    path, parts = write_raster(tmp_path / "scene.tif", noise(40, 50)), tmp_path / ".scene.parts"
    if what == "file":
        parts.touch()
    elif what == "no text":
        parts.mkdir()
        (parts / "plan.json").write_bytes(b"\xff\xfe")
    else:
        (parts / what).mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"\.scene\.parts (cannot be written|has a part of another)"
    ):
        run(network, path, tmp_path)


def test_an_image_that_is_named_twice_is_one_and_links_that_lead_nowhere_are_named(tmp_path):
    picture = tmp_path / "a.png"
    Image.fromarray(noise(4, 5)).save(picture)
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert find_images([picture, tmp_path / "." / "a.png", picture]) == [picture]
    assert find_images([picture, tmp_path]) == [picture, tmp_path / "loop.png"]
    with pytest.raises(InputError, match=r"loop\.png"):
        Source(tmp_path / "loop.png", None, 3)


def test_a_name_that_is_no_utf8_is_named(network, tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff.png")
    Image.fromarray(noise(4, 5)).save(path)
    with pytest.raises(InputError, match="UTF-8 names alone; rename it"):
        run(network, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_maps_are_not_written_among_the_images_they_would_become(tmp_path):
    Image.fromarray(noise(4, 5)).save(tmp_path / "a.png")
    assert find_images([tmp_path], tmp_path / "out") == [tmp_path / "a.png"]
    with pytest.raises(InputError, match=r"--out .* is a folder of images too"):
        find_images([tmp_path], tmp_path / "x" / "..")


def test_a_vrt_whose_raster_is_missing_says_which(network, tmp_path):
    rasterio.shutil.copy(
        write_raster(tmp_path / "gone.tif", noise(4, 5)), tmp_path / "a.vrt", driver="VRT"
    )
    (tmp_path / "gone.tif").unlink()
    with pytest.raises(InputError, match=r"a\.vrt cannot be read \(.*gone\.tif"):
        run(network, tmp_path / "a.vrt", tmp_path / "out")


@pytest.mark.parametrize("name", ["meta", "tpu", "cuda:99"])
def test_a_device_that_cannot_compute_is_named(name):
    with pytest.raises(InputError, match=f"--device {name}: this machine has no such device"):
        device_of(name)


def test_an_image_smaller_than_the_stride_is_padded_by_its_border(tmp_path):
    net = load_network(make_export(tmp_path / "deep", "norm=bn", "task.model.widths=[4,4,4,4,4]"))
    image = noise(5, 9)
    Image.fromarray(image).save(tmp_path / "small.png")
    (target, _), _ = run(net, tmp_path / "small.png", tmp_path / "out")
    _, said = run(net, tmp_path / "small.png", tmp_path / "out")
    assert "there already" in said[0]
    assert names_in(tmp_path / "out") == ["small_classes.png", "small_color.png"]
    padded = np.pad(image, ((0, 11), (0, 7), (0, 0)), mode="edge")
    with torch.inference_mode():
        want = net.decide(net(net.prepare(padded)[None]))[0, :5, :9].numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(target)), want)


def test_floating_point_is_taken_as_it_is_and_other_integers_are_named(network, tmp_path):
    image = noise(40, 50)
    path = write_raster(tmp_path / "float.tif", (image / 255).astype(np.float32))
    (target,), _ = run(network, path, tmp_path / "out")
    with rasterio.open(target) as file:
        np.testing.assert_array_equal(file.read(1), predict(network, image))
    signed = write_raster(tmp_path / "signed.tif", image.astype(np.int16))
    with pytest.raises(InputError, match="int16 is not supported"):
        run(network, signed, tmp_path / "out")
    assert names_in(tmp_path / "out") == ["float_classes.tif"]


@pytest.mark.filterwarnings("error::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_without_georeferencing_and_a_vrt_that_is_named(network, tmp_path):
    image = noise(40, 50)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        plain = write_raster(tmp_path / "plain.tif", image, crs=None, transform=None)
    (target,), _ = run(network, plain, tmp_path / "out", core=16)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        file = rasterio.open(target)
    with file:
        assert file.crs is None
        np.testing.assert_array_equal(file.read(1), predict(network, image))
    placed = write_raster(tmp_path / "placed.tif", image)
    rasterio.shutil.copy(placed, tmp_path / "virtual.vrt", driver="VRT")
    (target,), _ = run(network, tmp_path / "virtual.vrt", tmp_path / "out", core=16)
    with rasterio.open(target) as file, rasterio.open(placed) as source:
        assert (file.crs, file.transform) == (source.crs, source.transform)
        np.testing.assert_array_equal(file.read(1), predict(network, image))
    found = find_images([tmp_path])  # a folder's VRTs would repeat its rasters
    assert sorted(path.name for path in found) == ["placed.tif", "plain.tif"]


def test_a_place_without_a_reference_system_is_kept(network, tmp_path):
    path = write_raster(tmp_path / "scene.tif", noise(8, 9), crs=None)
    (target,), _ = run(network, path, tmp_path / "out")
    with rasterio.open(target) as file:
        assert file.crs is None
        assert file.transform == from_origin(5e5, 4e6, 0.3, 0.3)


def test_another_crs_than_the_training_tiles_is_a_warning(network, tmp_path):
    path = write_raster(tmp_path / "scene.tif", noise(20, 20))
    for crs, warned in (
        (["EPSG:26914", "EPSG:31254"], True),
        (["EPSG:26914", "EPSG:32633"], False),
    ):
        net = Network(network.model, network.cfg, crs)
        _, said = run(net, path, tmp_path / "out")
        assert ("warning" in said[0] and "EPSG:32633" in said[0]) == warned
    assert not network.crs  # an export, or a task whose patches have none: no warning


def test_classes_are_a_table_and_what_cannot_be_read_is_left_out(tmp_path, monkeypatch, capsys):
    cfg = compose(["task=imagenet", "task.num_classes=3", "task.class_names=[a,b,c]"])
    means = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    monkeypatch.setattr("tasks.prediction.command.load_network", lambda *_: Network(means, cfg))
    folder = tmp_path / "in"
    folder.mkdir()
    colors = {"blue.png": (0, 0, 255), "red.png": (255, 0, 0)}
    for name, color in colors.items():
        Image.new("RGB", (300, 260), color).save(folder / name)
    (folder / "cut.jpg").write_bytes(b"\xff\xd8 cut")
    arguments = argparse.Namespace(
        run="run", inputs=[folder], out=tmp_path / "out", device="cpu", checkpoint=None, halo=None,
        tile=None, memory=2.0, bands=None, scale=None, probabilities=True, cog=False, blend=False,
        overwrite=False, norm=None, convert=False,
    )  # fmt: skip
    assert predict_all(arguments) == 2
    assert "cut.jpg" in capsys.readouterr().err
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["image", "class", "probability", "a", "b", "c"]
    assert [row[:2] for row in rows] == [
        [str(folder / "blue.png"), "c"], [str(folder / "red.png"), "a"]
    ]  # fmt: skip
    for row, color in zip(rows, colors.values(), strict=True):
        logits = (np.array(color) / 255 - cfg.task.mean) / cfg.task.std
        want = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose([float(p) for p in row[3:]], want, atol=1e-5)
        assert float(row[2]) == pytest.approx(want.max(), abs=1e-5)
    with pytest.raises(InputError, match="--overwrite"):
        predict_all(arguments)


def test_a_run_that_has_not_finished_is_used_only_if_told(tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    cfg = compose(["task=inria", "task.model.widths=[4,4]", "trainer=cpu", "norm=bn"])
    (run_folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    weights = {f"model.{k}": v for k, v in build_model(cfg).state_dict().items()}
    norm = {**OmegaConf.to_container(cfg.norm)}
    torch.save({"state_dict": weights, "norm": norm}, run_folder / "last.ckpt")
    with pytest.raises(InputError, match="--checkpoint last"):
        load_network(run_folder)
    assert load_network(run_folder, checkpoint="last").bands == ["red", "green", "blue"]
