"""Exports: the same results as the run's, a card that Hugging Face reads, nobody's names inside."""

import contextlib
import errno
import io
import json
import re
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, configuration
from fakes import HOME, write_run
from PIL import Image
from pycocotools.coco import COCO

from tasks.data.coco import Coco
from tasks.errors import InputError
from tasks.evidence.card import dataset_terms, model_card
from tasks.miniatures import coco as mini_coco
from tasks.models import build_model, scaled_norm
from tasks.prediction import to_onnx
from tasks.prediction.export import export, shareable
from tasks.prediction.network import load_network
from tasks.prediction.objects import draw

UNET = ("task=inria", "task.model.widths=[4,4]", "norm=lcn", "norm.window=9")
WANDB = ("logger=wandb", "logger.entity=someone")
CLASSES = "[person,car,bottle,chair,clock]"
FROZEN = (
    "task=coco", "norm=bn", f"task.class_names={CLASSES}", "task.num_classes=5",
    f"task.backbone_checkpoint={HOME}/resnet50.ckpt",
)  # fmt: skip


def trained(folder, *overrides, data="full", **options):
    """A run with a checkpoint of weights that were drawn."""
    directory = write_run(folder, *overrides, data=data, **options)
    cfg, _ = configuration((*overrides, f"data={data}"))
    torch.manual_seed(options.get("seed", 0))
    model = build_model(cfg, read_weights=False)
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    state = {"state_dict": weights, "norm": scaled_norm(cfg)}
    torch.save(state, directory / "last.ckpt")
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return trained(folder, *UNET, *WANDB, name="inria/own", tile_mismatch=1.25)


def picture(path, height=70, width=53):
    values = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_an_exports_map_is_the_runs_and_nothing_names_this_machine(run, tmp_path, script):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = script("export", run, "--out", tmp_path / "shared", "--onnx")
    assert done.returncode == 0, done.stderr
    names = ["README.md", "config.yaml", "model.onnx", "model.safetensors"]
    assert done.stdout.split() == [str(tmp_path / "shared" / name) for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shared"]

    image = picture(tmp_path / "photo.png")
    for source, out in ((run, "a"), (tmp_path / "shared", "b")):
        done = script("predict", source, image, "--out", tmp_path / out, "--probabilities")
        assert done.returncode == 0, done.stderr
    for name in ("photo_classes.png", "photo_probabilities.tif"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    private = [HOME, "someone", str(tmp_path), str(run), str(ROOT), sys.prefix]
    for path in (tmp_path / "shared").iterdir():
        content = path.read_bytes()
        assert not [word for word in private if word.encode() in content], path
        if path.suffix in (".md", ".yaml"):
            assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", content.decode())
            assert not re.search(r"(?<![\w:/.)])/\w+/", content.decode()), path


def test_the_card_is_what_hugging_face_reads(run, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    export(run, tmp_path / "shared", model_card)
    card = hub.ModelCard.load(tmp_path / "shared" / "README.md")
    assert card.data.license == "other"
    assert card.data.library_name == "local-context-norm"
    assert card.data.datasets == ["inria"]
    assert card.data.model_name == "inria-unet-lcn_c2_w9"
    scores = json.loads((run / "result.json").read_text())["metrics"]
    found = {r.metric_name: (r.metric_type, r.metric_value) for r in card.data.eval_results}
    assert {value for _, value in found.values()} == set(scores.values())
    assert found["overall IoU (percent)"] == ("mean_iou", scores["overall_iou"])
    result = card.data.eval_results[0]
    assert (result.task_type, result.dataset_type) == ("image-segmentation", "inria")
    for part in ("1 of 8 norm layers", "3 of 8 norm layers", "total stride: 2 x 2", "1.25 %",
                 "MIT licence", "Maggiori", "@inproceedings{ortiz2020local", "seed 0",
                 "load_network, predict"):  # fmt: skip
        assert part in card.text, part


def test_seeds_of_the_same_settings_are_named_with_their_mean(tmp_path):
    own = trained(tmp_path, *UNET, name="inria/a", score=50.0)
    write_run(tmp_path, *UNET, data="full", seed=1, name="inria/b", score=53.0)
    write_run(tmp_path, *UNET, data="full", seed=2, name="inria/c", score=59.0)
    write_run(tmp_path, *UNET, "norm.window=5", data="full", seed=3, name="inria/d", score=90.0)
    write_run(tmp_path, *UNET, data="full", seed=4, name="inria/e", finished=False)
    export(own, tmp_path / "shared", model_card)
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "| 50.00 | 53.00 | 59.00 | 54.00 |" in text
    assert "seed 3" not in text
    assert "seed 4" not in text
    assert "3 runs of the same settings; too few for an interval" in text


def test_six_seeds_have_an_interval(tmp_path):
    own = trained(tmp_path, *UNET, name="inria/0", score=50.0)
    for seed in range(1, 6):
        write_run(tmp_path, *UNET, data="full", seed=seed, name=f"inria/{seed}", score=50.0)
    export(own, tmp_path / "shared", model_card)
    text = (tmp_path / "shared" / "README.md").read_text()
    assert f"{'| 50.00 ' * 7}| 50.00 to 50.00 |" in text


def test_what_is_there_stays_unless_told_and_an_error_leaves_no_trace(run, tmp_path, script):
    out = tmp_path / "shared"
    export(run, out, model_card)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done = script("export", run, "--out", out)
    assert (done.returncode, "--overwrite" in done.stderr) == (2, True)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        export(run, out, full, overwrite=True)
    with pytest.raises(InputError, match="No space left"):
        export(run, tmp_path / "other", full)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    export(run, out, lambda *_: "another card", overwrite=True)
    assert (out / "README.md").read_text() == "another card"
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]
    (out / "notes.txt").touch()
    with pytest.raises(InputError, match=r"notes\.txt"):
        export(run, out, model_card, overwrite=True)
    with pytest.raises(InputError, match="an export already"):
        export(out, tmp_path / "third", model_card)


def test_an_onnx_file_that_computes_something_else_is_refused(run, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    size = ["height", "width"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMax", ["image", "axes"], ["logits"], keepdims=1)], "wrong",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, *size])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 1, *size])],
        [onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])],
    )  # fmt: skip
    version = [onnx.helper.make_opsetid("", 18)]
    wrong = onnx.helper.make_model(graph, opset_imports=version, ir_version=10)
    monkeypatch.setattr(to_onnx, "_exported", lambda *_: SimpleNamespace(model_proto=wrong))
    with pytest.raises(InputError, match="other logits"):
        export(run, tmp_path / "shared", model_card, onnx=True)
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_not_finished_is_exported_only_if_told(tmp_path, script):
    run = trained(tmp_path, *UNET, name="inria/a", finished=False)
    done = script("export", run, "--out", tmp_path / "shared")
    assert (done.returncode, "--checkpoint last" in done.stderr) == (2, True)
    assert not (tmp_path / "shared").exists()
    done = script("export", run, "--out", tmp_path / "shared", "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "not finished: 8 of" in text
    assert "model-index" not in yaml.safe_load(text.split("---\n")[1])
    assert script("export", tmp_path / "none", "--out", tmp_path / "x").returncode == 2


def test_a_classifiers_export_gives_the_same_table(tmp_path, script):
    overrides = ("task=imagenet", "norm=gn", "task.class_names=[cat,dog]", "task.num_classes=2")
    run = trained(tmp_path, *overrides, data="mini", name="imagenet/a")
    export(run, tmp_path / "shared", model_card)
    image, tables = picture(tmp_path / "photo.png", 90, 80), []
    for source, out in ((run, "a"), (tmp_path / "shared", "b")):
        done = script("predict", source, image, "--out", tmp_path / out, "--probabilities")
        assert done.returncode == 0, done.stderr
        tables.append((tmp_path / out / "predictions.csv").read_text())
    assert tables[0] == tables[1]
    assert "license: mit" in (tmp_path / "shared" / "README.md").read_text()


def test_a_detectors_objects_are_those_of_its_network_in_cocos_form(tmp_path, monkeypatch, script):
    """Of a run and of its export; its batch norms are frozen. pycocotools reads the JSON."""
    monkeypatch.setattr(mini_coco, "IMAGES", {"train": 1, "val": 3})
    dataset = Coco(mini_coco.ensure(tmp_path / "coco"), "val")
    run = trained(tmp_path, *FROZEN, data="mini", name="coco/a")
    export(run, tmp_path / "shared", model_card)
    with pytest.raises(InputError, match="segmentation and classification"):
        export(run, tmp_path / "onnx", model_card, onnx=True)
    assert HOME not in (tmp_path / "shared" / "config.yaml").read_text()
    assert (tmp_path / "shared" / "model.safetensors").stat().st_size > 1e8

    (dataset.image_dir / "broken.png").write_bytes(b"no picture")
    done = script("predict", tmp_path / "shared", dataset.image_dir, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "broken.png" in done.stderr
    assert "3 of 4 images predicted, 4 files written" in done.stdout
    (dataset.image_dir / "broken.png").unlink()
    done = script("predict", run, dataset.image_dir, "--out", tmp_path / "own")
    assert done.returncode == 0, done.stderr

    path = tmp_path / "own" / "predictions.json"
    content = json.loads(path.read_text())
    other = json.loads((tmp_path / "out" / "predictions.json").read_text())
    for annotation in (*content["annotations"], *other["annotations"]):
        del annotation["image_id"]  # numbers of their own where not every name is a number
    assert content["annotations"] == other["annotations"]
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(path))
    assert sorted(read.imgs) == sorted(dataset.ground_truth.imgs)
    assert read.getCatIds() == dataset.category_ids
    found = load_network(run).model(
        [torch.from_numpy(dataset[0]["image"].copy()).permute(2, 0, 1) / 255]
    )[0]
    ours = read.loadAnns(read.getAnnIds(imgIds=[dataset[0]["image_id"]]))
    assert len(ours) == len(found["scores"]) > 0
    for index, annotation in enumerate(ours):
        x, y, width, height = annotation["bbox"]
        corners = torch.tensor([x, y, x + width, y + height])
        torch.testing.assert_close(corners, found["boxes"][index], atol=1e-3, rtol=0)
        assert annotation["score"] == pytest.approx(float(found["scores"][index]), abs=1e-6)
        label = int(found["labels"][index])
        assert read.cats[annotation["category_id"]]["name"] == dataset.class_names[label - 1]
        mask = found["masks"][index, 0].numpy() >= 0.5
        np.testing.assert_array_equal(read.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
    with Image.open(tmp_path / "own" / f"{dataset[0]['name']}_objects.png") as drawn:
        assert drawn.size == dataset[0]["image"].shape[1::-1]


def test_objects_are_drawn_where_they_are_and_weak_ones_are_not():
    image = np.full((115, 129, 3), 200, np.uint8)
    masks = torch.zeros(2, 1, 115, 129)
    masks[0, 0, 60:90, 30:70] = 0.9
    masks[1, 0, 5:20, 80:120] = 0.9
    found = {
        "boxes": torch.tensor([[30.0, 60, 70, 90], [80, 5, 120, 20]]),
        "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.9, 0.3]), "masks": masks,
    }  # fmt: skip
    picture = np.asarray(draw(image, found, ["dog", "cat"]), dtype=int)
    assert picture.shape == image.shape
    red = picture[75, 50]  # hue 0 over grey, half and half
    np.testing.assert_allclose(red, [227, 100, 100], atol=2)
    for row, column in ((12, 100), (110, 120), (75, 110), (30, 10)):
        np.testing.assert_allclose(picture[row, column], 200, atol=1)
    assert (picture[75, 28:33] == [255, 0, 0]).all(-1).any()  # the box's left edge


def test_paths_and_users_leave_a_configuration_and_the_rest_stays():
    config = {
        "runs": "runs", "logger": {"wandb": True, "entity": "someone"}, "seed": 3,
        "checkpoint": "relative/last.ckpt",
        "data": {"root": "data/x", "other": "see file:///home/someone/x", "win": r"C:\data"},
        "task": {"backbone_checkpoint": "timm:resnet50", "class_names": ["and / or", "km/h"]},
    }  # fmt: skip
    assert shareable(config) == {
        "seed": 3, "checkpoint": "<path>",
        "data": {"root": "<path>", "other": "<path>", "win": "<path>"},
        "task": {"backbone_checkpoint": "timm:resnet50", "class_names": ["and / or", "km/h"]},
    }  # fmt: skip


@pytest.mark.parametrize(
    "task", ["cityscapes", "inria", "chesapeake", "coco", "imagenet", "camvid"]
)
def test_every_dataset_has_terms_and_a_citation(task):
    licence, citation = dataset_terms(task)
    assert licence
    assert re.search(r"(19|20)\d\d", citation)
