"""Contact sheets of real samples, and the picture of a label map."""

import numpy as np
import pytest

from tasks.config import compose
from tasks.data import IGNORED, open_splits
from tasks.data.plots import SHEET_WIDTH, colorize, contact_sheet, label_figure
from tasks.protocol import task_facts

SPLITS = {
    "cityscapes": ["train", "val"],
    "imagenet": ["train", "val"],
    "coco": ["train", "val"],
    "inria": ["train", "val"],
    "chesapeake": ["train", "val", "test"],
}
SMALL = {"inria": ["data.holdout=true", "data.crop=[96,96]", "task.eval_halo=16"]}


@pytest.mark.parametrize("task", SPLITS)
def test_a_contact_sheet_shows_samples_of_every_split(real_data, task):
    cfg = compose([f"task={task}", f"data.root={real_data / task}", *SMALL.get(task, [])])
    splits = dict(zip(SPLITS[task], open_splits(cfg, SPLITS[task]), strict=True))
    sheet = contact_sheet(splits, count=1)
    assert sheet.width == SHEET_WIDTH
    parts = np.array_split(np.asarray(sheet), len(splits))  # a photograph has many colours
    assert all(len(np.unique(part[::4, ::4].reshape(-1, 3), axis=0)) > 500 for part in parts)


def test_a_label_map_has_the_colours_of_the_task_and_of_what_is_ignored():
    facts = task_facts("inria")
    picture = colorize(np.array([[0, 1, IGNORED]]), facts)
    assert picture.tolist() == [[[0, 0, 0], [255, 255, 255], [128, 128, 128]]]
    sample = {"image": np.zeros((4, 6, 3), np.uint8), "label": np.full((4, 6), 1), "name": "tile"}
    figure = label_figure(sample, sample["label"], facts)
    assert [ax.get_title() for ax in figure.axes] == ["input", "ground truth", "prediction"]
    assert (figure.axes[1].images[0].get_array() == 255).all()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*facts.class_names, "ignored"]
