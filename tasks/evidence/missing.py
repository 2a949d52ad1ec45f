"""The commands for the runs that claims still lack."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from tasks.evidence.claims import Claim
from tasks.evidence.gather import Evidence, RowSettings, settings_of_row
from tasks.evidence.rows import Row, page_data, page_title, published_rows, row_named
from tasks.evidence.statistics import FEWEST
from tasks.evidence.verdicts import CANNOT_TELL, NOT_RUN, TILE_MISMATCH, Verdict, judge

MOST_SEEDS = 20
"""Seeds of a row beyond which no commands are listed."""


def missing_text(evidence: Evidence, page: str) -> str:
    """Commands for the runs that would give the claims of a page a verdict."""
    lines = [f"# {page_title(page)}"]
    wanted: dict[str, set[int]] = {}
    mismatch: list[Path] = []
    for verdict in judge(evidence, page):
        if verdict.outcome not in (CANNOT_TELL, NOT_RUN):
            continue
        seeds = _seeds(verdict)
        if seeds is None:
            lines.append(
                f"# {verdict.claim.id}: at the spread seen it takes "
                f"{verdict.seeds or 'more than 1,000'} seeds: not listed"
            )
            seeds = FEWEST
        for name in verdict.claim.rows:
            wanted.setdefault(name, set()).update(range(seeds))
        if TILE_MISMATCH in verdict.claim.metric:
            mismatch += _unmeasured(evidence, page, verdict.claim.rows)
    lines += _trainings(evidence, page, wanted)
    if mismatch:
        lines.append(f"python scripts/consistency.py {' '.join(map(str, dict.fromkeys(mismatch)))}")
    if len(lines) == 1:
        lines.append("# nothing is missing")
    return "\n".join(lines) + "\n"


def commands_of(claim: Claim, page: str) -> list[str]:
    """The commands that test a claim with the fewest seeds."""
    data, seeds = page_data(page), _listed(tuple(range(FEWEST)))
    plain = [name for name in claim.rows if " " not in name]
    commands = [f"experiment={','.join(plain)}"] if plain else []
    commands += [_line(row_named(name)) for name in claim.rows if " " in name]
    return [f"python train.py -m {command} data={data} seed={seeds}" for command in commands]


def _seeds(verdict: Verdict) -> int | None:
    """Number of seeds needed in all; None if that is too many."""
    if verdict.seeds is None or verdict.seeds > MOST_SEEDS:
        return None
    return max(verdict.seeds, verdict.n + 1)


def _unmeasured(evidence: Evidence, page: str, rows: Iterable[str]) -> list[Path]:
    runs = evidence.runs.get(page, {})
    return [
        run.directory
        for name in rows
        for run in runs.get(name, {}).values()
        if run.result.get(TILE_MISMATCH) is None
    ]


def _trainings(evidence: Evidence, page: str, wanted: dict[str, set[int]]) -> list[str]:
    """A sweep for the experiments that lack the same seeds; each other row has its own."""
    plain: dict[tuple[int, ...], list[str]] = {}
    commands: list[str] = []
    seen: list[RowSettings] = []
    data = page_data(page)
    for name, seeds in _with_sources(wanted).items():
        row = row_named(name)
        settings = settings_of_row(row, data)
        if settings in seen:  # two rows of the paper may be one experiment
            continue
        seen.append(settings)
        same = [n for n in wanted if settings_of_row(row_named(n), data) == settings]
        seeds = seeds.union(*(wanted[n] for n in same))
        lacking = tuple(sorted(seeds - evidence.runs.get(page, {}).get(name, {}).keys()))
        if not lacking:
            continue
        if name == row.settings[0].removeprefix("experiment="):
            plain.setdefault(lacking, []).append(name)
        else:
            commands += _own_commands(evidence, page, row, lacking)
    sweeps = [
        f"python train.py -m experiment={','.join(names)} data={data} seed={_listed(seeds)}"
        for seeds, names in plain.items()
    ]
    return sweeps + commands


def _with_sources(wanted: dict[str, set[int]]) -> dict[str, set[int]]:
    """The rows, in an order in which rows whose weights others start from come first."""
    found: dict[str, set[int]] = {}
    for name, seeds in wanted.items():
        for _, source in _starts(name):
            found.setdefault(source, set()).update(seeds)
    for name, seeds in wanted.items():
        found.setdefault(name, set()).update(seeds)
    return found


def _starts(name: str) -> list[tuple[str, str]]:
    """The settings of a row that name another row, from whose weights it starts."""
    pairs = [setting.partition("=")[::2] for setting in name.split()[1:]]
    return [(key, value) for key, value in pairs if value in published_rows()]


def _own_commands(evidence: Evidence, page: str, row: Row, seeds: tuple[int, ...]) -> list[str]:
    data, starts = page_data(page), _starts(row.experiment)
    if not starts:
        return [f"python train.py -m {_line(row)} data={data} seed={_listed(seeds)}"]
    commands = []
    for seed in seeds:
        command = _line(row)
        for key, source in starts:
            run = evidence.runs.get(page, {}).get(source, {}).get(seed)
            place = f"{run.directory}/last.ckpt" if run else f"<{source}, seed {seed}>/last.ckpt"
            command = command.replace(f"{key}={source}", f"{key}={place}")
        mark = "# after that: " if "<" in command else ""
        commands.append(f"{mark}python train.py {command} data={data} seed={seed}")
    return commands


def _line(row: Row) -> str:
    """A row's settings as a shell takes them."""
    return shlex.join(row.settings)


def _listed(seeds: tuple[int, ...]) -> str:
    return ",".join(map(str, seeds))
