"""Tables, pages that hold them, and the HTML page."""

import re

import matplotlib
import pytest

from mimicdet.commands.compare_runs import main
from mimicdet.commands.compare_runs.page import mean_curve
from mimicdet.commands.compare_runs.records import Dropped, Results, write_results
from mimicdet.commands.compare_runs.tables import markdown
from mimicdet.visualization.forest import forest_figure


@pytest.fixture
def file(results, tmp_path):
    write_results(results, tmp_path / "runs.json")
    return tmp_path / "runs.json"


def test_the_tables(results):
    results.dropped.append(Dropped("fish", "taught", "alone", 3, -0.5))
    assert markdown(results, "means").splitlines()[:8] == [
        "**cells**",
        "",
        "| Config | Seeds | AP by seed | Mean AP | Spread | AP50 | APs | AP-disc | AP-square |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| alone, S-head | 1, 2, 3 | 41.0, 42.0, 43.0 | 42.0 | 2.0 | 72.0 | - | 41.0 | - |",
        "| alone, T-head | 1, 2, 3 | 50.0, 50.0, 50.0 | 50.0 | 0.0 | 80.0 | - | - | - |",
        "| taught, S-head | 1, 2, 3 | 42.0, 44.0, 46.0 | 44.0 | 4.0 | 74.0 | - | 43.0 | - |",
        "| taught, T-head | 1, 2, 3 | 53.0, 54.0, 55.0 | 54.0 | 2.0 | 84.0 | - | - | - |",
    ]
    gains = markdown(results, "gains").splitlines()
    assert gains[2:5] == [
        "| Difference | Pairs | AP | AP50 | AP-disc | AP-square |",
        "| --- | --- | --- | --- | --- | --- |",
        "| taught - alone, S-head | 3 | +2.0 [-0.5, +4.5] | +2.0 [-0.5, +4.5] "
        "| +2.0 [-0.5, +4.5] | - |",
    ]
    assert "| taught - alone | 1 | -1.0 | -1.0 | -1.0 | - |" in gains
    assert gains[-1].startswith("taught on fish was dropped after 3 seeds: ")
    assert markdown(results, "summary").splitlines()[:6] == [
        "| Data | Row | Seeds | AP | AP, T-head | Difference [95 % interval] |",
        "| --- | --- | --- | --- | --- | --- |",
        "| cells | alone | 3 | 42.0 | 50.0 | - |",
        "| cells | taught | 3 | 44.0 | 54.0 | +2.0 [-0.5, +4.5] to alone |",
        "| fish | alone | 1 | 30.0 | - | - |",
        "| fish | taught | 1 | 29.0 | - | -1.0 to alone |",
    ]
    assert markdown(Results(["alone"], ["cells"]), "summary") == ""
    assert "| waiting | - | - | - | - | - | - | - | - |" in markdown(results)


def test_docs_follow_the_json(file, results, tmp_path, capsys):
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    marker = "<!-- runs gains: ../runs.json -->"
    page.write_text(f"Before\n\n{marker}\nold\n<!-- /runs -->\n\nAfter\n")
    assert main(["--update", str(page), "--check"]) == 1
    assert "page.md: its tables" in capsys.readouterr().err and "old" in page.read_text()
    assert main(["--update", str(page)]) == 0
    table = markdown(results, "gains")
    expected = f"Before\n\n{marker}\n\n{table}\n<!-- /runs -->\n\nAfter\n"
    assert page.read_text() == expected
    assert main(["--update", str(page), "--check"]) == 0
    assert main(["--update", str(page)]) == 0 and page.read_text() == expected
    for text, message in (
        ("no marker", "0 of 0 are understood"),
        (f"{marker}\nno end", "0 of 1 are understood"),
        ("<!-- runs sums: ../runs.json -->\n<!-- /runs -->", "'runs sums:' must be one of means"),
        ("<!-- runs: none.json -->\n<!-- /runs -->", "none.json"),
    ):
        page.write_text(text)
        assert main(["--update", str(page)]) == 2
        assert message in capsys.readouterr().err
        assert page.read_text() == text


def test_findings_of_several_files(file, tmp_path, capsys):
    page, listed = tmp_path / "page.md", tmp_path / "findings.yaml"
    page.write_text("<!-- runs findings: findings.yaml findings.yaml -->\n<!-- /runs -->\n")
    listed.write_text(
        "- {text: taught, runs: runs.json, set: cells, row: taught, baseline: alone}\n"
        "- {text: both heads, runs: runs.json, set: cells, row: taught}\n"
        "- {text: one pair, runs: runs.json, set: fish, row: taught, baseline: alone}\n"
    )
    assert main(["--update", str(page)]) == 0
    rows = [
        "| taught | cells | 3 | 42.0 | 44.0 | +2.0 [-0.5, +4.5] |",
        "| both heads | cells | 3 | 54.0 | 44.0 | -10.0 [-12.5, -7.5] |",
        "| one pair | fish | 1 | 30.0 | 29.0 | -1.0 |",
    ]
    header = "| What | Data | Pairs | Baseline AP | AP | Difference [95 % interval] |"
    assert page.read_text().splitlines()[2:10] == [header, "| --- " * 6 + "|", *rows, *rows]
    for text, message in (
        ("{}", "the findings must be a list with entries"),
        ("- {text: a, runs: runs.json, set: cells}", r"findings.yaml: \[0\]: row is missing"),
        ("- {text: 1, runs: runs.json, set: cells, row: taught}", r"\[0\].text must be a text"),
        ("- {text: a, runs: none.json, set: cells, row: taught}", "findings.yaml: .*none.json"),
        (
            "- {text: a, runs: runs.json, set: fish, row: taught}",
            "runs.json has no pair of taught and taught, T-head, on fish",
        ),
        (
            "- {text: a, runs: runs.json, set: cells, row: taught, baseline: it}",
            "no pair of taught and it, S-head",
        ),
    ):
        listed.write_text(text)
        assert main(["--update", str(page)]) == 2
        assert re.search(message, capsys.readouterr().err), message


def test_the_tables_are_printed(file, results, capsys):
    assert main(["--report", str(file), "--markdown"]) == 0
    assert capsys.readouterr().out == markdown(results)
    assert main(["--report", str(file), str(file), "--markdown", "--part", "gains"]) == 0
    assert capsys.readouterr().out == markdown(results, "gains")


def test_the_page_stands_alone(file, tmp_path, capsys):
    assert main(["--report", str(file), "--output", str(tmp_path), "--title", "<b>"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert not re.search(r'(src|href)="(?!#|data:)', page) and "<script" not in page
    for text in (
        "taught - alone, S-head 2.0; taught - alone, T-head 4.0",  # the forest plot, told
        "+2.0 [-0.5, +4.5]",
        "AP, taught and alone",
        "taught: 44 at 40",  # the mean curve's point
        "classification: 0.8 at 40",
        "configs/taught.yaml SOLVER.MAX_ITER 40",
        "012345678",
    ):
        assert text in page


def test_a_mean_curve_has_the_common_iterations(results):
    runs = [run for run in results.runs if run.key[:2] == ("cells", "alone")]
    runs[0].curves["AP"] = [[40, 60], [50.0, 9.0]]
    iterations, values = mean_curve(runs, "AP")
    assert iterations.tolist() == [40] and values.tolist() == [(50 + 42 + 43) / 3]
    assert mean_curve(runs, "none") is None


def test_the_forest_plot_draws_what_there_is():
    nan = float("nan")
    rows = [("a", {"AP": (1.0, -1.0, 3.0), "AP50": (2.0, 0.0, 4.0)}), ("b", {"AP": (3, nan, nan)})]
    figure = forest_figure(rows, "points")
    (axes,) = figure.axes
    bars = [x for x in axes.containers if isinstance(x, matplotlib.container.ErrorbarContainer)]
    assert [bar.get_label() for bar in bars] == ["AP", "AP50"]
    segments = bars[0].lines[2][0].get_segments()
    assert segments[0][:, 0].tolist() == [-1.0, 3.0] and segments[1][:, 0].tolist() == [3.0, 3.0]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top
    assert [x.get_text() for x in axes.get_yticklabels()] == ["a", "b"]
