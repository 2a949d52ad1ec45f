"""The COCO files: what is read, and what is said of files that are not as they should be."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from tasks.data import open_splits
from tasks.data.coco import Coco
from tasks.data.coco_json import _decoded_runs
from tasks.errors import InputError

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 44, "name": "bottle"}, {"id": 3, "name": "car"}]  # not in the order of ids


def rectangle(x, y, width, height):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def corners(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def run_lengths(mask):
    """COCO's uncompressed form, counted pixel by pixel."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"counts": counts, "size": [HEIGHT, WIDTH]}


def compressed(mask):
    encoded = mask_utils.encode(np.asfortranarray(mask))
    return {"counts": encoded["counts"].decode(), "size": encoded["size"]}


def annotation(number, image_id, box=(2, 3, 8, 5), **other):
    return {
        "id": number, "image_id": image_id, "category_id": 44, "iscrowd": 0, "bbox": list(box),
        "area": float(box[2] * box[3]), "segmentation": [corners(*box)], **other,
    }  # fmt: skip


ANNOTATIONS = [
    annotation(1, 10),
    annotation(
        2, 10, (12, 2, 6, 9), category_id=3, segmentation=run_lengths(rectangle(12, 2, 6, 9))
    ),
    annotation(3, 10, (20, 5, 4, 4), segmentation=compressed(rectangle(20, 5, 4, 4))),
    annotation(4, 10, (0, 0, 9, 9), iscrowd=1, segmentation=run_lengths(rectangle(0, 0, 9, 9))),
    annotation(5, 11, (0, 0, 9, 9), iscrowd=1, segmentation=run_lengths(rectangle(0, 0, 9, 9))),
    annotation(6, 13, (24, -2, 10, 12), segmentation=[[24, 0, 30, 0, 30, 10, 24, 10]]),
    annotation(7, 13, (5, 5, 0, 6), segmentation=[corners(5, 5, 1, 6)], area=6.0),
    annotation(8, 13, (40, 5, 3, 6), segmentation=[corners(27, 5, 3, 6)]),
]  # image 12 is empty


def content():
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": HEIGHT, "width": WIDTH}
        for number in (13, 10, 12, 11)
    ]
    return {"images": images, "annotations": ANNOTATIONS, "categories": CATEGORIES}


def write(root, split="train", changed=None):
    """Four images in COCO's layout; `changed` changes the json before it is written."""
    data = json.loads(json.dumps(content()))
    for image in data["images"]:
        path = root / f"{split}2017" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(image["id"]).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(noise).save(path)
    if changed:
        changed(data)
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))
    return root


def config(root, name="full"):
    return OmegaConf.create({"task": {"name": "coco"}, "data": {"name": name, "root": str(root)}})


def test_polygons_and_both_forms_of_run_lengths_give_the_mask(tmp_path):
    sample = Coco(write(tmp_path), "train", training=True)[0]
    assert sample["image"].shape == (HEIGHT, WIDTH, 3)
    assert sample["image"].dtype == np.uint8
    expected = [rectangle(2, 3, 8, 5), rectangle(12, 2, 6, 9), rectangle(20, 5, 4, 4)]
    np.testing.assert_array_equal(sample["masks"], expected)
    assert sample["masks"].dtype == np.uint8
    np.testing.assert_array_equal(
        sample["boxes"], np.array([[2, 3, 10, 8], [12, 2, 18, 11], [20, 5, 24, 9]], np.float32)
    )
    assert sample["boxes"].dtype == np.float32
    assert (sample["image_id"], sample["name"]) == (10, "000000000010")


def test_labels_count_from_one_in_the_order_of_category_ids(tmp_path):
    dataset = Coco(write(tmp_path), "train")
    assert dataset.class_names == ["car", "bottle"]
    assert dataset.category_ids == [3, 44]
    assert dataset.labels == {3: 1, 44: 2}
    labels = dataset[0]["labels"]
    assert labels.tolist() == [2, 1, 2]
    assert labels.dtype == np.int64


def test_training_leaves_out_crowds_boxes_without_extent_and_images_without_objects(tmp_path):
    dataset = Coco(write(tmp_path), "train", training=True)
    assert [dataset[i]["image_id"] for i in range(len(dataset))] == [10, 13]
    np.testing.assert_array_equal(dataset[1]["boxes"], [[24, 0, 30, 10]])  # clipped to the image
    assert len(dataset[1]["masks"]) == 1


def test_evaluation_has_all_images_and_exactly_the_json_s_ground_truth(tmp_path, capsys):
    root = write(write(tmp_path), "val")
    train, val, again = open_splits(config(root), ["train", "val", "train"])
    assert [len(train), len(val), len(again)] == [2, 4, 4]
    assert not capsys.readouterr().out
    official = COCO(val.json_path)
    for index in range(len(val)):
        val[index]
    assert val.ground_truth.dataset == official.dataset
    assert val.ground_truth.imgs == official.imgs
    assert val.ground_truth.anns == official.anns
    empty = val[2]
    assert empty["image_id"] == 12
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, HEIGHT, WIDTH)
    assert empty["labels"].shape == (0,)


def test_real_photographs_load(real_data):
    train, val = open_splits(config(real_data / "coco"), ["train", "val"])
    assert (len(val), val.class_names) == (12, ["person", "bicycle", "car"])
    assert 0 < len(train) <= 40
    sample = val[0]
    assert sample["image"].shape == (360, 480, 3)
    assert sample["masks"].shape == (len(sample["boxes"]), 360, 480)
    for box, mask in zip(sample["boxes"], sample["masks"], strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(box - around).max() <= 2
    figure = val.plot(sample, prediction={**sample, "scores": np.ones(len(sample["labels"]))})
    assert [ax.get_title() for ax in figure.axes] == ["ground truth", "prediction"]
    assert sample["image"].dtype == np.uint8


def test_a_grey_photograph_has_three_channels(tmp_path):
    path = write(tmp_path) / "train2017" / "000000000010.jpg"
    Image.open(path).convert("L").save(path)
    image = Coco(tmp_path, "train")[0]["image"]
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert (image[..., 0] == image[..., 2]).all()


def test_identity_follows_the_annotations_and_not_their_place(tmp_path):
    here, there = write(tmp_path / "here"), write(tmp_path / "there")
    other = write(tmp_path / "other", changed=lambda data: data["annotations"].pop())
    assert Coco(here, "train").identity == Coco(there, "train").identity
    assert Coco(here, "train").identity != Coco(other, "train").identity


def test_missing_dataset_names_place_archives_and_the_miniature(tmp_path):
    with pytest.raises(InputError) as error:
        open_splits(config(tmp_path / "nowhere"), ["train", "val"])
    for part in (
        "nowhere", "train2017", "annotations/instances_val2017.json", "train2017.zip",
        "annotations_trainval2017.zip", "https://cocodataset.org/#download", "data=mini",
    ):  # fmt: skip
        assert part in str(error.value)


def entry(section, number):
    return lambda data: next(e for e in data[section] if e["id"] == number)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda data: data.pop("images"), "no list of 'images'"),
        (lambda data: data.update(annotations={}), "no list of 'annotations'"),
        (
            lambda data: entry("annotations", 3)(data).update(category_id=5),
            "annotation id 3 has category_id 5, which 'categories' does not list",
        ),
        (
            lambda data: entry("annotations", 6)(data).update(image_id=99),
            "annotation id 6 has image_id 99, which 'images' does not list",
        ),
        (lambda data: entry("annotations", 2)(data).pop("bbox"), "id 2 of 'annotations' has no"),
        (lambda data: entry("images", 12)(data).pop("width"), "id 12 of 'images' has no 'width'"),
        (lambda data: entry("annotations", 2)(data).update(id=1), "id 1 occurs twice"),
        (lambda data: entry("annotations", 2)(data).update(id=0), "annotation id 0"),
        (
            lambda data: entry("annotations", 1)(data).update(segmentation=[]),
            "annotation id 1 has an empty segmentation",
        ),
        (
            lambda data: entry("annotations", 2)(data)["segmentation"].update(size=[5, 5]),
            r"annotation id 2 has a .* neither polygons nor run lengths of size \[20, 30\]",
        ),
        (
            lambda data: entry("images", 12)(data).update(file_name="gone.jpg"),
            r"1 of the 4 images .*gone\.jpg \(image id 12\); unpack train2017\.zip",
        ),
        (lambda data: data.update(images=[], annotations=[]), "has no image"),
    ],
)
def test_a_json_that_contradicts_itself_is_named_with_the_id(tmp_path, changed, message):
    write(tmp_path, changed=changed)
    with pytest.raises(InputError, match=message) as error:
        Coco(tmp_path, "train", training=True)
    assert "instances_train2017.json" in str(error.value)


@pytest.mark.parametrize("text", ['{"images": [', "", "[]"])
def test_a_json_that_cannot_be_read_is_named(tmp_path, text):
    write(tmp_path)
    (tmp_path / "annotations/instances_train2017.json").write_text(text)
    with pytest.raises(InputError, match=r"instances_train2017\.json"):
        Coco(tmp_path, "train")


def test_splits_of_different_categories_are_named(tmp_path):
    write(write(tmp_path), "val", changed=lambda data: data["categories"][0].update(name="jar"))
    with pytest.raises(InputError, match="have different categories"):
        open_splits(config(tmp_path), ["train", "val"])


def test_an_image_of_another_size_than_the_json_says_is_named(tmp_path):
    write(tmp_path, changed=lambda data: entry("images", 12)(data).update(height=21))
    dataset = Coco(tmp_path, "train")
    with pytest.raises(InputError, match=r"0012\.jpg is 20 x 30 but .* says 21 x 30 .*id 12"):
        dataset[2]


@pytest.mark.parametrize("damage", ["cut short", "not a picture", "empty"])
def test_an_unreadable_jpeg_is_named(tmp_path, damage):
    path = write(tmp_path) / "train2017" / "000000000010.jpg"
    whole = path.read_bytes()
    broken = {"cut short": whole[: len(whole) * 2 // 3], "not a picture": b"hello", "empty": b""}
    path.write_bytes(broken[damage])
    with pytest.raises(InputError, match=r"000000000010\.jpg cannot be read"):
        Coco(tmp_path, "train")[0]


def test_importing_the_module_imports_no_torch():
    code = "import sys, tasks.data.coco; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


BIG = 1e308
BAD_OBJECTS = [
    {"bbox": None}, {"bbox": [1, 2, 3]}, {"bbox": [1, 2, 3, "4"]}, {"bbox": [1, 2, 3, BIG]},
    {"bbox": [float("nan"), 2, 3, 4]}, {"bbox": [1, 2, float("inf"), 4]}, {"bbox": [5, 5, -1, 2]},
    {"bbox": [True, 2, 3, 4]}, {"area": None}, {"area": "9"}, {"area": -1.0}, {"area": BIG},
    {"area": float("nan")}, {"area": 10**400}, {"iscrowd": "false"}, {"iscrowd": None},
    {"iscrowd": 2}, {"iscrowd": 0.0}, {"id": None}, {"id": "1"}, {"id": 1.0}, {"id": 2**70},
    {"image_id": None}, {"image_id": [10]}, {"image_id": 10.0}, {"category_id": {}},
    {"segmentation": None}, {"segmentation": []}, {"segmentation": "x"}, {"segmentation": [[]]},
    {"segmentation": [[1, 2, 3, 4]]}, {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    {"segmentation": [[1, 2, 3, 4, 5, None]]}, {"segmentation": [[1, 2, 3, 4, 5, BIG]]},
    {"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, {"segmentation": [[1, 2, 3, 4, 5, [6]]]},
    {"segmentation": {"size": [20, 30]}}, {"segmentation": {"size": [20, 30], "counts": None}},
    {"segmentation": {"size": [20, 30], "counts": [599]}},
    {"segmentation": {"size": [20, 30], "counts": [601]}},
    {"segmentation": {"size": [20, 30], "counts": [700, -100]}},
    {"segmentation": {"size": [20, 30], "counts": [300.0, 300.0]}},
    {"segmentation": {"size": [20.0, 30], "counts": [600]}},
    {"segmentation": {"size": [20, 30], "counts": "5"}},
    {"segmentation": {"size": [20, 30], "counts": "o"}},
    {"segmentation": {"size": [20, 30], "counts": "\u00e4"}},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD_OBJECTS, ids=lambda change: str(change)[:40])
def test_an_annotation_that_would_lose_or_invent_an_object_is_named(tmp_path, change):
    write(tmp_path, changed=lambda data: data["annotations"][0].update(change))
    with pytest.raises(InputError, match=r"instances_train2017\.json"):
        Coco(tmp_path, "train")


BAD_ENTRIES = [
    ("images", {"height": None}), ("images", {"width": 30.0}), ("images", {"height": 0}),
    ("images", {"height": 10**6, "width": 10**6}), ("images", {"file_name": None}),
    ("images", {"file_name": ""}), ("images", {"file_name": "a\0b"}),
    ("images", {"file_name": "../x.jpg"}), ("images", {"file_name": "/etc/passwd"}),
    ("images", {"file_name": "\ud800.jpg"}), ("categories", {"name": None}),
    ("categories", {"name": ""}), ("categories", {"name": "a\nb"}), ("categories", {"id": "3"}),
]  # fmt: skip


@pytest.mark.parametrize(("section", "change"), BAD_ENTRIES, ids=lambda value: str(value)[:40])
def test_an_image_or_category_that_makes_no_sense_is_named(tmp_path, section, change):
    write(tmp_path, changed=lambda data: data[section][0].update(change))
    with pytest.raises(InputError, match=r"instances_train2017\.json"):
        Coco(tmp_path, "train")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"a":' * 100_000, "null", "3", '{"images": [1]}', "\xff\xfe", "1" * 5000,
        '{"images": [null], "annotations": [], "categories": []}',
        '{"images": [], "images": [], "annotations": [], "categories": []}',
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_document_that_is_none_of_coco_s_is_named(tmp_path, text):
    path = write(tmp_path) / "annotations" / "instances_train2017.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"instances_train2017\.json"):
        Coco(tmp_path, "train")


def test_run_lengths_are_decoded_as_pycocotools_encodes_them():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        mask = (rng.random(rng.integers(1, 40, 2)) < rng.random()).astype(np.uint8)
        runs = _decoded_runs(mask_utils.encode(np.asfortranarray(mask))["counts"].decode())
        values = np.resize([0, 1], len(runs))
        assert np.array_equal(np.repeat(values, runs), mask.T.ravel())


def test_images_may_lie_in_sub_folders(tmp_path):
    def move(data):
        data["images"][1]["file_name"] = "part/x.jpg"

    write(tmp_path, changed=move)
    folder = tmp_path / "train2017"
    (folder / "part").mkdir()
    shutil.move(folder / "000000000010.jpg", folder / "part" / "x.jpg")
    sample = Coco(tmp_path, "train")[0]
    assert (sample["name"], sample["image_id"]) == ("x", 10)


def test_annotations_stay_as_they_are(tmp_path):
    path = write(tmp_path) / "annotations" / "instances_train2017.json"
    assert Coco(tmp_path, "train").ground_truth.dataset == json.loads(path.read_text())
