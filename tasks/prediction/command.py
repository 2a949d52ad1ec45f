"""What ``scripts/predict.py`` does: predicts its inputs one by one and names unreadable ones."""

import argparse
import csv
import io
from pathlib import Path

from tqdm import tqdm

from tasks.data.files import read_rgb
from tasks.errors import InputError, say, say_left_out, told_of, write_atomically
from tasks.prediction.maps import Options, predict_map
from tasks.prediction.network import Network, device_of, load_network, predict
from tasks.prediction.objects import predict_objects
from tasks.prediction.source import find_images


def predict_all(arguments: argparse.Namespace) -> int:
    """Predicts every input; returns the exit code: 0, or 2 if one could not be predicted.

    Raises:
        InputError: nothing can be predicted at all.
    """
    paths = find_images(arguments.inputs, arguments.out)
    network = load_network(
        arguments.run, device_of(arguments.device), arguments.checkpoint, arguments.norm,
        arguments.convert,
    )  # fmt: skip
    options = Options(
        arguments.halo, arguments.tile, arguments.memory * 1e9, arguments.bands, arguments.scale,
        arguments.probabilities, arguments.cog, arguments.overwrite, arguments.blend,
    )  # fmt: skip
    if network.kind == "segmentation":
        written, failed = _maps(network, paths, arguments.out, options)
    elif network.kind == "classification":
        written, failed = _table(network, paths, arguments.out, options)
    else:
        written, failed = predict_objects(
            network, paths, arguments.out, options.scale, options.overwrite
        )  # fmt: skip
    for path in written:
        print(path)
    print(f"{len(paths) - failed} of {len(paths)} images predicted, {len(written)} files written")
    return 2 if failed else 0


def _maps(
    network: Network, paths: list[Path], out: Path, options: Options
) -> tuple[list[Path], int]:
    written, failed = [], 0
    for path in paths:
        with tqdm(desc=path.name, unit="tile", disable=None) as bar:

            def progress(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            try:
                written += predict_map(network, path, out, options, say, progress)
            except InputError as error:
                failed += 1
                say_left_out(path, error)
    return written, failed


def _table(
    network: Network, paths: list[Path], out: Path, options: Options
) -> tuple[list[Path], int]:
    target = out / "predictions.csv"
    if target.exists() and not options.overwrite:
        raise InputError(f"{target} exists; write it anew with --overwrite")
    text, failed = io.StringIO(), 0
    table = csv.writer(text, lineterminator="\n")
    names = network.class_names
    table.writerow(["image", "class", "probability", *(names if options.probabilities else ())])
    for path in tqdm(paths, unit="image", disable=None):
        try:
            image = read_rgb(path, ["PNG", "JPEG", "TIFF"], "get the file again")
            found = predict(network, image, scale=options.scale)
        except InputError as error:
            failed += 1
            say_left_out(path, error)
            continue
        best = int(found.argmax())
        every = [f"{p:.6f}" for p in found] if options.probabilities else []
        table.writerow([str(path), names[best], f"{found[best]:.6f}", *every])
    if failed == len(paths):
        return [], failed
    with told_of(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text.getvalue())
    return [target], failed
