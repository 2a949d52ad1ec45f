"""What is published: a wheel with the library alone, which torch and numba are enough for."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_string
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, copy_source
from packaging.requirements import Requirement

import lcn

WHEEL = f"local_context_norm-{lcn.__version__}-py3-none-any.whl"

USE = """
assert lcn.__file__.startswith(sys.argv[1]), lcn.__file__
assert lcn.__version__ == sys.argv[2]

x = torch.randn(1, 4, 9, 8, requires_grad=True)
y = LocalContextNorm(4, channels_per_group=2, window=3)(x)
exact = x.detach().double().requires_grad_()
block = exact[0, 2:4, 3:6, 4:7]  # what cell (4, 5) of channels 2 and 3 is normalized by
expected = (exact[0, 3, 4, 5] - block.mean()) / torch.sqrt(block.var(correction=0) + 1e-5)
torch.testing.assert_close(y[0, 3, 4, 5], expected.float())
ours, = torch.autograd.grad(y[0, 3, 4, 5], x)
theirs, = torch.autograd.grad(expected, exact)
torch.testing.assert_close(ours, theirs.float())

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
model = convert_norm(model, {"name": "lcn", "window": 5})
assert isinstance(model[1], LocalContextNorm)
(row,) = audit(model, (1, 3, 16, 16))
assert (row.height, row.width, row.windowed) == (14, 14, True)

for name in ("tasks", "hydra", "omegaconf", "pytorch_lightning", "torchvision", "timm"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(f"{name} can be imported: the test proves nothing")
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the source: building leaves files in the folder that is built."""
    return copy_source(tmp_path_factory.mktemp("source") / "clone")


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory) -> Path:
    """What ``pip wheel .`` makes; without a network."""
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", *options, "--wheel-dir", str(out)],
        cwd=clone,
        check=True,
    )
    assert [path.name for path in out.iterdir()] == [WHEEL]
    return out / WHEEL


def needed(*names: str) -> Iterator[str]:
    """The distributions, and all that they need where this Python runs."""
    known, left = set(), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in known:
            continue
        known.add(name)
        yield name
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)


def test_the_wheel_installs_lcn_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"lcn", f"local_context_norm-{lcn.__version__}.dist-info"}
    assert "lcn/py.typed" in names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "lcn").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources


def test_the_package_page_says_what_it_is_and_every_link_works_without_a_repository(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
    assert metadata["Name"] == "local-context-norm"
    assert metadata["Version"] == lcn.__version__
    required = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert {Requirement(text).name for text in required} == {"torch", "numba"}
    page = metadata.get_payload()
    assert page == (ROOT / "docs/package.md").read_text()
    targets = re.findall(r"\]\(([^)\s]*)", page) + re.findall(r"(?:src|href)=[\"']([^\"']*)", page)
    targets += re.findall(r"^\[[^\]]+\]:\s*(\S+)", page, re.MULTILINE)
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []


@pytest.fixture(scope="module")
def alone(wheel, tmp_path_factory) -> list[str]:
    """The wheel in an empty folder, beside it torch, numba and what these need; nothing else."""
    target, others = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("others")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    for name in needed("torch", "numba"):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            link = others / top
            if top != "__pycache__" and not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))
    standard = [sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED")]
    return [str(target), str(others), *standard]


def test_the_wheel_works_with_torch_and_numba_alone(alone, tmp_path):
    """First the example of the package's page, then a comparison with the definition."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/package.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    start = f"import sys; sys.path[:] = {alone!r}; import lcn\n"
    command = [sys.executable, "-I", "-S", "-c", "\n".join([start, *blocks, USE])]
    done = subprocess.run(
        [*command, alone[0], lcn.__version__], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_editable_install_lets_scripts_find_the_experiments_from_every_folder(clone, tmp_path):
    build = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=clone, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        (path_file,) = [name for name in archive.namelist() if name.endswith(".pth")]
        assert archive.read(path_file).decode().split() == [str(clone)]


@pytest.mark.parametrize("command", [["train.py", "--cfg", "job"], ["scripts/runs.py", "--help"]])
def test_commands_work_from_another_folder(command, tmp_path):
    words = [sys.executable, str(ROOT / command[0]), *command[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # what the editable install adds
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [*tmp_path.iterdir()] == []


def test_no_script_patches_the_path():
    for script in [ROOT / "train.py", *(ROOT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(script.read_text())):
            is_path = isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
            assert not is_path, f"{script.name}, line {node.lineno}"


def test_every_import_is_declared():
    """A package that only comes with another one may go away with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["experiments"], *extras["dev"]]
    own = {path.stem for folder in ("scripts", "tests") for path in (ROOT / folder).glob("*.py")}
    tops = {"lcn", "tasks", "train", *own, *sys.stdlib_module_names}
    for name in {Requirement(text).name for text in declared}:
        tops |= {file.parts[0].removesuffix(".py") for file in distribution(name).files or ()}
    tops |= {
        "triton",
        "llvmlite",
        "packaging",
        "markupsafe",
    }  # torch, numba, pytest, jinja2 do need
    places = [*(ROOT / "lcn").rglob("*.py"), *(ROOT / "tasks").rglob("*.py"), ROOT / "train.py"]
    for path in [*places, *(ROOT / "scripts").glob("*.py"), *(ROOT / "tests").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            strangers = {name.partition(".")[0] for name in names} - tops
            assert not strangers, f"{path.relative_to(ROOT)}, line {node.lineno}: {strangers}"


def test_changelog_and_citation_are_of_this_version():
    heading = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading.group(1) == lcn.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == lcn.__version__
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]][:1] == ["Ortiz"]
    assert len(paper["authors"]) == 7
