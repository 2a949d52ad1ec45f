"""From finished runs to evidence: ours beside the published rows, and which claims hold.

A run belongs to a published row if it has the row's task, model and norm and was trained with the
settings of the row's own command, whatever command it was started with. The miniature and full
scale are kept apart throughout.
"""

import csv
import functools
import io
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tasks.cli import CONFIGS, ROOT, compose, options
from tasks.errors import InputError
from tasks.paper import PRIMARY, canonical_norm, published_row, read_experiment
from tasks.run import norm_label, run_identity, write_atomically

SCALES = {"mini": "On the miniature", "full": "At full scale"}
TITLES = {
    1: "Cityscapes, validation",
    2: "Cityscapes, groups of GN",
    3: "Cityscapes, channels per group of LCN",
    4: "Cityscapes, window of LCN",
    5: "COCO, detection and instance segmentation",
    6: "ImageNet, classification error",
    7: "INRIA, buildings in unseen cities",
    8: "Chesapeake, land cover",
}
OF_THE_DATASET = ("task.num_classes", "task.class_names", "task.outputs")
"""Settings that a run takes from the dataset it opens where its task leaves them null."""

HOLDS, DOES_NOT, CANNOT_TELL = "holds", "does not", "cannot tell"


# Rows and runs


@dataclass(frozen=True)
class Row:
    """A published row: its experiment, what identifies its runs, its line of the paper's table."""

    experiment: str
    task: str
    model: str
    norm: dict  # as tasks.paper.canonical_norm spells it
    published: dict  # key columns as text, metrics in percent

    @property
    def table(self) -> int:
        return self.published["table"]

    @property
    def keys(self) -> list[str]:
        """The columns that say which row it is."""
        return [name for name, value in self.published.items() if isinstance(value, str)]

    @property
    def metrics(self) -> list[str]:
        return [name for name, value in self.published.items() if isinstance(value, float)]

    @property
    def primary(self) -> str:
        return PRIMARY[self.task]

    @property
    def label(self) -> str:
        return norm_label(OmegaConf.create(self.norm))

    def is_same_experiment(self, task: str, model: str, norm: dict) -> bool:
        return (self.task, self.model, self.norm) == (task, model, canonical_norm(norm))


@functools.cache
def published_rows() -> dict[str, Row]:
    """Every published row by the name of its experiment, in the paper's order."""
    experiments = {}
    for name in options("experiment"):
        experiment = read_experiment(CONFIGS / "experiment" / f"{name}.yaml")
        published = published_row(**experiment["paper"])
        row = Row(name, *experiment["identity"], published)
        experiments[tuple(published.items())] = row
    rows = {}
    for table in TITLES:
        with (ROOT / "results" / "paper" / f"table{table}.csv").open(newline="") as file:
            for line in csv.DictReader(file):
                row = experiments[tuple(published_row(table, line).items())]
                rows[row.experiment] = row
    return rows


def reference(row: Row) -> Row:
    """The GN row of the same task and model: Table 1's (16 groups) for Tables 2 to 4."""
    return next(
        other
        for other in published_rows().values()
        if (other.task, other.model) == (row.task, row.model) and other.published["norm"] == "gn"
    )


@dataclass
class Evidence:
    """The runs that count: ``runs[scale][experiment][seed]`` is a run's ``result.json``.

    Rows that are the same experiment share their runs. ``left_out`` says in a line each which runs
    do not count, and why.
    """

    runs: dict[str, dict[str, dict[int, dict]]] = field(
        default_factory=lambda: {scale: {} for scale in SCALES}
    )
    left_out: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not any(self.runs.values())

    def scores(self, scale: str, row: Row, metric: str) -> dict[int, float]:
        """The metric in percent by seed; empty for a row that was not run."""
        runs = self.runs[scale].get(row.experiment, {})
        return {seed: runs[seed]["metrics"][metric] for seed in sorted(runs)}

    def distinct(self, scale: str) -> list[dict]:
        """Every run of a scale once, also if several rows take it."""
        of_rows = self.runs[scale].values()
        return list({id(run): run for runs in of_rows for run in runs.values()}.values())


def gather(places: list[Path]) -> Evidence:
    """The finished runs in and below the folders that follow the settings of a published row.

    Of several runs of one row and seed the newest counts, by the time of its ``result.json``.

    Raises:
        InputError: a ``result.json`` or ``config.yaml`` cannot be read.
    """
    files = {file.resolve(): file for place in places for file in place.rglob("result.json")}
    evidence = Evidence()
    oldest_first = sorted(files.values(), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    folders: dict[tuple[str, str, int], Path] = {}
    for file in oldest_first:
        result = _read_result(file)
        rows = _rows_of(result)
        if reason := _why_left_out(file, result, rows):
            evidence.left_out.append(f"{file.parent}: {reason}")
            continue
        scale, seed = result["data"], result["seed"]
        key = (scale, rows[0].experiment, seed)
        if key in folders:
            newer = f"{file.parent} has the same row and seed and is newer"
            evidence.left_out.append(f"{folders[key]}: {newer}")
        folders[key] = file.parent
        for row in rows:
            evidence.runs[scale].setdefault(row.experiment, {})[seed] = result
    evidence.left_out.sort()
    return evidence


def _read_result(file: Path) -> dict:
    types = {
        "status": str, "task": str, "model": str, "norm": dict, "data": str, "seed": int,
        "metrics": dict, "epochs": int, "total_batch": int, "versions": dict, "device": str,
    }  # fmt: skip
    remedy = "remove it and give the run's command again"
    try:
        result = json.loads(file.read_text())
        wrong = [key for key, kind in types.items() if not isinstance(result[key], kind)]
        canonical_norm(result["norm"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error}): {remedy}") from None
    if wrong:
        raise InputError(f"{file} is damaged (at {', '.join(wrong)}): {remedy}")
    return result


def _rows_of(result: dict) -> list[Row]:
    norm = {key: value for key, value in result["norm"].items() if key != "window_used"}
    return [
        row
        for row in published_rows().values()
        if row.is_same_experiment(result["task"], result["model"], norm)
    ]


def _why_left_out(file: Path, result: dict, rows: list[Row]) -> str | None:
    if result["status"] != "finished":
        return f"its status is {result['status']}"
    if result["data"] not in SCALES:
        return f"data={result['data']} is neither {' nor '.join(SCALES)}"
    if not rows:
        label = norm_label(OmegaConf.create(result["norm"]))
        return f"no published row has {result['model']} with {label}"
    unusable = [name for name in rows[0].metrics if not _is_finite(result["metrics"].get(name))]
    if unusable:
        return f"it has no value of {', '.join(unusable)}"
    config = file.with_name("config.yaml")
    if not config.exists():
        return "it has no config.yaml that would tell its settings"
    differences = _differing_settings(config, result, rows[0].experiment)
    return f"not the settings of {rows[0].experiment}: {differences}" if differences else None


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _differing_settings(file: Path, result: dict, experiment: str) -> str:
    """What decides a result and is not as in the row's own command; empty if nothing.

    A key that is younger than the run has the value it has today.
    """
    row_cfg = _row_config(experiment, result["data"])
    try:
        own = OmegaConf.load(file)
        if not {"task", "norm", "data", "trainer", "seed"} <= own.keys():
            raise ValueError("not the configuration of a run")
        cfg = OmegaConf.merge(row_cfg, own)
        settings = _settings(cfg, result["total_batch"])
    except (OSError, YAMLError, OmegaConfBaseException, ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}): remove its folder") from None
    if cfg.trainer.max_steps is None:
        settings["epochs"] = result["epochs"]
    wanted = _settings(row_cfg, row_cfg.data.total_batch)
    ignored = {"seed"} | {name for name in OF_THE_DATASET if wanted.get(name) is None}
    if result["data"] == "full":  # section 4.2 starts from a backbone trained on ImageNet
        ignored.add("task.backbone_checkpoint")
    names = sorted((settings.keys() | wanted.keys()) - ignored)
    return ", ".join(
        f"{name} {_shown(settings.get(name))} instead of {_shown(wanted.get(name))}"
        for name in names
        if settings.get(name) != wanted.get(name)
    )


def _shown(value: object) -> str:
    return "a file" if isinstance(value, str) and "/" in value else str(value)


@functools.cache
def _row_config(experiment: str, scale: str) -> DictConfig:
    cfg = compose([f"experiment={experiment}", f"data={scale}"])
    OmegaConf.set_struct(cfg, False)
    return cfg


def _settings(cfg: DictConfig, total_batch: int) -> dict[str, object]:
    """Every setting that decides the result, by its dotted name."""
    settings: dict[str, object] = {}

    def flatten(node: dict, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                flatten(value, f"{prefix}{key}.")
            else:
                settings[prefix + key] = value

    flatten(run_identity(cfg, dataset="", total_batch=total_batch), "")
    # The weights' files need not be on this machine: whether there were any is told by their names.
    for name in ("checkpoint", "task.backbone_checkpoint", "task.model.pretrained"):
        if name in settings:
            settings[name] = OmegaConf.select(cfg, name)
    return settings


# Statistics


@dataclass(frozen=True)
class Difference:
    """The mean of ``n`` paired differences and its 95 % interval, which takes two of them."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:+z.2f}, {self.high:+z.2f}]"
        return f"{self.mean:+z.2f}{interval}"


def paired_difference(differences: list[float]) -> Difference:
    """Student's t interval of the mean of at least one difference."""
    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return Difference(n, mean)
    half = t_quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(n, mean, mean - half, mean + half)


def t_quantile(degrees: int, coverage: float = 0.95) -> float:
    """The ``t`` with ``coverage`` of Student's distribution between ``-t`` and ``t``.

    That probability is a finite sum for whole degrees of freedom, with ``theta = atan(t /
    sqrt(degrees))`` (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4);
    it is inverted by bisection.
    """

    def probability(theta: float) -> float:
        odd = degrees % 2
        term, total = math.cos(theta) ** odd, 0.0
        for power in range(odd, degrees - 1, 2):
            total += term
            term *= math.cos(theta) ** 2 * (power + 1) / (power + 2)
        total *= math.sin(theta)
        return 2 / math.pi * (theta + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halvings: to the last bit of a float
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < coverage else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def contrast(
    evidence: Evidence, scale: str, first: Iterable[Row], second: Iterable[Row], metric: str
) -> Difference | None:
    """Mean of the first rows minus mean of the second, paired by seed; None without a common seed.

    In units of the metric: of an error, a negative difference is in favour of the first.
    """
    sides = [[evidence.scores(scale, row, metric) for row in rows] for rows in (first, second)]
    seeds = set.intersection(*(set(scores) for side in sides for scores in side))
    if not seeds:
        return None
    means = [
        {seed: statistics.fmean(scores[seed] for scores in side) for seed in seeds}
        for side in sides
    ]
    return paired_difference([means[0][seed] - means[1][seed] for seed in sorted(seeds)])


# Claims


@dataclass(frozen=True)
class Claim:
    """What the paper says of the primary metric of some rows, as contrasts between experiments.

    Without a margin: in each contrast the mean of the first is better than that of the second. With
    one: it lies within plus or minus the margin, in percentage points.
    """

    table: int
    text: str
    contrasts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    margin: float | None = None


def _each(first: str, *others: str) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    return tuple(((first,), (other,)) for other in others)


LARGE_WINDOWS = ("table4_w383", "table4_w511", "table4_all")
CLAIMS = (
    Claim(1, "LCN over GN, HRNetV2-W48", _each("table1_w48_lcn", "table1_w48_gn")),
    Claim(1, "LCN over BN, HRNetV2-W48", _each("table1_w48_lcn", "table1_w48_bn")),
    Claim(1, "LCN over GN, HRNetV2-W18", _each("table1_w18_lcn", "table1_w18_gn")),
    Claim(1, "LCN over BN, HRNetV2-W18", _each("table1_w18_lcn", "table1_w18_bn")),
    Claim(
        1,
        "LCN over IN and LN, HRNetV2-W18",
        _each("table1_w18_lcn", "table1_w18_in", "table1_w18_ln"),
    ),
    Claim(
        2,
        "GN is best with 16 groups",
        _each("table2_g16", "table2_g1", "table2_g2", "table2_g4", "table2_g8", "table2_gC"),
    ),
    Claim(
        3,
        "LCN is fairly flat over channels per group",
        _each("table3_c2", "table3_c4", "table3_c8", "table3_c16")
        + _each("table3_c4", "table3_c8", "table3_c16")
        + _each("table3_c8", "table3_c16"),
        margin=2.0,  # the published rows, "fairly stable", are within 1.66
    ),
    Claim(
        3,
        "LCN is best with 2 channels per group",
        _each("table3_c2", "table3_c4", "table3_c8", "table3_c16"),
    ),
    Claim(
        4,
        "LCN falls with large windows: 199, 227, 255 over 383, 511, all",
        ((("table4_w199", "table4_w227", "table4_w255"), LARGE_WINDOWS),),
    ),
    Claim(
        4,
        "LCN with a large window is close to GN",
        tuple(((window,), ("table1_w18_gn",)) for window in LARGE_WINDOWS),
        margin=0.5,  # the published rows are within 0.28
    ),
    Claim(5, "LCN over GN, COCO", _each("table5_lcn", "table5_gn")),
    Claim(5, "LCN over BN, COCO", _each("table5_lcn", "table5_bn")),
    Claim(
        6,
        "LCN is about equal to GN, ImageNet",
        _each("table6_lcn", "table6_gn"),
        margin=0.5,  # the published rows are within 0.01
    ),
    Claim(7, "LCN over GN, INRIA overall", _each("table7_lcn", "table7_gn")),
    Claim(7, "LCN over BN, INRIA overall", _each("table7_lcn", "table7_bn")),
    Claim(8, "LCN over GN, Chesapeake", _each("table8_lcn", "table8_gn")),
    Claim(8, "BN slightly over LCN, Chesapeake", _each("table8_bn", "table8_lcn")),
)


@dataclass(frozen=True)
class Finding:
    """A contrast of a claim; its difference is None if its rows have no seed in common."""

    what: str
    difference: Difference | None
    published: float
    outcome: str

    def __str__(self) -> str:
        found = (
            "not run with a common seed"
            if self.difference is None
            else f"{self.difference}, n {self.difference.n}"
        )
        return f"{self.what}: {found}"


def judge(claim: Claim, evidence: Evidence, scale: str) -> tuple[str, list[Finding]]:
    """Whether a claim holds: ``holds``, ``does not`` or ``cannot tell``, and what says so.

    It holds if all of its contrasts do and does not if one of them does not: each contrast is
    decided by its own 95 % interval, without a correction for their number.
    """
    findings = [_examine(claim, pair, evidence, scale) for pair in claim.contrasts]
    outcomes = {finding.outcome for finding in findings}
    if DOES_NOT in outcomes:
        return DOES_NOT, findings
    return (HOLDS if outcomes == {HOLDS} else CANNOT_TELL), findings


def _examine(
    claim: Claim, pair: tuple[tuple[str, ...], ...], evidence: Evidence, scale: str
) -> Finding:
    first, second = ([published_rows()[name] for name in names] for names in pair)
    metric = first[0].primary
    difference = contrast(evidence, scale, first, second, metric)
    published = [
        statistics.fmean(row.published[metric] for row in rows) for rows in (first, second)
    ]
    what = " - ".join(_mean_of([row.label for row in rows]) for rows in (first, second))
    less_is_better = metric.endswith("_err")
    outcome = _outcome(difference, claim.margin, less_is_better)
    return Finding(what, difference, published[0] - published[1], outcome)


def _mean_of(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"mean({', '.join(labels)})"


def _outcome(difference: Difference | None, margin: float | None, less_is_better: bool) -> str:
    if difference is None or difference.low is None:
        return CANNOT_TELL
    low, high = difference.low, difference.high
    if margin is not None:
        if -margin <= low and high <= margin:
            return HOLDS
        return DOES_NOT if low > margin or high < -margin else CANNOT_TELL
    if less_is_better:
        low, high = -high, -low
    return HOLDS if low > 0 else DOES_NOT if high < 0 else CANNOT_TELL


def claims_text(evidence: Evidence) -> str:
    """What holds, for the console: a paragraph per scale that has runs, a line per claim."""
    lines = []
    for scale, title in SCALES.items():
        if not evidence.runs[scale]:
            continue
        count = len(evidence.distinct(scale))
        lines.append(f"\n{title}, {count} {'run' if count == 1 else 'runs'}")
        for claim in CLAIMS:
            outcome, findings = judge(claim, evidence, scale)
            lines.append(f"  {outcome:12} Table {claim.table}: {claim.text}")
            lines += [f"  {'':12}   {finding}" for finding in findings if finding.difference]
    return "\n".join(lines) + "\n"


# Files

METRICS_ABREAST = 6  # that a Markdown table shows beside each other


def write_tables(evidence: Evidence, folder: Path) -> list[Path]:
    """Writes ``<scale>/table<N>.csv`` and ``README.md``; returns what was written.

    A scale without runs has no tables, unless an earlier call left some that would now be wrong.
    """
    texts = {
        folder / scale / f"table{table}.csv": csv_text(evidence, scale, table)
        for scale in SCALES
        if evidence.runs[scale] or (folder / scale).is_dir()
        for table in TITLES
    }
    texts[folder / "README.md"] = readme_text(evidence)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    return list(texts)


def rows_of_table(table: int) -> list[Row]:
    return [row for row in published_rows().values() if row.table == table]


def csv_text(evidence: Evidence, scale: str, table: int) -> str:
    """A table as CSV, a line per published row; metrics in percent, empty where there is none.

    Columns: the paper's keys; status; per metric the mean over seeds, ``_sd`` (standard deviation
    of the sample) and ``_paper``; n; seeds; and of the primary metric ``_minus_gn``, its 95 %
    interval ``_low`` to ``_high``, its number of paired seeds ``_n``, and the published difference.
    """
    rows = rows_of_table(table)
    keys, metrics, gn = rows[0].keys, rows[0].metrics, f"{rows[0].primary}_minus_gn"
    columns = [*keys, "status"]
    columns += [f"{metric}{part}" for metric in metrics for part in ("", "_sd", "_paper")]
    columns += ["n", "seeds", *(f"{gn}{part}" for part in ("", "_low", "_high", "_n", "_paper"))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [row.published[key] for key in keys]
        seeds = list(evidence.scores(scale, row, row.primary))
        cells.append("run" if seeds else "not run")
        for metric in metrics:
            scores = list(evidence.scores(scale, row, metric).values())
            cells.append(f"{statistics.fmean(scores):.4f}" if scores else "")
            cells.append(f"{statistics.stdev(scores):.4f}" if len(scores) > 1 else "")
            cells.append(f"{row.published[metric]:.2f}")
        cells += [len(seeds), " ".join(map(str, seeds)), *_difference_cells(evidence, scale, row)]
        writer.writerow(cells)
    return text.getvalue()


def _difference_cells(evidence: Evidence, scale: str, row: Row) -> list[object]:
    gn = reference(row)
    if gn.norm == row.norm:
        return [""] * 5
    published = f"{row.published[row.primary] - gn.published[row.primary]:.2f}"
    found = contrast(evidence, scale, [row], [gn], row.primary)
    if found is None:
        return ["", "", "", 0, published]
    bounds = (found.mean, found.low, found.high)
    return [*("" if x is None else f"{x:.4f}" for x in bounds), found.n, published]


def readme_text(evidence: Evidence) -> str:
    """``results/README.md``: where the numbers come from, what holds, and the tables."""
    parts = [
        "# Results",
        "This file and the tables beside it are generated by `python scripts/tables.py`: "
        "they are not edited by hand.",
        "Ours in the miniature's tables come from `data=mini`: generated stand-ins for the "
        "datasets at a fraction of their size, trained on for minutes. They can show whether norms "
        "differ, and in which direction, on images whose lighting and contrast vary; they cannot "
        "show how large a difference is on the real datasets, nor whether it is there at all. The "
        "paper's numbers are of the full datasets: compare norms with each other within ours, "
        "never ours with the paper's. Intervals are over seeds (initial weights, data order and "
        "augmentation), not over datasets.",
        "All numbers are in percent, differences in percentage points. Ours is the mean ± the "
        "standard deviation over n seeds. The difference to GN is that of runs with the same seed, "
        "with its 95 % interval (Student's t) where at least two seeds are common; for Tables 2 "
        "to 4 GN is Table 1's, with 16 groups. Of the metrics that end in `_err` less is better.",
    ]
    for scale, title in SCALES.items():
        parts.append(f"## {title}")
        if not evidence.runs[scale]:
            parts.append("No finished run of a published row.")
            continue
        parts += [_origin(evidence.distinct(scale)), "### What holds here"]
        parts += [
            "A claim holds, or does not, if the 95 % interval of each difference excludes zero; a "
            "claim of equality holds if the interval lies within the margin, and does not if it "
            "lies outside. Otherwise, and with a single seed always, one cannot tell. A claim of "
            "several differences holds if all of them do, and does not if one does not; nothing is "
            "corrected for their number.",
            _claims_table(evidence, scale),
        ]
        for table, subject in TITLES.items():
            parts.append(f"### Table {table}: {subject}")
            metrics = rows_of_table(table)[0].metrics
            for start in range(0, len(metrics), METRICS_ABREAST):
                abreast = metrics[start : start + METRICS_ABREAST]
                parts.append(_scores_table(evidence, scale, table, abreast))
    return "\n\n".join(parts) + "\n"


def _origin(runs: list[dict]) -> str:
    def distinct(values: Iterable[str | None]) -> str:
        return ", ".join(sorted({value or "unknown" for value in values}))

    commits = distinct(_short_commit(run.get("git_commit")) for run in runs)
    torch = distinct(run["versions"].get("torch") for run in runs)
    devices = distinct(run["device"] for run in runs)
    return f"Runs: {len(runs)}. Commits: {commits}. PyTorch: {torch}. Devices: {devices}."


def _short_commit(commit: str | None) -> str | None:
    if commit is None:
        return None
    digits, dash, dirty = commit.partition("-")
    return digits[:12] + dash + dirty


def _claims_table(evidence: Evidence, scale: str) -> str:
    lines = []
    for claim in CLAIMS:
        outcome, findings = judge(claim, evidence, scale)
        text = claim.text if claim.margin is None else f"{claim.text} (within ±{claim.margin:g})"
        numbers = "<br>".join(map(str, findings))
        published = "<br>".join(f"{finding.published:+z.2f}" for finding in findings)
        lines.append([str(claim.table), text, outcome, numbers, published])
    header = ["Table", "claim", "here", "difference, 95 % interval, seeds", "paper"]
    return _markdown(header, lines, left=("claim", "here", header[3]))


def _scores_table(evidence: Evidence, scale: str, table: int, metrics: list[str]) -> str:
    rows = rows_of_table(table)
    keys, primary = rows[0].keys, rows[0].primary
    header = [*keys, *(f"{metric}{part}" for metric in metrics for part in ("", ", paper")), "n"]
    if primary in metrics:
        header += [f"{primary} - GN", "paper - GN"]
    lines = []
    for row in rows:
        line = [row.published[key] for key in keys]
        for metric in metrics:
            scores = list(evidence.scores(scale, row, metric).values())
            line += [_mean_and_deviation(scores), f"{row.published[metric]:.2f}"]
        line.append(str(len(scores)))
        if primary in metrics:
            line += _difference_to_gn(evidence, scale, row)
        lines.append(line)
    return _markdown(header, lines, left=keys)


def _mean_and_deviation(scores: list[float]) -> str:
    if not scores:
        return "not run"
    deviation = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.2f}{deviation}"


def _difference_to_gn(evidence: Evidence, scale: str, row: Row) -> list[str]:
    gn = reference(row)
    if gn.norm == row.norm:
        return ["", ""]
    found = contrast(evidence, scale, [row], [gn], row.primary)
    published = row.published[row.primary] - gn.published[row.primary]
    return ["" if found is None else str(found), f"{published:+z.2f}"]


def _markdown(header: list[str], lines: list[list[str]], left: Iterable[str]) -> str:
    rule = [":--" if column in left else "--:" for column in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))
