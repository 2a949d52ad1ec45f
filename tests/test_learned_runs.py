"""Runs of norm=lcn_learned: their optimizer, what they write, and how it is read and drawn."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from fakes import write_run
from test_report import Page, chart_titles, write_page
from torch import nn

from lcn import LearnedContextNorm, LocalContextNorm, convert_norm
from tasks.config import compose
from tasks.errors import InputError
from tasks.modules.optimization import make_optimizer
from tasks.runs.record import read_run, read_windows
from tasks.runs.windows import WindowHistory, bound_starts


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        LearnedContextNorm(4, 2, (5, 9)),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        LearnedContextNorm(4, 2, 40, window_per_group=True),
    )


def test_windows_have_their_own_learning_rate_and_no_weight_decay():
    cfg, model = compose(["task=cityscapes", "norm=lcn_learned"]), network()
    windows = [model[1].log_growth, model[3].log_growth]
    made = make_optimizer(model, cfg, 12, 100)
    weights, *_, own = made["optimizer"].param_groups
    assert own["params"] == windows
    assert own["weight_decay"] == 0 < weights["weight_decay"]
    assert own["lr"] == pytest.approx(cfg.norm.window_lr_factor * weights["lr"])
    every = {id(p) for group in (weights, own) for p in group["params"]}
    assert every == {id(p) for p in model.parameters()}
    assert len(weights["params"]) + len(own["params"]) == len(every)


def test_windows_start_at_most_at_the_size_of_their_map():
    model = network()
    bound_starts(model, (1, 3, 12, 8))
    assert model[1].start.tolist() == [[5, 8]]
    assert model[3].start.tolist() == [[6, 4]] * 2


def test_a_run_writes_windows_per_epoch_and_the_fixed_configuration(tmp_path):
    model, logged = network(), []
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.append((step, values)))
    trainer = SimpleNamespace(current_epoch=0, global_step=7, is_global_zero=True, loggers=[logger])
    module = SimpleNamespace(model=model)
    history = WindowHistory(tmp_path, compose(["task=cityscapes", "norm=lcn_learned"]))
    history.on_train_start(trainer, module)
    with torch.no_grad():
        model[1].log_growth.copy_(torch.tensor([[7.3 / 5, 2.2 / 9]]).log())
        model[3].log_growth.copy_(torch.tensor([[9 / 40, 1.0], [25 / 40, 1.0]]).log())
    history.on_train_epoch_end(trainer, module)
    assert read_windows(tmp_path) == {
        "1": [(0, 5, 9), (1, pytest.approx(7.3), pytest.approx(2.2))],
        "3": [(0, 40, 40), (1, pytest.approx(15), pytest.approx(40))],
    }
    [(step, values)] = logged
    assert (step, values["window/1/p"]) == (7, pytest.approx(7.3))
    continued = WindowHistory(tmp_path, history.cfg)
    continued.load_state_dict(history.state_dict())
    continued.on_train_start(trainer, module)
    assert continued.rows == history.rows

    history.on_train_end(trainer, module)
    fixed = yaml.safe_load((tmp_path / "fixed" / "norm" / "lcn_fixed.yaml").read_text())
    convert_norm(model, fixed)
    assert [type(layer) for layer in model[1::2]] == [LocalContextNorm] * 2
    assert [layer.window for layer in model[1::2]] == [(7, 3), (15, 41)]
    assert [layer.channels_per_group for layer in model[1::2]] == [2, 2]


WINDOWS = "epoch,layer,p,q\n0,bn1,28.0,28.0\n1,bn1,27.5,28.4\n"


def test_the_report_draws_learned_windows_and_only_those(tmp_path):
    runs = tmp_path / "runs"
    directory = write_run(runs, "task=cityscapes", "norm=lcn_learned")
    write_run(runs, "task=cityscapes", "norm=gn")
    assert not any(
        "Learned windows" in title for title in chart_titles(Page(write_page(runs, tmp_path)))
    )
    (directory / "windows.csv").write_text(WINDOWS)
    page = Page(write_page(runs, tmp_path))
    [title] = [title for title in chart_titles(page) if "Learned windows" in title]
    rows, columns = page.charts[chart_titles(page).index(title)]["data"]
    assert (rows["name"], rows["x"], rows["y"]) == ("bn1", [0, 1], [28, 27.5])
    assert columns["y"] == [28, 28.4]


@pytest.mark.parametrize("text", ["epoch,layer\n1,bn1\n", WINDOWS + "2,bn1,wide,3\n", WINDOWS[:-3]])
def test_damaged_windows_are_named(tmp_path, text):
    directory = write_run(tmp_path, "task=cityscapes", "norm=lcn_learned")
    (directory / "windows.csv").write_text(text)
    with pytest.raises(InputError, match=r"windows.csv is damaged"):
        read_run(directory)
