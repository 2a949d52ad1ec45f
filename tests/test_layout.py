"""The rooms of the house: what each may import, and what must come without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from tasks.config import options

# From the ground up: each imports only what stands before it.
ROOMS = (
    "lcn", "tasks.errors", "tasks.config", "tasks.schema", "tasks.protocol", "tasks.identity",
    "tasks.miniatures", "tasks.data", "tasks.models", "tasks.modules", "tasks.runs",
    "tasks.prediction", "tasks.evidence",
)  # fmt: skip
# What runs before a mistake of the user is answered, or only reads: it must not wait for torch.
WITHOUT_TORCH = (
    "train", "tasks.config", "tasks.schema", "tasks.protocol", "tasks.identity",
    "tasks.runs.launch", "tasks.runs.directory", "tasks.runs.record", "tasks.runs.files",
    "tasks.runs.listing", "tasks.runs.provenance", "tasks.runs.replay", "tasks.evidence.tables",
    "tasks.evidence.report", "tasks.data", "tasks.data.tiles", "tasks.miniatures.cityscapes",
    "tasks.evidence.rows", "tasks.evidence.card", "tasks.prediction.export",
    *(f"tasks.data.{task}" for task in options("task")),
)  # fmt: skip
MINIATURES_IN_DATA = "tasks/data/__init__.py"


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the library and the experiments by its dotted name."""
    for folder in ("lcn", "tasks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def imported(path: Path, module: str) -> set[str]:
    """What a file imports, inside of functions too, as absolute dotted names."""
    package = module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> str | None:
    return next((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), None)


def test_every_module_has_a_room():
    homeless = [name for name, _ in modules() if room_of(name) is None]
    assert homeless == ["tasks.__init__"]


@pytest.mark.parametrize(("module", "path"), [*modules()], ids=str)
def test_nothing_lower_imports_anything_higher(module, path):
    own = room_of(module)
    for name in imported(path, module):
        other = room_of(name)
        if own is None or other is None:
            continue
        assert ROOMS.index(other) <= ROOMS.index(own), f"{module} imports {name}"
        if other == "tasks.miniatures" and own == "tasks.data":
            assert path == ROOT / MINIATURES_IN_DATA, f"{module}, a reader, imports {name}"


def test_the_library_imports_nothing_but_torch_numba_and_what_they_bring():
    allowed = {"lcn", "torch", "numba", "numpy", "llvmlite", "triton", *sys.stdlib_module_names}
    for module, path in modules():
        if module.startswith("lcn"):
            strangers = {name.partition(".")[0] for name in imported(path, module)} - allowed
            assert not strangers, f"{module} imports {strangers}"


def test_a_mistake_is_answered_without_torch():
    code = f"import sys, {', '.join(WITHOUT_TORCH)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
