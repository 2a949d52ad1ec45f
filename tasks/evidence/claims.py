"""The claims of the paper, as ``results/claims.yaml`` lists them, and what is wrong with it."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import ROOT, compose
from tasks.errors import InputError
from tasks.evidence.rows import SCALES, Row, own_tasks, page_of, row_named
from tasks.protocol import stand_ins
from tasks.runs.files import read_yaml

CLAIMS_FILE = ROOT / "results" / "claims.yaml"

ORDER, MORE, EQUAL, CHECK, OPEN = KINDS = ("order", "more", "equal", "check", "open")

KEYS: dict[str, tuple[set[str], set[str]]] = {
    ORDER: ({"contrasts"}, {"metric", "pages"}),
    MORE: ({"contrasts"}, {"metric", "pages"}),
    EQUAL: ({"contrasts", "margin", "why"}, {"metric", "pages"}),
    CHECK: ({"check"}, set()),
    OPEN: ({"why"}, set()),
}
"""Of each kind, the keys that it must have and those that it may have, beside `COMMON`."""

MINIATURES = "miniatures"
"""In `Claim.pages`, every page of generated data."""

COMMON = ("id", "says", "quote", "section", "kind")

Side = tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """A claim; what its parts mean stands at the head of the file."""

    id: str
    says: str
    quote: str
    section: str
    kind: str
    table: int = 0
    contrasts: tuple[tuple[Side, Side], ...] = ()
    metric: tuple[str, ...] = ()
    margin: float | None = None
    why: str = ""
    check: str = ""
    pages: tuple[str, ...] = ()

    @property
    def rows(self) -> list[str]:
        """The names of its rows, each once."""
        return list(dict.fromkeys(n for pair in self.contrasts for side in pair for n in side))

    @property
    def text(self) -> str:
        return self.says if self.margin is None else f"{self.says} (within ±{self.margin:g})"

    def is_of(self, page: str) -> bool:
        """Whether its rows can be run on a page."""
        names = {page, MINIATURES} if page in stand_ins() else {page}
        if not self.contrasts or (self.pages and not names & {*self.pages}):
            return False
        task = row_named(self.rows[0]).task
        return page in {page_of(task, data) for data in SCALES}


@functools.cache
def claims() -> tuple[Claim, ...]:
    """The paper's claims in the order of the file.

    Raises:
        InputError: the file has mistakes, which the message lists.
    """
    return read_claims(CLAIMS_FILE)


@functools.cache
def claimed_rows() -> dict[str, Row]:
    """The rows of claims that have settings of their own."""
    names = [name for claim in claims() for name in claim.rows if " " in name]
    return {name: row_named(name) for name in names}


def read_claims(path: Path) -> tuple[Claim, ...]:
    """As `claims`, of any file."""
    entries = read_yaml(path)
    mistakes = [*mistakes_in(entries)]
    if mistakes:
        raise InputError("\n".join(f"{path.name}: {mistake}" for mistake in mistakes))
    return tuple(_claim(entry) for entry in entries)


def _claim(entry: dict[str, Any]) -> Claim:
    entry = dict(entry)
    for key in ("metric", "pages"):
        entry[key] = _names(entry.get(key, []))
    pairs = entry.get("contrasts", [])
    entry["contrasts"] = tuple((_names(first), _names(second)) for first, second in pairs)
    return Claim(**entry)


def _names(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def mistakes_in(entries: object) -> Iterator[str]:
    """A message for each mistake; `unknown_quotations` and `unknown_settings` find more."""
    if not isinstance(entries, list):
        yield "it is no list of claims"
        return
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            yield f"entry {number}: it has no id"
            continue
        name = entry["id"]
        if name in seen:
            yield f"{name}: the id is there twice"
        seen.add(name)
        for mistake in _mistakes_of(entry):
            yield f"{name}: {mistake}"


def _mistakes_of(entry: dict[str, Any]) -> Iterator[str]:
    kind = entry.get("kind")
    if kind not in KINDS:
        yield f"kind is {kind}; there are {', '.join(KINDS)}"
        return
    needed, also = KEYS[kind]
    for key in (*COMMON, *sorted(needed)):
        if key not in entry:
            yield f"{key} is missing"
    for key in sorted(entry.keys() - {*COMMON, *needed, *also, "table"}):
        yield f"{key} is no key of kind {kind}"
    for key in (*COMMON, "why", "check"):
        if key in entry and not (isinstance(entry[key], str) and entry[key].strip()):
            yield f"{key} must be text"
    if "table" in entry and entry["table"] not in range(1, 9):
        yield f"table is {entry['table']}, not 1 to 8"
    margin = entry.get("margin", 1)
    if not isinstance(margin, int | float) or isinstance(margin, bool) or margin <= 0:
        yield f"margin is {margin}, not a number above 0"
    for key in ("metric", "pages"):
        if not _is_names(entry.get(key, ["x"])):
            yield f"{key} must be a name, or a list of names"
    yield from _mistakes_of_contrasts(entry.get("contrasts", []), of_pairs=kind == MORE)
    if _is_names(entry.get("pages", [MINIATURES])):
        known = {MINIATURES, "full", *own_tasks()}
        for page in _names(entry.get("pages", [])):
            if page not in known:
                yield f"there is no page {page}; there are {', '.join(sorted(known))}"


def _is_names(value: object) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _mistakes_of_contrasts(contrasts: object, of_pairs: bool) -> Iterator[str]:
    if not isinstance(contrasts, list):
        yield "contrasts must be a list of pairs"
        return
    names = []
    for pair in contrasts:
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_names, pair))):
            yield f"a contrast is a pair of rows, or of lists of rows, not {pair}"
            continue
        if of_pairs and any(len(_names(side)) != 2 for side in pair):
            yield f"each side of a contrast of kind {MORE} is a pair of rows, not {pair}"
        names += [name for side in pair for name in _names(side)]
    tasks = {}
    for name in dict.fromkeys(names):
        try:
            tasks[name] = row_named(name).task
        except LookupError:
            yield f"there is no experiment {name.partition(' ')[0]}"
            continue
    if len(set(tasks.values())) > 1:
        yield f"its rows are of several tasks: {', '.join(sorted(set(tasks.values())))}"


def unknown_settings(known: tuple[Claim, ...]) -> list[str]:
    """A message for each row whose command could not be given."""
    found = {}
    for claim in known:
        for name in claim.rows:
            try:
                if " " in name and name not in found:
                    compose(row_named(name).settings)
            except InputError as error:
                found[name] = f"{claim.id}: {error}"
    return list(found.values())


def unknown_quotations(known: tuple[Claim, ...], paper: str) -> list[str]:
    """A message for each quotation that the paper's text does not have, line breaks aside."""
    text = _one_line(paper)
    return [
        f'{claim.id}: the paper does not say "{claim.quote}"'
        for claim in known
        if _one_line(claim.quote) not in text
    ]


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
