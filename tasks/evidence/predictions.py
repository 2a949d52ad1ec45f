"""Predictions of finished runs, compared. The one module of evidence that needs torch."""

import functools

import numpy as np
import torch
from omegaconf import DictConfig

from tasks.data import IGNORED, Dataset, open_datasets
from tasks.data.loading import Augmented
from tasks.data.plots import colorize
from tasks.data.transforms import make_transform
from tasks.errors import InputError
from tasks.evidence.pictures import Comparison, densest_window
from tasks.models import build_model, scaled_norm
from tasks.models.checkpoint import load_weights
from tasks.modules.segmentation import Segmentation
from tasks.protocol import task_facts
from tasks.runs.record import FinishedRun


def trained_network(run: FinishedRun) -> Segmentation:
    """The network of a run in evaluation mode, on the CPU; images to logits at their size."""
    model, norm = build_model(run.cfg), scaled_norm(run.cfg)
    load_weights(model, str(run.directory / "last.ckpt"), norm)
    return Segmentation(model, run.cfg, norm).eval()


def predict(network: Segmentation, cfg: DictConfig, dataset: Dataset, index: int) -> np.ndarray:
    """The predicted train ids [H, W] of one whole image."""
    sample = Augmented(dataset, make_transform(cfg, training=False), cfg.seed)[0, index]
    with torch.inference_mode():
        logits = network(torch.as_tensor(sample["image"])[None])
        return network.decide(logits)[0].byte().numpy()


@functools.cache
def compare(left: FinishedRun, right: FinishedRun, count: int = 2) -> list[Comparison]:
    """Two runs on images that are spread evenly over the evaluation split (Figure 2).

    Raises:
        InputError: the data is not there, or its labels are not public.
    """
    dataset = open_datasets(left.cfg).eval
    if not dataset.labelled:
        raise InputError("the labels of the evaluation split are not public")
    facts = task_facts(left.task)
    networks = {run.label: (run, trained_network(run)) for run in (left, right)}
    comparisons = []
    for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist():
        sample = dataset[index]
        image, label = np.asarray(sample["image"]), np.asarray(sample["label"])
        found = {n: predict(net, run.cfg, dataset, index) for n, (run, net) in networks.items()}
        differ = (found[left.label] != found[right.label]) & (label != IGNORED)
        labels = {"ground truth": label, **found}
        pictures = {"input": image[..., :3]}
        pictures |= {title: colorize(label, facts) for title, label in labels.items()}
        comparisons.append(Comparison(pictures, densest_window(differ)))
    return comparisons
