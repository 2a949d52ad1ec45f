"""A sample of `make fuzz`, and that its oracle finds what is wrong."""

import random
from collections import Counter

import fuzz
import pytest
from damages import BY_FORMAT, Damage, draw, undetectable

from tasks.errors import InputError


def test_a_hundred_damaged_inputs_are_named_or_change_nothing():
    """The slower commands are left to `make fuzz`."""
    numbers = [number for number in range(105) if number % 20 != 19]
    found = fuzz.fuzz(1, numbers, jobs=1, training=False)
    counts = Counter(outcome.kind for outcome in found)
    faults = [outcome for outcome in found if outcome.kind in fuzz.FAULTS]
    assert not faults
    assert len(found) == len(numbers) == 100
    assert counts["named"] > 60


@pytest.mark.parametrize("format", BY_FORMAT)
def test_a_case_is_the_same_each_time(format, tmp_path):
    name = next(
        name
        for name, build in fuzz.READ.items()
        if build(tmp_folder(tmp_path, name)).format == format
    )
    subject = fuzz.READ[name](tmp_folder(tmp_path, "again"))
    content = subject.path.read_bytes()
    for seed in range(5):
        first, second = (draw(random.Random(seed), format, content) for _ in range(2))
        assert first == second


def tmp_folder(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    return folder


def outcome_of(tmp_path, load, change=lambda path: path.write_bytes(b"2")):
    path = tmp_path / "x.json"
    path.write_bytes(b"1")
    subject = fuzz.Subject("json", path, lambda: load(path))
    change(path)
    return fuzz.read(subject)[0]


def test_readers_that_are_at_fault_are_found(tmp_path):
    def says(text):
        def load(path):
            raise InputError(text.format(path))

        return load

    assert outcome_of(tmp_path, says("{} is damaged")) == "named"
    assert outcome_of(tmp_path, says("something is damaged")) == "unnamed"
    assert outcome_of(tmp_path, says("{} cannot be read (MemoryError)")) == "memory"
    assert outcome_of(tmp_path, lambda path: [][0]) == "trace"
    assert outcome_of(tmp_path, lambda path: len(bytearray(3 * 2**29))) == "memory"
    assert outcome_of(tmp_path, lambda path: path.read_bytes()) == "read"


@pytest.mark.parametrize(
    ("format", "before", "after", "expected"),
    [
        ("json", b'{"a": 1, "b": "x"}', b'{"a": 2, "b": "y"}', True),
        ("json", b'{"a": 1}', b'{"a": "1"}', False),
        ("json", b'{"a": 1}', b'{"a": NaN}', False),
        ("json", b'{"a": 1}', b'{"a": null}', False),
        ("json", b'{"a": 1}', b'{"a": 1', False),
        ("csv", b"epoch,loss\n1,0.5\n2,0.5\n", b"epoch,loss\n1,0.5\n", True),
        ("csv", b"epoch,loss\n1,0.5\n", b"epoch,loss\n1,x\n", False),
        ("csv", b"epoch,loss\n1,0.5\n", b"epoch,loss\n1\n", False),
        ("csv", b"epoch,loss\n1,0.5\n", b"epoch,loss\n1,0.5\n1,0.5\n", False),
        ("yaml", b"seed: 1\n", b"seed: 2\n", True),
        ("yaml", b"seed: 1\n", b"seed: x\n", False),
        ("tiff", b"1", b"2", True),
        ("png", b"1", b"2", False),
        ("npz", b"1", b"2", False),
        ("ckpt", b"1", b"2", False),
    ],
)
def test_what_no_reader_could_tell(format, before, after, expected):
    assert undetectable(format, Damage("flip", after), before) is expected
