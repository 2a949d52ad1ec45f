"""Checks a dataset before a long training: layout, counts, sizes, label values; every file is read.

python scripts/check_data.py task=inria data.root=/path/to/inria
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tasks.config import compose
from tasks.data import Dataset, dataset_module, is_labelled, open_splits
from tasks.data.tiles import RandomPatches, TileWindows
from tasks.errors import InputError

SHOWN = 20  # problems that are printed; all are counted
WINDOW = (1024, 1024)  # pixels of a tile that are read at once


def main() -> None:
    overrides = sys.argv[1:]
    if {"-h", "--help"} & set(overrides) or not overrides:
        print(__doc__)
        sys.exit(0 if overrides else 2)
    try:
        cfg = compose(overrides)
        problems = [problem for split in splits(cfg) for problem in check_split(cfg, split)]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    problems = list(dict.fromkeys(problems))
    print()
    if not problems:
        print(f"{cfg.task.name}: everything is as it should be")
        return
    print(f"{cfg.task.name}: {len(problems)} problem{'s' * (len(problems) > 1)}", file=sys.stderr)
    for problem in problems[:SHOWN]:
        print(f"- {problem}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"  and {len(problems) - SHOWN} more", file=sys.stderr)
    sys.exit(2)


def splits(cfg: DictConfig) -> list[str]:
    """Every split of the task; INRIA's val exists only where tiles are held out for it."""
    names = dict.fromkeys(["train", *cfg.task.eval_splits, cfg.task.test_split])
    skipped = {None} if cfg.task.name != "inria" or cfg.data.holdout else {None, "val"}
    return [name for name in names if name not in skipped]


def check_split(cfg: DictConfig, split: str) -> list[str]:
    """What is wrong with a split; prints what it holds."""
    module = dataset_module(cfg)
    try:
        dataset = open_splits(cfg, [split])[0]
    except InputError as error:
        print(f"{split:6} cannot be opened")
        return [str(error)]
    by_tile = isinstance(dataset, RandomPatches | TileWindows)
    count = len(dataset.tiles) if by_tile else len(dataset)
    expected = (
        module.SAMPLES.get(split) if cfg.data.name == "full" and not cfg.data.holdout else None
    )
    what = "tiles" if by_tile else "samples"
    labels = "" if is_labelled(dataset) else ", no labels"
    print(f"{split:6} {count:,}{f' of {expected:,}' if expected else ''} {what}{labels}")
    problems = []
    if expected is not None and count != expected:
        problems.append(
            f"{split} has {count:,} {what}, the dataset {expected:,}: is every archive unpacked?"
        )
    sizes: Counter = Counter()
    classes: Counter = Counter()
    for sample in samples(pieces(dataset), problems):
        if not by_tile:
            sizes[sample["image"].shape[:2]] += 1
        count_classes(sample, classes)
    sizes.update(dataset.tile_sizes if by_tile else ())
    print(f"       sizes: {_sizes(sizes)}")
    size = getattr(module, "SIZE", None) if cfg.data.name == "full" else None
    others = sum(n for found, n in sizes.items() if found != size)
    if size is not None and others:
        problems.append(
            f"{split}: {others:,} {what} are not {size[0]} x {size[1]}; {_sizes(sizes)}"
        )
    if classes:
        names = cfg.task.class_names or dataset.class_names
        print(f"       classes: {_shares(classes, list(names))}")
    return problems


def pieces(dataset: Dataset) -> Dataset:
    """What to read to have read everything: the samples, or windows over whole tiles."""
    if isinstance(dataset, RandomPatches | TileWindows):
        return TileWindows(
            dataset.tiles, WINDOW, 0, dataset.bands, dataset.train_ids, dataset.identity
        )
    return dataset


def samples(dataset: Dataset, problems: list[str]) -> Iterator[dict]:
    """Every sample that can be read; what is wrong with the others is added to ``problems``."""
    for index in tqdm(range(len(dataset)), leave=False, unit="read", disable=None):
        try:
            yield dataset[index]
        except InputError as error:
            problems.append(str(error))


def count_classes(sample: dict, classes: Counter) -> None:
    """Adds pixels, objects or images of each class id."""
    if "labels" in sample:
        classes.update((sample["labels"] - 1).tolist())
    elif isinstance(sample["label"], np.ndarray):
        ids, counts = np.unique(sample["label"], return_counts=True)
        classes.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    else:
        classes[sample["label"]] += 1


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
