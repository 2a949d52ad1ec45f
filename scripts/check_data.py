"""Checks a dataset before a long training: layout, counts, sizes, label values; every file is read.

Ends with the checklist of mode=plan: data, disk, memory, batch, precision. The exit code is 0
if everything is as the training needs it, else 2.

python scripts/check_data.py task=inria data.root=/path/to/inria --pictures pictures
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from tasks.config import compose, path_of
from tasks.data import Dataset, Sample, TiledDataset, open_splits
from tasks.data.plots import contact_sheet
from tasks.errors import InputError, command, told_of
from tasks.protocol import task_facts
from tasks.runs.plan.plan import Check, checklist

SHOWN = 20  # problems that are printed; all are counted
WINDOW = (1024, 1024)  # pixels of a tile that are read at once


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", help="as for train.py: task=..., data.root=...")
    parser.add_argument(
        "--pictures", type=path_of, metavar="DIR",
        help="write DIR/<task>.png as well: samples of every split with their labels",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args()
    cfg = compose(arguments.overrides)
    problems: list[str] = []
    opened: dict[str, Dataset] = {}
    for split in splits(cfg):
        try:
            (opened[split],) = open_splits(cfg, [split])
            problems += check_split(cfg, split, opened[split])
        except InputError as error:
            print(f"{split:6} cannot be opened")
            problems.append(str(error))
    if arguments.pictures is not None and opened:
        with told_of(arguments.pictures):
            print(f"pictures: {write_pictures(cfg, opened, arguments.pictures)}")
    problems = list(dict.fromkeys(problems))
    tell(cfg.task.name, problems)
    if not show_checklist(cfg, problems):
        sys.exit(2)


def show_checklist(cfg: DictConfig, problems: list[str]) -> bool:
    """Prints what else the training needs; returns whether all is there, the data included."""
    from tasks.runs.plan.making import make_plan  # and torch with it

    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}, see above"
    data = Check("data", not problems, count if problems else "every file was read")
    print(flush=True)
    try:
        plan = make_plan(cfg, data)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    print(checklist(plan.checks))
    return plan.is_ready


def tell(task: str, problems: list[str]) -> None:
    """Prints what is wrong with the data."""
    print(flush=True)
    if not problems:
        print(f"{task}: everything is as it should be")
        return
    print(f"{task}: {len(problems)} problem{'s' * (len(problems) > 1)}", file=sys.stderr)
    for problem in problems[:SHOWN]:
        print(f"- {problem}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"  and {len(problems) - SHOWN} more", file=sys.stderr)


def splits(cfg: DictConfig) -> list[str]:
    """Every split of the task; the split of held-out tiles only where tiles are held out."""
    names = dict.fromkeys(["train", *cfg.task.eval_splits, cfg.task.test_split])
    skipped = {None} if cfg.data.holdout else {None, cfg.task.holdout_split}
    return [name for name in names if name not in skipped]


def check_split(cfg: DictConfig, split: str, dataset: Dataset) -> list[str]:
    """What is wrong with a split; prints what it holds."""
    facts, is_full = task_facts(cfg.task.name), cfg.data.name == "full"
    tile_sizes = dataset.tile_sizes if isinstance(dataset, TiledDataset) else None
    count, what = len(dataset), "samples"
    if tile_sizes is not None:
        count, what = len(tile_sizes), "tiles"
    expected = facts.samples.get(split) if is_full and not cfg.data.holdout else None
    labels = "" if dataset.labelled else ", no labels"
    print(f"{split:6} {count:,}{f' of {expected:,}' if expected else ''} {what}{labels}")
    problems = []
    if expected is not None and count != expected:
        problems.append(
            f"{split} has {count:,} {what}, the dataset {expected:,}: is every archive unpacked?"
        )
    sizes: Counter = Counter(tile_sizes)
    classes: Counter = Counter()
    for sample in samples(dataset, problems):
        if tile_sizes is None:
            sizes[sample["image"].shape[:2]] += 1
        count_classes(sample, classes)
    print(f"       sizes: {_sizes(sizes)}")
    size = facts.image_size if is_full else None
    others = sum(n for found, n in sizes.items() if size is not None and found != tuple(size))
    if size is not None and others:
        problems.append(
            f"{split}: {others:,} {what} are not {size[0]} x {size[1]}; {_sizes(sizes)}"
        )
    if classes:
        print(f"       classes: {_shares(classes, list(dataset.class_names))}")
    return problems


def samples(dataset: Dataset, problems: list[str]) -> Iterator[Sample]:
    """Everything that can be read, tiles whole; what is wrong is added to ``problems``."""
    if isinstance(dataset, TiledDataset):
        dataset = dataset.covered(WINDOW)
    for index in tqdm(range(len(dataset)), leave=False, unit="read", disable=None):
        try:
            yield dataset[index]
        except InputError as error:
            problems.append(str(error))


def count_classes(sample: Sample, classes: Counter) -> None:
    """Adds pixels, objects or images of each class id."""
    if "labels" in sample:
        classes.update((sample["labels"] - 1).tolist())
    elif isinstance(sample["label"], np.ndarray):
        ids, counts = np.unique(sample["label"], return_counts=True)
        classes.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    else:
        classes[sample["label"]] += 1


def write_pictures(cfg: DictConfig, opened: dict[str, Dataset], folder: Path) -> Path:
    """Writes the contact sheet of the splits and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cfg.task.name}.png"
    contact_sheet(opened).save(path)
    return path


def _sizes(sizes: Counter) -> str:
    common = ", ".join(f"{h} x {w} ({n:,})" for (h, w), n in sizes.most_common(3))
    return common + (f" and {len(sizes) - 3} others" if len(sizes) > 3 else "")


def _shares(classes: Counter, names: list[str]) -> str:
    classes = Counter({id_: n for id_, n in classes.items() if id_ < len(names)})
    count = sum(classes.values())
    common = [f"{names[id_]} {100 * n / count:.1f} %" for id_, n in classes.most_common(8)]
    absent = len(names) - len(classes)
    return ", ".join(common) + (f"; {absent} of {len(names)} do not occur" if absent else "")


if __name__ == "__main__":
    main()
