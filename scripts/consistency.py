"""Tile mismatch of segmentation runs: what changes when tiles are cut elsewhere.

python scripts/consistency.py RUN... --out DIR
python scripts/consistency.py RUN norm=lcn norm.groups=8 norm.window=286,572 --convert

A line for each run, norm, halo and shift: the share of pixels whose class changes, and the
probability that moves to other classes, both in percent. With norm=... a run is measured with that
norm in place of its own as well; values with commas give a line each.
"""

import argparse

from tasks.config import is_norm, path_of, positive
from tasks.errors import InputError, command, say, told_of


@command
def main() -> None:
    arguments = parse()
    runs = [path_of(text) for text in arguments.runs if not is_norm(text)]
    norms = [text for text in arguments.runs if is_norm(text)]
    if not runs:
        raise InputError("give at least one run's directory")
    for run in runs:
        if not run.is_dir():
            raise InputError(f"{run} is no folder: give a run's directory or an export")
    if norms and not arguments.convert:
        raise InputError(
            f"{norms[0]} puts another norm in a run's place: ask for it with --convert"
        )

    from tqdm import tqdm

    from tasks.errors import write_atomically
    from tasks.prediction.consistency import COLUMNS, as_csv, cells, lines_of

    maps: list | None = None if arguments.out is None else []
    lines = list(tqdm(lines_of(runs, norms, arguments, maps), unit="line", disable=None))
    rows = [COLUMNS, *map(cells, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    if maps is not None:
        from tasks.prediction.consistency_charts import draw_lines, draw_maps

        out = arguments.out
        files = [out / f"consistency{end}" for end in (".csv", ".png", "_maps.png")]
        with told_of(out):
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(files[0], as_csv(lines))
            draw_lines(lines, files[1])
            draw_maps(maps, files[2])
        say(", ".join(map(str, files)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run's directory, an export, or norm=..."
    )
    parser.add_argument(
        "--images",
        nargs="+",
        type=path_of,
        metavar="INPUT",
        help="images to compare (default: from the split that the run is scored on)",
    )
    parser.add_argument(
        "--count", type=positive, default=4, help="images of the split (default: 4)"
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=4,
        help="tiles compared per image, from its middle outwards (default: 4)",
    )
    parser.add_argument(
        "--tile",
        type=positive,
        metavar="N",
        help="side of what a tile keeps, in pixels (default: the training crop)",
    )
    parser.add_argument(
        "--halo",
        type=lengths,
        metavar="N,N,...",
        help="margins of a tile, dropped (default: 0, 1/4, 1/2 and 1 times --tile)",
    )
    parser.add_argument(
        "--shift",
        type=lengths,
        metavar="N,N,...",
        help="shifts of the tiles (default: the network's total stride, half of --tile)",
    )
    parser.add_argument(
        "--convert", action="store_true", help="use the norm given by norm=... instead of the run's"
    )
    parser.add_argument(
        "--checkpoint",
        choices=["last"],
        help="use the last checkpoint of a run that has not finished",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--out", metavar="DIR", type=path_of, help="also write a CSV, a chart and maps there"
    )
    return parser.parse_intermixed_args()


def lengths(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers, such as 0,64")
    return [int(part) for part in parts]


if __name__ == "__main__":
    main()
