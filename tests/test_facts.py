"""The facts of a task agree with the rest of its yaml and are of no run's identity."""

import copy

import pytest
from omegaconf import OmegaConf

from tasks.config import compose, options
from tasks.data import dataset_module
from tasks.errors import InputError
from tasks.evidence.rows import published_rows
from tasks.identity import run_identity
from tasks.protocol import task_facts
from tasks.schema import check_config


@pytest.mark.parametrize("task", options("task"))
def test_facts_are_of_one_mind_with_the_configuration(task):
    cfg, facts = compose([f"task={task}"]), task_facts(task)
    assert cfg.task.name == task
    assert callable(dataset_module(cfg).open_splits)
    assert facts.primary in facts.metrics
    assert set(facts.samples) <= {"train", *cfg.task.eval_splits, cfg.task.test_split}
    assert cfg.task.holdout_split in (None, *cfg.task.eval_splits)
    if cfg.task.num_classes is None:
        assert facts.classes is None
    else:
        assert list(cfg.task.class_names) == facts.class_names
        assert len(facts.class_names) == cfg.task.num_classes
        colors = [*facts.classes.values(), facts.ignored_color]
        assert all(len(color) == 3 and all(0 <= c <= 255 for c in color) for color in colors)
        assert len({tuple(color) for color in facts.classes.values()}) == len(facts.classes)


@pytest.mark.parametrize("row", published_rows().values(), ids=lambda row: row.experiment)
def test_metrics_are_the_columns_of_the_published_table(row):
    facts = task_facts(row.task)
    published = row.metrics[-len(facts.metrics) :] if facts.metrics_by_group else row.metrics
    assert [name for name in facts.metrics if name in published] == published


@pytest.mark.parametrize("task", options("task"))
def test_facts_take_no_part_in_the_identity_of_a_run(task):
    """A run made before its task had facts has the directory that it has today."""
    cfg = compose([f"task={task}"])
    older = copy.deepcopy(cfg)
    OmegaConf.set_struct(older, False)
    older.task.class_names = OmegaConf.to_container(cfg.task, resolve=True)["class_names"]
    del older.task.facts, older.task.holdout_split
    assert run_identity(older, "dataset", 8) == run_identity(cfg, "dataset", 8)
    assert task_facts(older.task.name).primary


def test_a_task_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"task=nowhere: no such task; there are: .*cityscapes"):
        task_facts("nowhere")


@pytest.mark.parametrize(("task", "holdout", "is_possible"), [
    ("inria", "true", True), ("inria", "false", True), ("cityscapes", "false", True),
    ("cityscapes", "true", False), ("inria", "5", False),
])  # fmt: skip
def test_tiles_are_held_out_only_where_the_task_has_a_split_for_them(task, holdout, is_possible):
    cfg = compose([f"task={task}", f"data.holdout={holdout}"])
    if is_possible:
        check_config(cfg)
    else:
        with pytest.raises(InputError, match=r"data.holdout=\w+: must be"):
            check_config(cfg)
