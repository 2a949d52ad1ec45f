"""The model card of an exported network: metadata as Hugging Face reads it, and text for people."""

import importlib
import inspect
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml

from tasks.config import ROOT
from tasks.errors import InputError
from tasks.evidence.gather import settings_of_run
from tasks.evidence.statistics import FEWEST, paired_difference
from tasks.protocol import learning_rate, metric_title, task_facts
from tasks.runs.record import FinishedRun, Record, read_each, read_run

if TYPE_CHECKING:
    from tasks.prediction.network import Network

LIBRARY = "local-context-norm"
TASK_TYPES = {
    "segmentation": "image-segmentation",
    "classification": "image-classification",
    "detection": "object-detection",
}
LOADING = {
    "segmentation": "classes = predict(network, image)  # uint8 [H, W]",
    "classification": "shares = predict(network, image)  # [classes]",
    "detection": "objects = detect(network, image)  # boxes, labels, scores, masks",
}


def model_card(network: "Network", run: Record, onnx: str | None) -> str:
    """The text of ``README.md``.

    Args:
        network: of the run.
        run: of other runs in its folder, those of the same settings and other seeds are named.
        onnx: what is to be said of ``model.onnx``.
    """
    same = _same_settings(run) if isinstance(run, FinishedRun) else {}
    metadata = yaml.safe_dump(_metadata(run), sort_keys=False, allow_unicode=True)
    lines = [
        f"---\n{metadata}---\n",
        f"# {run.model} with {run.label}, {_dataset(run)}\n",
        f"{_what(network, run)}\n",
        *_loading(network, onnx),
        *_training(run),
        *_metrics(run, same),
        *_norm_layers(network, run),
        *_licence(run),
        *_citation(run),
    ]
    return "\n".join(lines) + "\n"


def _dataset(run: Record) -> str:
    title = task_facts(run.task).title
    return f"{title}, generated miniature" if run.stand_in else title


def _split(run: Record) -> str:
    """The split that gave the result."""
    return run.config["task"].get("test_split") or run.config["data"]["eval_split"]


def _metadata(run: Record) -> dict[str, Any]:
    kind, dataset = str(run.kind), f"{run.task}-miniature" if run.stand_in else run.task
    scores = run.scores if isinstance(run, FinishedRun) else {}
    licence = (
        {"license": "mit"}
        if run.stand_in
        else {"license": "other", "license_name": f"{run.task}-terms"}
    )
    card = {
        **licence,
        "library_name": LIBRARY,
        "pipeline_tag": TASK_TYPES[kind],
        "tags": [TASK_TYPES[kind], "pytorch", LIBRARY, run.model, run.label],
        "datasets": [dataset],
        "metrics": sorted({_metric_type(name) for name in scores}),
    }
    if not scores:
        return {key: value for key, value in card.items() if value}
    result = {
        "task": {"type": TASK_TYPES[kind], "name": kind.capitalize()},
        "dataset": {
            "type": dataset, "name": _dataset(run), "config": run.data, "split": _split(run),
        },
        "metrics": [
            {"type": _metric_type(name), "name": f"{metric_title(name)} (percent)", "value": value}
            for name, value in scores.items()
            if math.isfinite(value)
        ],
    }  # fmt: skip
    name = f"{run.task}-{run.model}-{run.label}"
    return {**card, "model-index": [{"name": name, "results": [result]}]}


def _metric_type(name: str) -> str:
    """A metric as Hugging Face calls it, where it has a name for it."""
    if name.endswith("iou"):
        return "mean_iou"
    if name.endswith("acc") or name.startswith(("top1", "top5")):
        return "accuracy"
    return "mean_average_precision" if name.startswith("ap") else name


def _what(network: "Network", run: Record) -> str:
    names = network.class_names
    shown = ", ".join(names) if len(names) <= 100 else f"{', '.join(names[:5])}, ..."
    text = (
        f"{str(run.kind).capitalize()} of images with the bands {', '.join(network.bands)} into "
        f"{len(names)} classes: {shown}."
    )
    if run.stand_in:
        text += " It was trained on generated pictures alone and is of no use on photographs."
    return text


def _loading(network: "Network", onnx: str | None) -> Iterator[str]:
    yield f"## How to load it\n\nIn a clone of {LIBRARY}, version {_software()['version']}:\n"
    yield "```python"
    if network.kind == "detection":
        yield "from tasks.prediction.network import load_network"
        yield "from tasks.prediction.objects import detect\n"
    else:
        yield "from tasks.prediction.network import load_network, predict\n"
    yield f'network = load_network("this/folder")\n{LOADING[network.kind]}\n```\n'
    yield "`image` is [height, width, bands], uint8, uint16 or floating point in 0..1.\n"
    yield "`python scripts/predict.py this/folder photo.png --out maps` writes files.\n"
    if onnx:
        yield f"{onnx}\n"


def _training(run: Record) -> Iterator[str]:
    config, cfg = run.config, run.cfg
    data, task = config["data"], config["task"]
    size = " x ".join(map(str, data["crop"])) if data.get("crop") else "whole images"
    yield "## Training\n"
    yield f"- data: {_dataset(run)}; crop: {size}"
    yield f"- seed: {run.seed}"
    if isinstance(run, FinishedRun):
        total, result = run.result["total_batch"], run.result
        yield f"- epochs: {result['epochs']}; total batch: {total}"
        rate = learning_rate(cfg, total)
        yield f"- optimizer: {task['optimizer']['name']}, learning rate {rate:g}"
    else:
        done = int(run.last("epoch") or 0)
        yield f"- not finished: {done} of {config['trainer']['max_epochs']} epochs"
    yield f"- initial weights: {_initial(task)}"
    if isinstance(run, FinishedRun):
        versions = ", ".join(f"{name} {value}" for name, value in run.result["versions"].items())
        yield f"- code: commit {run.result.get('git_commit') or 'unknown'}; {versions}"
    yield "- everything else: `config.yaml`\n"


def _initial(task: dict[str, Any]) -> str:
    given = task.get("backbone_checkpoint") or task["model"].get("pretrained")
    if given is None:
        return "random"
    return given if str(given).startswith("timm:") else "from a file, whose terms apply too"


def _metrics(run: Record, same: dict[int, FinishedRun]) -> Iterator[str]:
    yield "## Metrics\n"
    if not isinstance(run, FinishedRun):
        yield "The run has not finished: there is no result.\n"
        return
    median = run.config["task"].get("median_epochs") or 1
    over = f", median over the last {median} evaluated epochs" if median > 1 else ""
    yield f"Percent, split `{_split(run)}`{over}. These weights are of seed {run.seed}.\n"
    seeds = sorted(same)
    if len(seeds) < 2:
        yield f"| metric | seed {run.seed} |\n|---|--:|"
        for name, value in run.scores.items():
            yield f"| {metric_title(name)} | {value:.2f} |"
        yield "\nThere is no run with the same settings and another seed beside it.\n"
        return
    yield f"| metric | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | 95 % interval |"
    yield "|---" + "|--:" * (len(seeds) + 2) + "|"
    for name in run.scores:
        values = [same[seed].scores.get(name, math.nan) for seed in seeds]
        cells = [f"{value:.2f}" for value in values]
        if all(map(math.isfinite, values)):
            found = paired_difference(values)  # of one sample: its mean and interval
            ends = found.interval
            cells += [f"{found.mean:.2f}", "{:.2f} to {:.2f}".format(*ends) if ends else "-"]
        else:
            cells += ["-", "-"]
        yield f"| {metric_title(name)} | {' | '.join(cells)} |"
    few = "; too few for an interval" if len(seeds) < FEWEST else ""
    yield f"\n{len(seeds)} runs of the same settings{few}.\n"


def _same_settings(run: FinishedRun) -> dict[int, FinishedRun]:
    """Finished runs beside this one that differ in nothing but the seed, by seed; and itself."""
    place = run.directory.resolve()
    found = {run.seed: run}
    own = settings_of_run(run)
    beside = [other for other in sorted(place.parent.iterdir()) if (other / "result.json").exists()]
    for other in read_each((p for p in beside if p != place), read_run)[0]:
        if isinstance(other, FinishedRun) and own is not None and settings_of_run(other) == own:
            found.setdefault(other.seed, other)
    return found


def _norm_layers(network: "Network", run: Record) -> Iterator[str]:
    yield "## What its norm layers normalize over\n"
    for phase, (windowed, count) in run.windowed.items():
        yield f"- {phase}: {windowed} of {count} norm layers have a window smaller than their map"
    yield f"- {_reach(network)}"
    mismatch = run.result.get("tile_mismatch") if isinstance(run, FinishedRun) else None
    if mismatch is not None:
        yield f"- tile mismatch, pixels whose class changes with the tiles: {mismatch:.3g} %"
    yield ""


def _reach(network: "Network") -> str:
    if network.kind == "detection":
        return "reach and total stride: not known of networks that choose boxes"
    try:
        found = network.audit(tuple(network.cfg.data.crop))
    except InputError:
        return "reach and total stride: not known"
    reach, stride = found.reach, found.total_stride
    far = "not known" if reach is None else " x ".join(f"{side:g}" for side in reach)
    if reach is not None and any(map(math.isinf, reach)):
        far = "the whole image, so that no halo makes tiles exact"
    steps = "not known" if stride is None else " x ".join(map(str, stride))
    return f"reach in pixels, rows x columns: {far}; total stride: {steps}"


def _licence(run: Record) -> Iterator[str]:
    yield "## Licence\n"
    if run.stand_in:
        yield "MIT, code and weights: the pictures were generated by the same code.\n"
        return
    terms, _ = dataset_terms(run.task)
    yield (
        f"The code is under the MIT licence. The weights follow the terms of {_dataset(run)}: "
        f"{terms or 'see the dataset.'}\n"
    )


def _citation(run: Record) -> Iterator[str]:
    software = _software()
    paper = software["preferred-citation"]
    authors = [f"{who['family-names']}, {who['given-names']}" for who in paper["authors"]]
    yield "## Citation\n\n```bibtex"
    yield f"@inproceedings{{{authors[0].split(',')[0].lower()}{paper['year']}local,"
    yield f"  title = {{{paper['title']}}},\n  author = {{{' and '.join(authors)}}},"
    yield f"  booktitle = {{{paper['collection-title']}}},"
    yield f"  pages = {{{paper['start']}--{paper['end']}}},\n  year = {{{paper['year']}}},"
    yield f"  url = {{{paper['url']}}}\n}}\n```\n"
    yield f"Software: {software['title']}, version {software['version']}."
    _, citation = dataset_terms(run.task)
    if citation and not run.stand_in:
        yield f"\nDataset: {citation}"


def _software() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def dataset_terms(task: str) -> tuple[str | None, str | None]:
    """Licence and citation of a task's dataset, as its reader's description has them."""
    module = importlib.import_module(f"tasks.data.{task}")
    for _, member in inspect.getmembers(
        module, lambda m: inspect.isclass(m) or inspect.isroutine(m)
    ):
        text = inspect.getdoc(member) or ""
        if getattr(member, "__module__", "") == module.__name__ and "Licence:" in text:
            found = [re.search(rf"^{what}: (.+?)(?=^\w+: |\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
                     for what in ("Licence", "Citation")]  # fmt: skip
            licence, citation = (" ".join(f[1].split()) if f else None for f in found)
            return licence, citation
    return None, None
