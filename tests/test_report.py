"""The comparison of finished runs."""

import functools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from fakes import HOME, write_run
from PIL import Image

from tasks.evidence.charts import Series, over_seeds, shaded, styles
from tasks.evidence.gather import gather
from tasks.evidence.pictures import densest_window
from tasks.evidence.report import write_report
from tasks.evidence.rows import rows_of_table
from tasks.evidence.sections import make_sections
from tasks.runs.record import finished_runs

MINUS = "\N{MINUS SIGN}"


def write_page(runs, out):
    """The page of the runs below a folder."""
    found, _ = finished_runs([runs])
    evidence = gather(found)
    write_report(make_sections(found, evidence), evidence, out / "report.html")
    return (out / "report.html").read_text()


class Page(HTMLParser):
    """What a reader finds: tables as lists of lines, by title in order, charts and links."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.charts, self.attributes, self.text = {}, [], [], ""
        self._line, self._in, self._cell = None, "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.attributes.append((tag, found))
        self._in = found.get("type") or tag
        if tag == "table":
            self._table = []
            self.tables.setdefault(found["aria-label"], []).append(self._table)
        elif tag == "tr":
            self._line = []
            self._table.append(self._line)
        elif tag in ("td", "th"):
            self._line.append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._line, self._in = (None if tag == "tr" else self._line), ""
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in == "application/json":
            self.charts.append(json.loads(data))
        elif self._in not in ("script", "style"):
            self.text += data
        if self._cell:
            self._line[-1] += data


OTHER_CLASSES = ["<script>alert(1)</script>", "b & c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of runs of every kind, and in it the page of them."""
    folder = tmp_path_factory.mktemp("report")
    runs = folder / "runs"
    for seed, score in enumerate((60.0, 62.0, 64.0)):
        write_run(runs, "experiment=table8_lcn", seed=seed, score=score, samples_per_second=8.0)
    for seed, score in enumerate((59.0, 60.0)):
        write_run(runs, "experiment=table8_gn", seed=seed, score=score, samples_per_second=10.0)
    write_run(runs, "experiment=table8_gn", score=70.0, data="full")
    for norm, score in (("gn", 30.0), ("lcn", 31.5)):
        write_run(runs, f"experiment=table7_{norm}", score=score)
    for number, name in enumerate(("1_w18_gn", "1_w18_bn", "3_c2", "4_w199", "4_all", "3_c8")):
        write_run(runs, f"experiment=table{name}", score=40.0 + number)
    own = {"class_iou": dict.fromkeys(OTHER_CLASSES, 20.0), "dataset": f"{HOME}/photographs"}
    for norm in ("gn", "lcn"):
        write_run(runs, f"norm={norm}", "data.crop=[192,256]", data="full", score=20.0, **own)
    write_page(runs, folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text())


def table_of(page, title, number=0):
    name = next(name for name in page.tables if name.startswith(title))
    return page.tables[name][number]


def test_a_row_is_ours_beside_the_paper_s_with_its_difference_to_gn(page):
    *_, bn, gn, lcn = table_of(page, "Table 8")
    ours = ["62.00", "± 2.00", "76.51", "63.00", "± 2.00", "86.96", "3"]
    assert lcn == ["lcn", *ours, "+1.50", "", "+2.36"]  # no interval of two seeds
    assert gn == ["gn", "59.50", "± 0.71", "74.15", "60.50", "± 0.71", "85.18", "2", "", "", ""]
    assert bn[:4] == ["bn", "not run", "", "76.69"]


def test_every_published_row_is_there_run_or_not(page):
    for table in range(1, 9):
        rows = rows_of_table(table)
        lines = table_of(page, f"Table {table}")[-len(rows) :]
        primary = [f"{row.published[row.primary]:.2f}" for row in rows]
        assert all(p in line for p, line in zip(primary, lines, strict=True)), table


def test_miniature_and_full_scale_are_apart(page):
    mini, full = (table_of(page, "Table 8", number) for number in (0, 1))
    assert [line[1] for line in mini[-3:]] == ["not run", "59.50", "62.00"]
    assert [line[1] for line in full[-3:]] == ["not run", "70.00", "not run"]


def test_the_long_miniature_is_a_section_of_its_own(tmp_path):
    for data, score in (("mini", 60.0), ("mini_long", 70.0)):
        for norm in ("gn", "lcn"):
            write_run(tmp_path / "runs", f"experiment=table8_{norm}", data=data, score=score)
    write_run(tmp_path / "runs", "experiment=table8_lcn", "norm.window=9", data="mini_long")
    page = Page(write_page(tmp_path / "runs", tmp_path))
    for number, score in enumerate(("60.00", "70.00")):
        *_, gn, lcn = table_of(page, "Table 8", number)
        assert gn[1] == lcn[1] == score
    for title in ("the miniature", "the long miniature"):
        claims = {line[0]: line for line in table_of(page, f"Claims of the paper, on {title}")}
        assert claims["LCN over GN, Chesapeake"][2:4] == ["lcn_c4_w31 - gn_g8", "+0.00"]
    assert "Chesapeake land cover, long miniature" in page.text
    assert "The miniatures are not the paper's datasets." in page.text


def test_numbers_are_aligned_right_with_the_same_digits(folder):
    text = (folder / "report.html").read_text()
    numbers = re.findall(r'<td class="([^"]*)">\s*(-?[\d.,]+\.\d+)</td>', text)
    assert len(numbers) > 100
    assert {kind.split()[0] for kind, _ in numbers} == {"number"}
    scores = [n for line in table_of(Page(text), "Table 1")[2:] for n in line if "." in n]
    assert all(re.fullmatch(rf"[+{MINUS}]?\d+\.\d\d", number) for number in scores)


def test_claims_say_what_holds(page):
    claims = {line[0]: line for line in table_of(page, "Claims of the paper, on the mini")}
    line = claims["LCN over GN, Chesapeake"]
    assert line[1] == "? cannot tell7 more seeds"
    assert line[2:] == ["lcn_c4_w31 - gn_g8", "+1.50", "", "", "2", "+2.36"]
    not_run = table_of(page, "Claims of the paper, on the miniature, not run")
    claims = {line[0]: line for line in not_run}
    assert claims["LCN over BN, COCO"][3] == "not run"


def test_every_claim_has_the_paper_s_words_its_layers_and_its_command(page):
    (line,) = [
        line[0]
        for line in table_of(page, "Claims of the paper, on the miniature")
        if "LCN outperforms GN for this task" in line[0] and "table8_lcn,table8_gn" in line[0]
    ]
    assert "section 4.5, Table 8." in line
    assert "Windowed layers: lcn_c4_w31: training 1 of 8, evaluation 3 of 8." in line
    assert "python train.py -m experiment=table8_lcn,table8_gn data=mini seed=0,1,2,3,4,5" in line


def test_what_is_checked_of_the_layer_is_in_the_first_section(page):
    lines = table_of(page, "Claims of the paper about the layer itself")
    texts = [line[0] for line in lines]
    assert "With the whole map as window LCN is GN; of all channels LN, of one IN" in texts
    assert any("python scripts/claims.py window-per-point" in text for text in texts)
    assert page.text.index("What the results show") < page.text.index("Learning curves")


def test_rows_of_our_own_have_a_section_with_paired_differences_and_windows(tmp_path):
    for seed in range(6):
        score = 30 + seed + seed % 2
        for window, gain in (("", 5), ("_w57", 6)):
            write_run(tmp_path / "runs", f"experiment=camvid_lcn{window}", data="full", seed=seed,
                      score=score + gain)  # fmt: skip
        write_run(
            tmp_path / "runs", "experiment=camvid_gn", data="full", seed=seed, score=30 + seed
        )
    page = Page(write_page(tmp_path / "runs", tmp_path))
    lines = {line[0]: line for line in table_of(page, "Rows of our own")[2:]}
    assert lines["lcn_c2_w20x13"][-5:] == ["6", "+6.50", "[+6.17, +6.83]", "0.031", "6"]
    assert lines["bn"][1] == "not run"
    *_, lcn = table_of(page, "Paired differences")
    assert lcn == ["lcn_c2_w79x53", *["+5.00", "+6.00"] * 3]
    chart = page.charts[chart_titles(page).index("Sensitivity to the window of LCN")]
    (ours,) = [trace for trace in chart["data"] if trace["name"] == "ours"]
    assert ours["x"][0] == "20 x 13"
    assert [y for y in ours["y"] if y is not None] == [6.5, 5.5]
    assert "Other runs" not in page.tables


def test_runs_of_other_settings_stand_apart_and_say_why(page):
    header, gn, lcn = table_of(page, "Other runs")
    assert header[:5] == ["model", "norm", "seed", "epochs", "mIoU"]
    assert [gn[1], lcn[1], gn[4]] == ["gn_g16", "lcn_c2_w227", "20.00"]
    assert "data.crop [192, 256] instead of [512, 1024]" in gn[-1]
    assert "20.00" not in str(table_of(page, "Table 1"))


def test_cost_is_compared_with_gn_and_older_results_lack_it(page):
    lines = {
        line[0]: line
        for tables in page.tables["Throughput and memory while training"]
        for line in tables
    }
    assert lines["lcn_c4_w31"][1:] == ["cpu", "3", "8.0", "0.80", "-", "2.0"]
    assert lines["lcn_c4_w91"][1:] == ["cpu", "1", "-", "-", "-", "2.0"]


def test_audit_counts_windowed_layers_of_all(page):
    lines = {line[1]: line for line in page.tables["Windowed norm layers"][0]}
    assert lines["lcn_c2_w199"][0] == "4"
    assert lines["lcn_c2_w199"][-4:] == ["1 of 8", "3 of 8", "", ""]
    assert lines["gn_g16"][-4:-2] == ["0 of 8", "0 of 8"]


def chart_titles(page):
    return [a["aria-label"] for tag, a in page.attributes if a.get("class") == "chart"]


def test_every_kind_of_chart_is_there(page):
    titles = chart_titles(page)
    assert len(titles) == len(page.charts)
    for title in (
        "Learning curves, Table 1", "Learning curves, Table 7", "Learning curves, Table 8",
        "Table 2: sensitivity to groups", "Table 3: sensitivity to channels per group",
        "Table 4: sensitivity to window", "IoU by class", "IoU by city",
    ):  # fmt: skip
        assert title in titles


def test_sensitivity_is_the_difference_to_gn_of_ours_and_of_the_paper(page):
    chart = page.charts[chart_titles(page).index("Table 4: sensitivity to window")]
    paper, ours = chart["data"]
    assert paper["x"] == ours["x"] == ["199", "227", "255", "383", "511", "all"]
    assert paper["y"] == pytest.approx([1.24, 1.46, 1.49, -0.22, -0.28, -0.01])
    assert ours["y"] == [3.0, 2.0, None, None, None, 4.0]


def test_seeds_are_a_band_around_their_mean(page):
    chart = page.charts[chart_titles(page).index("Learning curves, Table 8")]
    bands = [trace for trace in chart["data"] if trace.get("fill") == "toself"]
    line = next(t for t in chart["data"] if t["legendgroup"] == "lcn_c4_w31" and "line" in t)
    band = next(t for t in bands if t["legendgroup"] == "lcn_c4_w31")
    assert line["y"][0] == pytest.approx(2.05)
    assert (min(band["y"][:1]), band["y"][-1]) == pytest.approx((2.1, 2.0))
    assert {trace["legendgroup"] for trace in bands} == {"gn_g8", "lcn_c4_w31"}


def test_cities_are_bars_in_the_colours_of_their_norms(page):
    chart = page.charts[chart_titles(page).index("IoU by city")]
    gn, lcn = chart["data"]
    assert (gn["name"], lcn["name"]) == ("gn_g8", "lcn_c4_w91")
    assert (gn["marker"]["color"], lcn["marker"]["color"]) == ("#e69f00", "#009e73")
    assert gn["y"] == [
        "Bellingham", "Bloomington", "Innsbruck", "San Francisco", "East Tyrol", "overall",
    ]  # fmt: skip
    assert gn["x"] == [30.0, 32.0, 34.0, 36.0, 38.0, 40.0]


def test_the_file_needs_no_other(folder, page):
    for tag, attributes in page.attributes:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), tag
    assert (folder / "report.html").read_text().count("* plotly.js v") == 1


def test_nothing_of_the_machine_is_in_the_file(folder):
    text = (folder / "report.html").read_text()
    script = text[text.rindex("<script>", 0, text.index("plotly.js v")) :]
    written = text.replace(script[: script.index("</script>")], "")
    assert len(written) < 2_000_000
    for private in (HOME, str(folder), str(ROOT), str(Path.home()) + "/"):
        assert private not in written
    assert not re.search(r"/(home|Users|tmp|root)/", written)


def test_names_from_files_are_escaped(folder, page):
    assert "<script>alert" not in (folder / "report.html").read_text()
    names = [name for chart in page.charts for trace in chart["data"] for name in trace["y"]]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in names


def test_figure_2_without_checkpoints_is_left_out_in_a_line(page):
    assert "Left out: the checkpoint of gn_g16 is not on this machine." in page.text


def test_runs_of_no_published_row_alone_make_a_report(tmp_path):
    for norm in ("gn", "lcn"):
        write_run(tmp_path / "runs", f"norm={norm}", "data.crop=[192,256]", data="full")
    page = Page(write_page(tmp_path / "runs", tmp_path))
    assert [title for title in page.tables if title.startswith("Table")] == []
    assert len(table_of(page, "Other runs")) == 3
    assert chart_titles(page) == ["Learning curves", "IoU by class"]


def test_a_row_that_is_trained_in_fewer_epochs_is_an_other_run(tmp_path):
    write_run(tmp_path / "runs", "experiment=table8_lcn")
    write_run(tmp_path / "runs", "experiment=table8_gn", "trainer.max_epochs=1")
    page = Page(write_page(tmp_path / "runs", tmp_path))
    assert [line[1] for line in table_of(page, "Table 8")[-2:]] == ["not run", "50.00"]
    assert "epochs 1 instead of" in table_of(page, "Other runs")[1][-1]


def test_sensitivity_without_gn_is_taken_to_the_paper_s_own_setting(tmp_path):
    for window, score in (("w199", 40.0), ("w227", 42.0)):
        write_run(tmp_path / "runs", f"experiment=table4_{window}", score=score)
    page = Page(write_page(tmp_path / "runs", tmp_path))
    chart = page.charts[chart_titles(page).index("Table 4: sensitivity to window")]
    assert chart["data"][1]["y"][:2] == [-2.0, 0.0]
    assert chart["layout"]["yaxis"]["title"]["text"] == "mIoU minus that of lcn_c2_w227"


def test_variants_of_a_norm_differ_in_shade_dash_and_marker(folder):
    runs = {run.label: run for run in finished_runs([folder / "runs" / "cityscapes"])[0]}
    series = [Series(label, (run,)) for label, run in runs.items()]
    found = styles(series)
    lcn = [found[s.label] for s in series if s.norm == "lcn"]
    for attribute in ("color", "dash", "symbol"):
        assert len({getattr(style, attribute) for style in lcn}) == len(lcn) > 2
    assert found["bn"].color == "#0072b2"


def test_shades_reach_from_white_to_black():
    assert [shaded("#0080ff", a) for a in (-1, -0.5, 0, 1)] == [
        "#ffffff", "#80c0ff", "#0080ff", "#000000",
    ]  # fmt: skip


def test_curves_of_seeds_meet_at_the_epochs_of_any():
    curves = [([1, 2], [3.0, 5.0]), ([2, 3], [7.0, 1.0])]
    assert over_seeds(curves) == [(1, 3.0, 3.0, 3.0), (2, 6.0, 5.0, 7.0), (3, 1.0, 1.0, 1.0)]


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """Loads a page in headless Chromium: what it then consists of, and its console messages."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")

    def load(path):
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--no-first-run", "--enable-logging=stderr", "--v=0", "--window-size=1280,900",
            f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
            "--virtual-time-budget=10000", "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return load


def test_a_browser_shows_tables_and_charts_without_a_complaint(browse, folder, page):
    document, messages = browse(folder / "report.html")
    assert messages == []
    shown = Page(document)
    assert shown.tables == page.tables
    charts = re.split(r'<div class="chart', document)[1:]
    assert len(charts) == len(page.charts) > 8
    for chart in charts:
        assert 'class="main-svg"' in chart
        assert re.search(r'<(path|g) class="(point|js-line|points?)"', chart)
    buttons = {a["data-title"] for _, a in shown.attributes if "modebar-btn" in a.get("class", "")}
    assert buttons
    assert not [title for title in buttons if re.search("cloud|share|edit|studio", title, re.I)]


def test_the_browser_tells_of_an_error(browse, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<p>shown</p><script>nothing.there()</script>")
    document, messages = browse(path)
    assert "shown" in document
    assert len(messages) == 1
    assert "nothing is not defined" in messages[0]


@pytest.fixture
def report(script):
    """Calls the script."""
    return functools.partial(script, "report")


@pytest.mark.parametrize("seed", range(5))
def test_densest_window_is_the_one_that_a_search_finds(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((17, 30)) < 0.1
    top, left, height, width = densest_window(mask)
    assert (height, width) == (4, 7)
    best = max(
        mask[i : i + 4, j : j + 7].sum() for i in range(17 - 4 + 1) for j in range(30 - 7 + 1)
    )
    assert mask[top : top + height, left : left + width].sum() == best > 0


def test_report_shows_every_run_beside_the_paper_and_draws_it(
    train, report, tiny_cityscapes, tmp_path
):
    done = train(
        "-m", "experiment=table1_w18_gn,table1_w18_lcn", f"data.root={tiny_cityscapes}",
        "data.crop=[32,64]", "data.batch_size=4", "data.workers=0", "trainer=cpu",
        "trainer.max_epochs=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = report(tmp_path / "runs", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    results = [json.loads(f.read_text()) for f in (tmp_path / "runs").rglob("result.json")]
    assert len(results) == 2
    for result in results:
        (line,) = [t for t in done.stdout.splitlines() if f" {result['norm']['name']}_" in t]
        cells = [f"{value:.2f}" for value in result["metrics"].values()]
        cells += [f"{result['paper'][name]:.2f}" for name in result["metrics"]]
        assert line.split()[2:] == cells
    for name in ("learning_curves.png", "predictions.png"):
        assert str(tmp_path / "report" / name) in done.stdout
        picture = np.asarray(Image.open(tmp_path / "report" / name).convert("L"))
        assert picture.std() > 5, name
    assert done.stdout.endswith(f" {tmp_path / 'report' / 'report.html'}\n")
    text = (tmp_path / "report" / "report.html").read_text()
    pictures = [a for tag, a in Page(text).attributes if tag == "img"]
    assert len(pictures) == 2 * 4 * 2  # images, pictures of each, whole and detail
    assert all(picture["src"].startswith("data:image/") for picture in pictures)
    assert "prediction with lcn_c2_w227, image 1 of 2" in [picture["alt"] for picture in pictures]
    assert str(tmp_path) not in text


def test_report_without_a_finished_run_says_so(report, tmp_path):
    done = report(tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: no finished run (result.json) below {tmp_path}\n"


def test_report_that_cannot_be_written_says_so(report, tmp_path):
    write_run(tmp_path / "runs", "experiment=table8_lcn")
    (tmp_path / "file").write_text("")
    done = report(tmp_path / "runs", "--out", tmp_path / "file")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*\n", done.stderr)
