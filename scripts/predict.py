"""Maps, classes or objects of images and rasters, by a trained network.

python scripts/predict.py RUN photo.png folder/ scene.tif --out maps

RUN is a run's directory or an export. Segmentation writes NAME_classes.tif (or .png) in colours of
the task, classification predictions.csv, detection predictions.json and NAME_objects.png. The same
command again continues a segmentation that was stopped; several processes with the same command
divide the work. With --convert, norm=... among the inputs is the norm to use in place of the run's.
"""

import argparse
import sys

from tasks.config import amount, is_norm, path_of, positive
from tasks.errors import InputError, command


@command
def main() -> None:
    arguments = parse()
    if not arguments.run.is_dir():
        raise InputError(f"{arguments.run} is no folder: give a run's directory or an export")
    from tasks.prediction.command import predict_all

    if predict_all(arguments):
        sys.exit(2)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", metavar="RUN", type=path_of, help="a run's directory, or an export")
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="PNG, JPEG, TIFF, VRT, or a folder of them"
    )
    parser.add_argument("--out", type=path_of, required=True, help="folder to write into")
    parser.add_argument(
        "--halo",
        type=halo,
        default=None,
        metavar="auto|N",
        help="margin of a tile in pixels, dropped (default: the network's reach)",
    )
    parser.add_argument(
        "--tile",
        type=positive,
        metavar="N",
        help="side of what a tile keeps, in pixels (default: 512, or the image)",
    )
    parser.add_argument(
        "--blend",
        action="store_true",
        help="blend overlapping tiles where no halo is exact (GN, LN, IN)",
    )
    parser.add_argument(
        "--memory",
        type=amount,
        default=2.0,
        metavar="GB",
        help="limit for the tensors of one tile (default: 2)",
    )
    parser.add_argument(
        "--bands",
        type=bands,
        metavar="1,2,3",
        help="bands of the input to use, in the network's order",
    )
    parser.add_argument(
        "--scale",
        type=amount,
        metavar="X",
        help="input value that becomes 1 (default: 255 or 65535)",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="also write them, a band per class"
    )
    parser.add_argument("--cog", action="store_true", help="write cloud-optimized GeoTIFFs")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--checkpoint",
        choices=["last"],
        help="use the last checkpoint of a run that has not finished",
    )
    parser.add_argument(
        "--convert",
        action="store_true",
        help="use the norm given by norm=... instead (GN, LN, IN, LCN)",
    )
    arguments = parser.parse_intermixed_args()
    arguments.norm = [text for text in arguments.inputs if is_norm(text)]
    arguments.inputs = [path_of(text) for text in arguments.inputs if text not in arguments.norm]
    return arguments


def halo(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number")
    return int(text)


def bands(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


if __name__ == "__main__":
    main()
