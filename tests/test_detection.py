"""Detection: losses, and average precision as COCO's own evaluator computes it."""

import contextlib
import io
import json
import multiprocessing
import os

import numpy as np
import pytest
import torch
import torch.distributed
from omegaconf import OmegaConf
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from tasks.data.coco import Coco
from tasks.errors import InputError
from tasks.miniatures import coco as mini_coco
from tasks.modules.detection import Detection, coco_results, coco_scores

SIZE = 100  # pixels, both sides of the hand-made images
SCORES = ("ap_bbox", "ap50_bbox", "ap75_bbox", "ap_mask", "ap50_mask", "ap75_mask")


def filled(x, y, width, height):
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return mask_utils.encode(mask)


def truth(objects, images=(1, 2), categories=(1, 18)):
    """Ground truth of rectangles (image, category, box, crowd)."""
    annotations = [
        {
            "id": number, "image_id": image, "category_id": category, "bbox": list(box),
            "area": float(box[2] * box[3]), "iscrowd": int(crowd), "segmentation": filled(*box),
        }
        for number, (image, category, box, crowd) in enumerate(objects, start=1)
    ]  # fmt: skip
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image, "height": SIZE, "width": SIZE} for image in images],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in categories],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def result(image, category, box, score):
    return {
        "image_id": image, "category_id": category, "bbox": list(box), "score": score,
        "segmentation": filled(*box),
    }  # fmt: skip


def perfect(coco):
    """What finds every object that is no crowd, exactly."""
    return [
        result(a["image_id"], a["category_id"], a["bbox"], 0.9)
        for a in coco.dataset["annotations"]
        if not a["iscrowd"]
    ]


# -------------------------------------------------------------------------------------- scores


def test_perfect_predictions_score_100():
    coco = truth([(1, 1, (5, 5, 40, 40), 0), (1, 18, (50, 5, 30, 60), 0), (2, 1, (0, 0, 2, 2), 0)])
    scores, class_ap = coco_scores(coco, perfect(coco))
    assert scores == dict.fromkeys(SCORES, pytest.approx(100))
    assert class_ap == {"class 1": pytest.approx(100), "class 18": pytest.approx(100)}


def test_a_case_counted_by_hand():
    """Two objects; in order of score a miss, a hit of IoU 1 and a hit of IoU 0.6.

    At IoU 0.5 precision is 1/2 at recall 1/2 and 2/3 at recall 1, interpolated to 2/3 everywhere.
    At 0.65 and more only the first hit counts: precision 1/2 up to recall 1/2, then none: of the
    101 levels of recall 51. Thresholds 0.5, 0.55 and 0.6 are of the first kind, seven of the other.
    """
    coco = truth([(1, 1, (0, 0, 50, 50), 0), (2, 1, (0, 0, 100, 60), 0)])
    found = [
        result(1, 1, (60, 60, 30, 30), 0.9),
        result(1, 1, (0, 0, 50, 50), 0.8),
        result(2, 1, (0, 0, 100, 100), 0.7),
    ]
    scores, class_ap = coco_scores(coco, found)
    high, low = 100 * 2 / 3, 100 * 51 / 101 / 2
    for kind in ("bbox", "mask"):
        assert scores[f"ap50_{kind}"] == pytest.approx(high)
        assert scores[f"ap75_{kind}"] == pytest.approx(low)
        assert scores[f"ap_{kind}"] == pytest.approx((3 * high + 7 * low) / 10)
    assert class_ap == {"class 1": pytest.approx(scores["ap_bbox"]), "class 18": None}


def test_boxes_and_masks_are_scored_apart():
    coco = truth([(1, 1, (0, 0, 50, 50), 0)])
    wrong_mask = {**result(1, 1, (0, 0, 50, 50), 0.9), "segmentation": filled(0, 0, 50, 30)}
    scores, _ = coco_scores(coco, [wrong_mask])
    assert scores["ap75_bbox"] == pytest.approx(100)
    assert scores["ap50_mask"] == pytest.approx(100)
    assert scores["ap75_mask"] == 0


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong():
    objects = [(1, 1, (0, 0, 30, 30), 0), (1, 1, (40, 40, 60, 60), 1)]
    found = [
        result(1, 1, (0, 0, 30, 30), 0.5),
        result(1, 1, (45, 45, 10, 10), 0.9),
        result(1, 1, (60, 60, 20, 20), 0.8),
    ]
    assert coco_scores(truth(objects), found)[0]["ap_bbox"] == pytest.approx(100)
    assert coco_scores(truth(objects[:1]), found)[0]["ap_bbox"] < 40


def test_false_detections_in_an_image_without_objects_count():
    coco = truth([(1, 1, (0, 0, 30, 30), 0)])
    found = [result(1, 1, (0, 0, 30, 30), 0.5), result(2, 1, (0, 0, 30, 30), 0.9)]
    assert coco_scores(coco, found)[0]["ap_bbox"] == pytest.approx(50)


def test_nothing_found_and_nothing_to_find_are_zero():
    coco = truth([(1, 1, (0, 0, 30, 30), 0)])
    assert coco_scores(coco, []) == (dict.fromkeys(SCORES, 0), {"class 1": 0, "class 18": None})
    nothing = truth([])
    for found in ([], [result(1, 1, (0, 0, 30, 30), 0.5)]):
        scores, class_ap = coco_scores(nothing, found)
        assert scores == dict.fromkeys(SCORES, 0)
        assert set(class_ap.values()) == {None}


def random_results(coco, seed=0):
    """Shifted, doubled, missed and invented detections of a ground truth."""
    rng = np.random.default_rng(seed)
    categories = sorted(coco.cats)
    found = []
    for annotation in coco.dataset["annotations"]:
        image = coco.imgs[annotation["image_id"]]
        for _ in range(rng.integers(0, 3)):
            mask = np.roll(coco.annToMask(annotation), rng.integers(-6, 7, 2), axis=(0, 1))
            category = annotation["category_id"] if rng.random() < 0.8 else rng.choice(categories)
            box = np.array(annotation["bbox"]) + rng.normal(0, 4, 4)
            box[2:] = np.maximum(box[2:], 1)
            found.append(
                {
                    "image_id": image["id"],
                    "category_id": int(category),
                    "bbox": box.tolist(),
                    "score": float(rng.random()),
                    "segmentation": mask_utils.encode(np.asfortranarray(mask)),
                }
            )
    return found


def official_scores(json_path, found, tmp_path):
    """pycocotools on files, as its own demonstration runs it."""
    official = {}
    for kind, name, key in (("bbox", "bbox", "bbox"), ("segm", "mask", "segmentation")):
        plain = [{k: r[k] for k in ("image_id", "category_id", "score", key)} for r in found]
        if key == "segmentation":
            for entry in plain:
                rle = entry[key]
                entry[key] = {"size": rle["size"], "counts": rle["counts"].decode()}
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps(plain))
        coco = COCO(json_path)
        evaluation = COCOeval(coco, coco.loadRes(str(path)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        official |= {
            f"{prefix}_{name}": 100 * evaluation.stats[index]
            for index, prefix in enumerate(("ap", "ap50", "ap75"))
        }
    return official


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """20 validation images of the miniature: an empty one, two with a crowd, objects in parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini_coco, "IMAGES", {"train": 1, "val": 20})
        return Coco(mini_coco.ensure(tmp_path_factory.mktemp("coco")), "val")


def test_scores_are_those_of_pycocotools_on_the_json_files(miniature, tmp_path, capsys):
    found = random_results(miniature.ground_truth)
    before = json.dumps(miniature.ground_truth.dataset)
    counts = [dict(entry) for entry in found]
    capsys.readouterr()
    scores, _ = coco_scores(miniature.ground_truth, found)
    assert not capsys.readouterr().out
    assert json.dumps(miniature.ground_truth.dataset) == before
    assert found == counts
    official = official_scores(miniature.json_path, found, tmp_path)
    assert 5 < official["ap_bbox"] < 95
    assert scores == {name: pytest.approx(value, abs=1e-6) for name, value in official.items()}


def test_class_ap_averages_to_the_score(miniature):
    scores, class_ap = coco_scores(miniature.ground_truth, random_results(miniature.ground_truth))
    assert list(class_ap) == miniature.class_names
    assert np.mean(list(class_ap.values())) == pytest.approx(scores["ap_bbox"])


# -------------------------------------------------------------------------------------- module


class Replaying(nn.Module):
    """Stands for a network: losses given beforehand, detections looked up by the image's mean."""

    def __init__(self, losses=(0.5, 0.25), detections=None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.losses, self.detections, self.targets = losses, detections or {}, None

    def forward(self, images, targets=None):
        if self.training:
            self.targets = targets
            names = (f"loss_{index}" for index in range(len(self.losses)))
            return {n: self.weight * value for n, value in zip(names, self.losses, strict=True)}
        return [self.detections[round(255 * image.mean().item(), 3)] for image in images]


def as_batch(samples):
    batch = []
    for sample in samples:
        image = torch.from_numpy(sample["image"].copy()).permute(2, 0, 1).float() / 255
        arrays = {key: torch.from_numpy(sample[key]) for key in ("boxes", "labels", "masks")}
        batch.append({**sample, **arrays, "image": image})
    return batch


def ideal_network(dataset):
    """Finds exactly the objects of a dataset."""
    detections = {}
    for sample in as_batch([dataset[index] for index in range(len(dataset))]):
        detections[round(255 * sample["image"].mean().item(), 3)] = {
            "boxes": sample["boxes"],
            "labels": sample["labels"],
            "scores": torch.full((len(sample["labels"]),), 0.9),
            "masks": sample["masks"][:, None].float(),
        }
    assert len(detections) == len(dataset)
    return Replaying(detections=detections)


def module_of(network, eval_set):
    cfg = OmegaConf.create({"task": {"name": "coco"}, "data": {"batch_size": 2}})
    module = Detection(network, cfg, {"name": "gn"}, eval_set)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


def evaluated(module, indices, batch_size=3):
    dataset = module.eval_set
    module.eval()
    for start in range(0, len(indices), batch_size):
        samples = [dataset[index] for index in indices[start : start + batch_size]]
        module.validation_step(as_batch(samples), start)
    module.on_validation_epoch_end()
    return module.scores


def test_results_have_coco_s_form_and_the_dataset_s_category_numbers():
    detections = {
        "boxes": torch.tensor([[1.0, 2.0, 4.0, 6.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.75]),
        "masks": torch.tensor([[[[0.2, 0.5, 0.9], [0.0, 0.4, 0.5]]]]),
    }
    (found,) = coco_results(detections, 139, [1, 44, 85])
    assert found["category_id"] == 44
    assert found["image_id"] == 139
    assert found["bbox"] == [1, 2, 3, 4]
    assert found["score"] == 0.75
    assert mask_utils.decode(found["segmentation"]).tolist() == [[0, 1, 1], [0, 0, 1]]
    assert detections["boxes"].tolist() == [[1, 2, 4, 6]]
    assert coco_results({k: v[:0] for k, v in detections.items()}, 139, [1, 44, 85]) == []


def test_an_evaluation_of_exact_detections_scores_100_and_a_second_starts_anew(miniature):
    module = module_of(ideal_network(miniature), miniature)
    indices = list(range(len(miniature)))
    assert evaluated(module, indices) == dict.fromkeys(SCORES, pytest.approx(100))
    assert set(module.breakdown["class_ap"]) == set(miniature.class_names)
    assert evaluated(module, indices[:10])["ap50_bbox"] < 80


def test_training_sums_the_losses_and_passes_targets_alone(miniature):
    network = Replaying(losses=(0.5, 0.25, 1.0))
    module = module_of(network, miniature)
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    module.log_dict = lambda values, **_: logged.update({k: float(v) for k, v in values.items()})
    loss = module.training_step(as_batch([miniature[0], miniature[1]]), 0)
    assert loss.item() == pytest.approx(1.75)
    assert loss.requires_grad
    assert logged == {"loss": 1.75, "loss_0": 0.5, "loss_1": 0.25, "loss_2": 1.0}
    assert [set(target) for target in network.targets] == [{"boxes", "labels", "masks"}] * 2


def test_a_loss_that_is_not_finite_ends_the_training(miniature, monkeypatch):
    module = module_of(Replaying(losses=(0.5, float("nan"))), miniature)
    monkeypatch.setattr(module, "_diverged", InputError)
    with pytest.raises(InputError, match="the loss is nan"):
        module.training_step(as_batch([miniature[0]]), 0)


def evaluate_a_part(rank: int, root: str, rendezvous: str, queue) -> None:
    """One of two processes, which has every second image."""
    os.environ.update(OMP_NUM_THREADS="1")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    dataset = Coco(root, "val")
    module = module_of(ideal_network(dataset), dataset)
    queue.put((rank, evaluated(module, list(range(rank, len(dataset), 2)))))
    torch.distributed.destroy_process_group()


def test_two_processes_score_as_one_and_both_know(miniature, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (str(miniature.root), str(tmp_path / "rendezvous"), queue)
    processes = [
        context.Process(target=evaluate_a_part, args=(rank, *arguments)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    scores = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
    assert scores[0] == scores[1] == dict.fromkeys(SCORES, pytest.approx(100))
