"""Predictions of finished runs, compared. The one module of evidence that needs torch."""

import functools

import numpy as np
import torch

from tasks.data import IGNORED, open_datasets
from tasks.data.plots import colorize
from tasks.errors import InputError
from tasks.evidence.pictures import Comparison, densest_window
from tasks.prediction.network import Network, load_network
from tasks.protocol import task_facts
from tasks.runs.record import FinishedRun


def _predicted(network: Network, image: np.ndarray) -> np.ndarray:
    """The predicted train ids [H, W] of one whole image."""
    with torch.inference_mode():
        return network.decide(network(network.prepare(image)[None]))[0].numpy()


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
    networks = {run.label: load_network(run.directory) for run in (left, right)}
    comparisons = []
    for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist():
        sample = dataset[index]
        image, label = np.asarray(sample["image"]), np.asarray(sample["label"])
        found = {label: _predicted(network, image) for label, network in networks.items()}
        differ = (found[left.label] != found[right.label]) & (label != IGNORED)
        labels = {"ground truth": label, **found}
        pictures = {"input": image[..., :3]}
        pictures |= {title: colorize(label, facts) for title, label in labels.items()}
        comparisons.append(Comparison(pictures, densest_window(differ)))
    return comparisons
