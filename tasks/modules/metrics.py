"""Segmentation scores from confusion matrices, as the datasets' evaluators define them."""

from collections.abc import Sequence

import torch
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix


class ConfusionByGroup(Metric):
    """Counts pixels [group, ground truth, prediction] over a whole set and over all processes.

    Args:
        num_groups: groups (cities) that are counted apart.
        num_classes: classes of labels and predictions.
        ignored: label value of pixels that do not count.
    """

    full_state_update = False
    counts: torch.Tensor

    def __init__(self, num_groups: int, num_classes: int, ignored: int):
        super().__init__()
        self.num_classes, self.ignored = num_classes, ignored
        counts = torch.zeros(num_groups, num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, predictions: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> None:
        """Adds predictions and labels, int64 [N, H, W], of samples of the groups, int64 [N]."""
        for group, prediction, label in zip(groups.tolist(), predictions, labels, strict=True):
            self.counts[group] += multiclass_confusion_matrix(
                prediction, label, self.num_classes, ignore_index=self.ignored, validate_args=False
            )

    def compute(self) -> torch.Tensor:
        return self.counts


def class_iou(confusion: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every class, in percent, float64 [..., C].

    NaN for a class that occurs neither in the ground truth nor in the predictions; 0 for one that
    is only predicted, as in the Cityscapes evaluator.

    Args:
        confusion: pixel counts [..., C, C], rows the ground truth.
    """
    confusion = confusion.double()
    hit = confusion.diagonal(dim1=-2, dim2=-1)
    return 100 * hit / (confusion.sum(-2) + confusion.sum(-1) - hit)


def segmentation_scores(confusion: torch.Tensor) -> dict[str, float]:
    """``miou``, ``pixel_acc``, ``mean_acc`` (columns of the paper's tables) and ``miou_present``.

    Percent. ``miou`` is the mean over classes that have an IoU (see `class_iou`), ``miou_present``
    over those that occur in the ground truth; both are the same once every class does.

    Args:
        confusion: pixel counts [C, C], rows the ground truth.
    """
    confusion = confusion.double()
    iou, occurs = class_iou(confusion), confusion.sum(1) > 0
    recall = confusion.diagonal() / confusion.sum(1)
    scores = {
        "miou": iou.nanmean(),
        "pixel_acc": 100 * confusion.diagonal().sum() / confusion.sum(),
        "mean_acc": 100 * recall.nanmean(),
        "miou_present": iou[occurs].mean(),
    }
    return {name: value.item() for name, value in scores.items()}


def building_scores(confusion: torch.Tensor, groups: Sequence[str]) -> dict[str, float]:
    """``<group>_iou`` and ``<group>_acc`` for every group, ``overall_iou`` and ``overall_acc``.

    Percent; the IoU is that of class 1, the accuracy that of all pixels, overall from the summed
    counts (Table 7). A group without a labelled pixel is left out.

    Args:
        confusion: pixel counts [G, 2, 2], rows the ground truth.
        groups: names of the G groups.
    """
    scores = {}
    parts = [*zip(groups, confusion, strict=True), ("overall", confusion.sum(0))]
    for name, counts in parts:
        if counts.sum() > 0:
            scores[f"{name}_iou"] = class_iou(counts)[1].item()
            accuracy = 100 * counts.diagonal().sum().double() / counts.sum()
            scores[f"{name}_acc"] = accuracy.item()
    return scores
