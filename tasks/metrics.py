"""Segmentation scores from one confusion matrix, as the Cityscapes evaluator defines them."""

import torch
from torchmetrics.classification import MulticlassConfusionMatrix


def confusion_matrix(num_classes: int, ignored: int) -> MulticlassConfusionMatrix:
    """Counts pixels [ground truth, prediction] over a whole set and sums them over processes."""
    return MulticlassConfusionMatrix(num_classes, ignore_index=ignored, validate_args=False)


def class_iou(confusion: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every class, in percent, float64 [C].

    NaN for a class that occurs neither in the ground truth nor in the predictions; 0 for one that
    is only predicted, as in the Cityscapes evaluator.

    Args:
        confusion: pixel counts [C, C], rows the ground truth.
    """
    confusion = confusion.double()
    hit = confusion.diagonal()
    return 100 * hit / (confusion.sum(0) + confusion.sum(1) - hit)


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
