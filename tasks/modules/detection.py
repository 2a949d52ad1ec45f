"""Object detection and instance segmentation: losses and evaluation (paper section 4.2)."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from omegaconf import DictConfig
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from tasks.data import DetectionDataset
from tasks.modules.module import TaskModule

Result = dict[str, Any]  # one detection, an entry of COCO's results format

_KINDS = {"bbox": "bbox", "segm": "mask"}  # pycocotools' name: the paper's
MASK_THRESHOLD = 0.5


class Detection(TaskModule):
    """Trains a Mask R-CNN and evaluates it with COCO's average precision.

    A batch is a list of samples: ``image`` float32 [3, H, W] in 0..1, ``boxes`` float32 [K, 4]
    (x1, y1, x2, y2), ``labels`` int64 [K] from 1, ``masks`` uint8 [K, H, W], ``image_id``.

    Args:
        model: as `tasks.models.mask_rcnn.mask_rcnn` gives it.
        cfg: the configuration.
        norm: the norm layers' configuration, kept in checkpoints.
        eval_set: gives the ground truth and the category of each label.
    """

    def __init__(self, model: nn.Module, cfg: DictConfig, norm: dict, eval_set: DetectionDataset):
        super().__init__(model, cfg, norm)
        self.eval_set = eval_set
        self._results: list[Result] = []

    def training_step(self, batch: list[dict], batch_index: int) -> torch.Tensor:
        targets = [{key: sample[key] for key in ("boxes", "labels", "masks")} for sample in batch]
        losses = self.model([sample["image"] for sample in batch], targets)
        loss = self.finite(torch.stack(list(losses.values())).sum())
        self.log("loss", loss, sync_dist=True, batch_size=len(batch))
        self.log_dict(losses, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: list[dict], batch_index: int) -> None:
        detections = self.model([sample["image"] for sample in batch])
        for sample, found in zip(batch, detections, strict=True):
            self._results += coco_results(found, sample["image_id"], self.eval_set.category_ids)

    def on_validation_epoch_end(self) -> None:
        results, self._results = _from_all_processes(self._results), []
        self.scores, class_ap = coco_scores(self.eval_set.ground_truth, results)
        self.breakdown = {"class_ap": class_ap}
        self.log_scores()


def coco_results(
    detections: dict[str, torch.Tensor], image_id: int, category_ids: Sequence[int]
) -> list[Result]:
    """An image's detections in COCO's results format.

    Args:
        detections: torchvision's: ``boxes`` [K, 4] (x1, y1, x2, y2), ``labels`` [K] from 1,
            ``scores`` [K], ``masks`` [K, 1, H, W] in 0..1.
        image_id: of the image.
        category_ids: of labels 1, 2, ...
    """
    corners = detections["boxes"].float().cpu()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
    masks = (detections["masks"][:, 0] >= MASK_THRESHOLD).to(torch.uint8).cpu().numpy()
    return [
        {
            "image_id": int(image_id),
            "category_id": category_ids[label - 1],
            "bbox": box,
            "score": score,
            "segmentation": mask_utils.encode(np.asfortranarray(mask)),
        }
        for box, label, score, mask in zip(
            boxes.tolist(),
            detections["labels"].tolist(),
            detections["scores"].tolist(),
            masks,
            strict=True,
        )
    ]


def _from_all_processes(results: list[Result]) -> list[Result]:
    """All processes' results in one order, whichever process had which image."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gathered: list[list[Result]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(gathered, results)
        results = [result for part in gathered for result in part]
    return sorted(results, key=lambda result: result["image_id"])


def coco_scores(
    ground_truth: COCO, results: list[Result]
) -> tuple[dict[str, float], dict[str, float | None]]:
    """COCO's average precision of boxes and masks, by pycocotools.

    Args:
        ground_truth: images, categories and annotations; not changed.
        results: detections in COCO's results format, each with ``bbox`` and ``segmentation``; not
            changed. The 100 of the highest score count in each image and category.

    Returns:
        Percent: ``ap_bbox`` (mean over IoU 0.5 to 0.95), ``ap50_bbox``, ``ap75_bbox`` and the same
        for ``mask``; and ``ap_bbox`` by category name, None for one that no annotation has. Without
        detections, or without anything to find, scores are 0.
    """
    scores, class_ap = {}, {}
    for kind, name in _KINDS.items():
        precision = _precision(ground_truth, results, kind)
        chosen = {"ap": precision, "ap50": precision[:1], "ap75": precision[5:6]}
        for prefix, part in chosen.items():
            scores[f"{prefix}_{name}"] = _mean_percent(part) or 0.0
        if kind == "bbox":
            for index, category in enumerate(sorted(ground_truth.getCatIds())):
                class_name = ground_truth.cats[category]["name"]
                class_ap[class_name] = _mean_percent(precision[:, :, index])
    return scores, class_ap


def _precision(ground_truth: COCO, results: list[Result], kind: str) -> np.ndarray:
    """Precision [IoU thresholds, recall levels, categories], -1 for a category without objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        detected = _detected(ground_truth, results, kind)
        evaluation = COCOeval(_copy(ground_truth), detected, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    areas, limits = evaluation.params.areaRngLbl, evaluation.params.maxDets
    return evaluation.eval["precision"][..., areas.index("all"), limits.index(100)]


def _copy(ground_truth: COCO) -> COCO:
    """The same with annotations of its own: pycocotools writes into those it evaluates."""
    copied = COCO()
    copied.dataset = {
        **ground_truth.dataset,
        "annotations": [dict(annotation) for annotation in ground_truth.dataset["annotations"]],
    }
    copied.createIndex()
    return copied


def _detected(ground_truth: COCO, results: list[Result], kind: str) -> COCO:
    """What `COCO.loadRes` makes of results of one kind; it does not take an empty list."""
    if results:
        location = "bbox" if kind == "bbox" else "segmentation"  # the other is derived from it
        keys = ("image_id", "category_id", "score", location)
        return ground_truth.loadRes([{key: result[key] for key in keys} for result in results])
    nothing = COCO()
    nothing.dataset = {**ground_truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def _mean_percent(precision: np.ndarray) -> float | None:
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if defined.size else None
