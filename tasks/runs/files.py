"""Reads files that may be damaged: with a size limit, as UTF-8, and one message for an error.

Plain values come out: dicts, lists, text, numbers, booleans and None. A file that is cut, has bytes
that are no text, unfolds without end or is no file at all is an InputError, never a hang.
"""

import csv
import functools
import io
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tasks.errors import InputError

MOST_BYTES = 16 * 2**20
DEEPEST = 32
"""Levels of nesting that a document may have: a run's have five."""
TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where it is built


REMEDIES = {
    "result.json": "remove it and give the run's command again",
    "config.yaml": "remove its folder and give the run's command again",
}


def damaged(path: Path, why: object) -> NoReturn:
    """Raises the InputError of a file whose content is not what belongs there."""
    reason = " ".join(str(why).split())[:200]
    raise InputError(f"{path} is damaged ({reason}): {REMEDIES.get(path.name, 'remove it')}")


def read_text(path: Path, most: int = MOST_BYTES, errors: str = "strict") -> str:
    """The whole text of a regular file.

    Raises:
        InputError: it is not a file, cannot be read, has more than ``most`` bytes, or is not UTF-8.
    """
    return _decoded(path, _read(path, 0, most), errors)


def read_end(path: Path, most: int = 2**18) -> str:
    """The last ``most`` bytes of a text; bytes that are no text become question marks."""
    return _decoded(path, _read(path, most, MOST_BYTES), "replace")


def _read(path: Path, from_end: int, most: int) -> bytes:
    try:
        # Without waiting: a pipe in place of a file would never end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is not a file: remove it")
            with open(descriptor, "rb", closefd=False) as file:
                if from_end:
                    file.seek(max(0, status.st_size - from_end))
                content = file.read(most + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > most:
        damaged(path, f"it has more than {most:,} bytes")
    return content


def _decoded(path: Path, content: bytes, errors: str) -> str:
    try:
        return content.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        damaged(path, f"byte {error.start + 1:,} is not UTF-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    text = read_text(path)
    if not text.strip():
        damaged(path, "it is empty")
    try:
        value = json.loads(text)
        _require_shallow(value, DEEPEST)
        if "\\ud" in text.lower():  # an escape of half a character, which no file can hold
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        damaged(path, TOO_DEEP)
    except ValueError as error:
        damaged(path, error)
    return value


def _require_shallow(value: object, levels: int) -> None:
    if isinstance(value, dict | list):
        if levels == 0:
            raise ValueError(TOO_DEEP)
        for child in value.values() if isinstance(value, dict) else value:
            _require_shallow(child, levels - 1)


def read_yaml(path: Path, most: int = 2**20) -> Any:
    """The value of a YAML file, as OmegaConf would read it.

    Aliases are refused, and so are what Python alone understands, missing values (``???``) and
    interpolations: a written configuration has none of them.

    Raises:
        InputError: it cannot be read, or is not such YAML.
    """
    text = read_text(path, most)
    try:
        return _yaml_value(text)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        damaged(path, f"{error.problem}{where}")
    except (ValueError, yaml.YAMLError) as error:
        damaged(path, error)


def _yaml_value(text: str) -> Any:
    """The document's value, built from the parser's events.

    In one pass, in half the time of PyYAML's own constructor, and nothing that an alias repeats is
    ever unfolded.
    """
    parser = _LOADER(text)
    try:
        kinds = [type(parser.get_event()), type(parser.get_event())]
        if kinds != [yaml.StreamStartEvent, yaml.DocumentStartEvent]:
            raise ValueError("it is empty")
        value = _value(parser.get_event(), parser.get_event, DEEPEST)
        kinds = [type(parser.get_event()), type(parser.get_event())]
        if kinds != [yaml.DocumentEndEvent, yaml.StreamEndEvent]:
            raise ValueError("it has several documents")
    finally:
        parser.dispose()
    return value


def _value(event: yaml.Event, next_event: Callable[[], yaml.Event], levels: int) -> Any:
    """The value that begins with an event; the events up to its end are taken."""
    kind = type(event)  # not isinstance: half of the time went into it
    if kind is yaml.AliasEvent:
        raise ValueError(f"it has the alias *{event.anchor}")
    if event.tag is not None:
        raise ValueError(f"it has the tag {event.tag}")
    if kind is yaml.ScalarEvent:
        text = event.value
        if text == "???" or "${" in text:
            raise ValueError(f"{text} in line {event.start_mark.line + 1} is no value")
        return _scalar(text) if event.implicit[0] else text
    if levels == 0:
        raise ValueError(TOO_DEEP)
    event = next_event()
    if kind is yaml.SequenceStartEvent:
        items = []
        while type(event) is not yaml.SequenceEndEvent:
            items.append(_value(event, next_event, levels - 1))
            event = next_event()
        return items
    mapping: dict[Any, Any] = {}
    while type(event) is not yaml.MappingEndEvent:
        if type(event) is not yaml.ScalarEvent:
            raise ValueError(f"a key in line {event.start_mark.line + 1} is no text")
        key = _value(event, next_event, 0)
        if key in mapping:
            raise ValueError(f"it has the key {key} twice")
        mapping[key] = _value(next_event(), next_event, levels - 1)
        event = next_event()
    return mapping


class _Rules(yaml.SafeLoader):
    """What a plain scalar means: as in YAML 1.1, but ``1e-3`` is a number and nothing a date."""


_FLOAT, _DATE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
_Rules.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != _DATE]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Rules.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?[0-9]+(_[0-9]+)*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@functools.lru_cache(maxsize=10_000)
def _scalar(text: str) -> Any:
    rules = _Rules("")
    node = yaml.ScalarNode(rules.resolve(yaml.ScalarNode, text, (True, False)), text)
    value = rules.construct_object(node)
    if isinstance(value, int) and abs(value) >= 2**63:  # nor one that takes minutes to print
        raise ValueError(f"{text[:20]}... is no number that fits")
    return value


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """The columns of a CSV file and its lines, each with a cell per column.

    Raises:
        InputError: it cannot be read, or a line is cut.
    """
    text = read_text(path)
    if not text.endswith("\n"):
        damaged(path, "it is empty" if not text.strip() else "its last line is cut")
    if "\0" in text:
        damaged(path, f"line {text[: text.index(chr(0))].count(chr(10)) + 1} has a NUL")
    try:
        columns, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError) as error:
        damaged(path, error)
    if any(width != len(columns) for width in map(len, lines)):
        number, line = next(x for x in enumerate(lines, start=2) if len(x[1]) != len(columns))
        damaged(path, f"line {number} has {len(line)} cells instead of {len(columns)}")
    return columns, lines
