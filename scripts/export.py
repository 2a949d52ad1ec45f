"""A run's network as a folder to share: weights, configuration, model card, ONNX on request.

python scripts/export.py RUN --out DIR
python scripts/predict.py DIR photo.png --out maps

No path, host or user name is in it.
"""

import argparse
from pathlib import Path

from tasks.config import path_of
from tasks.errors import command
from tasks.evidence.card import model_card
from tasks.prediction.export import export


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", metavar="RUN", type=path_of, help="a run's directory")
    parser.add_argument("--out", type=path_of, required=True, help="folder to write")
    parser.add_argument(
        "--onnx", action="store_true", help="also write model.onnx, which takes any image size"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing export")
    parser.add_argument(
        "--checkpoint",
        choices=["last"],
        help="use the last checkpoint of a run that has not finished",
    )
    options = parser.parse_args()
    for path in export(
        Path(options.run), options.out, model_card, checkpoint=options.checkpoint,
        onnx=options.onnx, overwrite=options.overwrite,
    ):  # fmt: skip
        print(path)


if __name__ == "__main__":
    main()
