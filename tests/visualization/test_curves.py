import json
import math

import numpy as np
import pytest
from PIL import Image

from mimicdet.utils.errors import UserError
from mimicdet.visualization.curves import build_figure, plot_curves, read_metrics


def write_lines(path, records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def line(figure, label):
    found = [ln for axes in figure.axes for ln in axes.lines if ln.get_label() == label]
    assert len(found) == 1, label
    return found[0]


def test_the_last_value_of_a_repeated_iteration_wins(tmp_path):
    path = write_lines(
        tmp_path / "metrics.json",
        [
            {"iteration": 19, "total_loss": 3.0},
            {"iteration": 39, "total_loss": 2.0},
            {"iteration": 59, "total_loss": 1.9},
            {"iteration": 39, "total_loss": 1.5},
            {"iteration": 79, "total_loss": 1.0},
        ],
    )
    iterations, values = read_metrics(path)["total_loss"]
    assert iterations.tolist() == [19, 39, 59, 79]
    assert values.tolist() == [3.0, 1.5, 1.9, 1.0]


def test_a_repeated_iteration_without_a_scalar_keeps_the_earlier_value(tmp_path):
    path = write_lines(
        tmp_path / "metrics.json",
        [{"iteration": 99, "bbox/AP": 12.0, "lr": 0.1}, {"iteration": 99, "lr": 0.2}],
    )
    metrics = read_metrics(path)
    assert metrics["bbox/AP"][1].tolist() == [12.0]
    assert metrics["lr"][1].tolist() == [0.2]


def test_a_truncated_last_line_is_left_out_with_a_warning(tmp_path, caplog):
    path = write_lines(
        tmp_path / "metrics.json", [{"iteration": 19, "lr": 0.1}], tail='{"iteration": 39, "lr'
    )
    with caplog.at_level("WARNING"):
        metrics = read_metrics(path)
    assert metrics["lr"][0].tolist() == [19]
    assert "line 2" in caplog.text


def test_nan_is_read_and_texts_and_flags_are_not(tmp_path):
    path = write_lines(
        tmp_path / "metrics.json",
        [{"iteration": 0, "bbox/APs": math.nan, "note": "x", "flag": True, "total_loss": 1}],
    )
    metrics = read_metrics(path)
    assert set(metrics) == {"bbox/APs", "total_loss"}
    assert np.isnan(metrics["bbox/APs"][1][0])


@pytest.mark.parametrize("content", ["", "\n", '{"iteration"', "[]\n3\n"])
def test_a_file_without_records_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="metrics.json"):
        read_metrics(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="none.json"):
        plot_curves(tmp_path / "none.json", tmp_path / "curves.png")


def test_every_group_of_scalars_gets_its_panel_with_its_own_values():
    series = {
        "total_loss": [3.0, 1.0],
        "loss_refine_cls": [0.9, 0.3],
        "loss_mimic_loc": [0.4, 0.2],
        "bbox/AP": [10.0, 50.0],
        "bbox/AP-circle": [1.0, 2.0],
        "mimic/cosine_cls": [0.1, 0.8],
        "mimic/cosine_loc": [0.2, 0.7],
        "teacher/num_foreground": [0.0, 12.0],
        "refine/num_positives_p3": [4.0, 5.0],
        "lr": [0.01, 0.001],
        "time": [0.5, 0.5],
    }
    figure = build_figure({k: (np.array([19, 39]), np.array(v)) for k, v in series.items()})
    assert titles(figure) == [
        "Losses",
        "Average precision on held-out data",
        "Mimicking: mean cosine of student and teacher",
        "Learning rate",
        "Boxes that train the parts",
    ]
    expected = {
        "total": "total_loss",
        "refine cls": "loss_refine_cls",
        "mimic loc": "loss_mimic_loc",
        "AP": "bbox/AP",
        "classification": "mimic/cosine_cls",
        "localisation": "mimic/cosine_loc",
        "teacher foreground": "teacher/num_foreground",
        "positives on P3": "refine/num_positives_p3",
        "lr": "lr",
    }
    for label, key in expected.items():
        assert line(figure, label).get_ydata().tolist() == series[key], label
        assert line(figure, label).get_xdata().tolist() == [19, 39]
    # Per-class AP and timings would only crowd the panels.
    assert sum(len(axes.lines) for axes in figure.axes) == len(expected)


def test_the_ap_of_several_data_sets_is_told_apart():
    one = (np.array([9]), np.array([1.0]))
    figure = build_figure({"first/bbox/AP": one, "second/bbox/AP": one})
    assert {ln.get_label() for ln in figure.axes[0].lines} == {"first: AP", "second: AP"}


def test_missing_groups_leave_no_empty_panel(tmp_path):
    path = write_lines(tmp_path / "metrics.json", [{"iteration": 19, "total_loss": 0.0}])
    assert titles(build_figure(read_metrics(path))) == ["Losses"]
    plot_curves(path, tmp_path / "deep" / "curves.png", title="one")
    with Image.open(tmp_path / "deep" / "curves.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_nothing_to_plot_is_an_error_that_names_the_file(tmp_path):
    path = write_lines(tmp_path / "metrics.json", [{"iteration": 19, "data_time": 0.1}])
    with pytest.raises(ValueError, match="metrics.json.*no losses"):
        plot_curves(path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
