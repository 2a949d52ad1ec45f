"""What the command line answers before anything is trained."""

import subprocess
import sys

import pytest
from conftest import ROOT

MESSAGES = {
    "norm=lnc": "norm=lnc: no such norm; did you mean ln or lrn or lcn?",
    "task=citiscapes": "no such task; did you mean cityscapes?",
    "experiment=table1_w18_lcm": "did you mean table1_w18_lcn",
    "task.model=hrnetv2_w49": "no such task/model; did you mean hrnetv2_w48",
    "norm.windw=3": "norm.windw=3: no such key; did you mean norm.window",
    "nrm=lcn": "nrm=lcn: no such key; did you mean norm",
    "trainer.max_epoch=3": "did you mean trainer.max_epochs",
    "norm.window=0": "norm.window=0: must be one number, [height, width] or all",
    "norm.window=[3,-1]": "norm.window=[3, -1]: must be",
    "norm.window=wide": "norm.window=wide: must be",
    "norm.c_group=0": "norm.c_group=0: must be a whole number of at least 1",
    "data.crop=[0,64]": "data.crop=[0, 64]: must be [height, width]",
    "data.crop=64": "data.crop=64: must be",
    "data.batch_size=0": "data.batch_size=0: must be",
    "trainer.max_epochs=1.5": "trainer.max_epochs=1.5: must be",
    "mode=evaluate": "mode=evaluate: must be train or test",
    "mode=test": "mode=test needs checkpoint=",
    "norm=lcn,gn": "norm=lcn,gn: several values are a sweep, which -m asks for",
    "experiment=table1": "all 8 with -m 'experiment=glob(table1_*)'",
    "task=5": "task=5: no such task; there are: camvid, chesapeake",
    "trainer=true": "trainer=true: no such trainer; there are: auto, cpu, ddp",
    "task.facts.primary=loss": "task.facts.primary: facts are how results are checked and shown",
    "data.root=grün(1),x": """'data.root="grün(1),x"'""",
    'data.root="a(b)~,=c ü/x"': "no folder gtFine in a(b)~,=c ü/x",
    "hydra.run.dir=/dev/null/x": "/dev/null/x cannot be written: Not a directory; give another",
    "data.root=nowhere": "Cityscapes not found: no folder leftImg8bit",
}


@pytest.mark.parametrize("override", MESSAGES)
def test_a_mistake_is_answered_by_one_message_and_exit_code_2(train, override):
    done = train(override)
    assert done.returncode == 2
    assert MESSAGES[override] in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_group_count_that_is_not_positive_is_named(train):
    done = train("norm=gn", "norm.groups=-2")
    assert done.returncode == 2
    assert "norm.groups=-2: must be a whole number of at least 1, or C" in done.stderr


def test_a_sweep_over_nothing_is_a_mistake(train):
    done = train("-m", "experiment=glob(table9_*)", "data=mini")
    assert done.returncode == 2
    assert "the sweep has no runs" in done.stderr


def test_help_shows_groups_and_common_commands(train):
    done = train("--help")
    assert done.returncode == 0
    for part in (
        "norm: bn, brn, contrast, gn, in, lcn",
        "table4_w227",
        "data=mini",
        "--cfg job",
        "Exit codes",
    ):
        assert part in done.stdout


def test_whole_configuration_is_printed(train):
    done = train("experiment=table4_w383", "data=mini", "--cfg", "job")
    assert done.returncode == 0
    for line in ("window: 383", "lr: 0.01", "weight_decay: 0.0005", "seed: 0"):
        assert line in done.stdout


def test_composition_and_the_search_for_data_import_no_torch():
    code = """
import sys, train
from tasks.config import compose
from tasks.data import open_datasets
from tasks.errors import InputError
cfg = compose(["experiment=table1_w18_lcn", "data.root=nowhere"])
try:
    open_datasets(cfg)
except InputError:
    sys.exit(3 if "torch" in sys.modules else 0)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
