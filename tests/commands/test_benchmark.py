"""The benchmark: order and statistics, calibration, stages, memory, tables, command line."""

import itertools
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from mimicdet.commands.benchmark import cli as command_line
from mimicdet.commands.benchmark import report as report_module
from mimicdet.commands.benchmark import results as results_module
from mimicdet.commands.benchmark import runner
from mimicdet.commands.benchmark.calibration import (
    calibrate,
    count_flops,
    observe,
    standardise,
)
from mimicdet.commands.benchmark.detectors import (
    CASES,
    DEFAULT_CASES,
    DETECTORS,
    Case,
    ModelSettings,
    build_detector,
)
from mimicdet.commands.benchmark.report import format_report, latency_curves, plot_latency
from mimicdet.commands.benchmark.results import (
    Conditions,
    continue_results,
    new_results,
    write_results,
)
from mimicdet.commands.benchmark.runner import (
    Group,
    make_groups,
    measure_memory,
    run_group,
    run_groups,
)
from mimicdet.commands.benchmark.timing import (
    STAGES,
    Spread,
    StageClock,
    interleave,
    median_ratio,
    summarize,
)
from mimicdet.commands.benchmark.workloads import (
    BOXES_PER_IMAGE,
    image_size,
    make_inputs,
    make_workload,
)
from mimicdet.utils import errors

ROOT = Path(__file__).resolve().parents[2]
SIZE = (64, 64)
NUM_CLASSES = 3
SETTINGS = ModelSettings("R-18", NUM_CLASSES, "cpu")
CONDITIONS = Conditions("cpu", 1)
COMMON = {"repeats": 2, "warmup": 1, "nms_boxes": 40, "memory": False, "stages": False}


def inputs(batch: int = 1) -> list[dict]:
    return make_inputs(SIZE, batch, NUM_CLASSES)


@pytest.fixture(scope="module")
def mimicdet():
    model = build_detector("mimicdet", SETTINGS)
    calibrate(DETECTORS["mimicdet"], model, inputs(), 60)
    return model


# ---------------------------------------------------------------- timing


def test_every_round_runs_every_case_once_and_begins_with_the_next():
    ran: list[str] = []
    cases = {name: lambda name=name: ran.append(name) for name in "abc"}
    interleave(cases, repeats=3, warmup=1)
    assert "".join(ran) == "abcbcacababc"


def test_warmup_is_left_out_and_the_clock_is_read_after_synchronizing():
    events: list[str] = []
    ticks = itertools.count()

    def clock() -> float:
        events.append("clock")
        return float(next(ticks) ** 2)

    seconds = interleave(
        {"a": lambda: events.append("a")}, 2, 1, lambda: events.append("synchronize"), clock
    )
    once = ["synchronize", "clock", "a", "synchronize"]
    assert events == once + (once + ["clock"]) * 2
    assert seconds == {"a": [2.0**2 - 1.0**2, 4.0**2 - 3.0**2]}


def test_statistics():
    assert summarize([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert summarize([7.0]) == Spread(7.0, 7.0, 7.0)
    # Rounds of 1/2, 10/20 and 3/4: the slow second round does not count more than the others.
    assert median_ratio([1.0, 10.0, 3.0], [2.0, 20.0, 4.0]) == 0.5
    with pytest.raises(ValueError, match="no measurements"):
        summarize([])
    with pytest.raises(ValueError, match="2 and 1 rounds"):
        median_ratio([1.0, 2.0], [1.0])


# ---------------------------------------------------------------- inputs and models


def test_image_sizes():
    assert image_size(800) == (800, 1216)
    for side in (400, 600, 1200):
        height, width = image_size(side)
        assert height % 32 == width % 32 == 0
        assert side <= height < side + 32 and width / height == pytest.approx(1.52, rel=0.05)


def test_inputs_are_alike_for_all_and_differ_between_images():
    first, second = make_inputs((64, 96), 2, NUM_CLASSES)
    again = make_inputs((64, 96), 2, NUM_CLASSES)
    assert torch.equal(first["image"], again[0]["image"])
    assert not torch.equal(first["image"], second["image"])
    assert first["image"].shape == (3, 64, 96) and first["image"].dtype == torch.uint8
    objects = first["instances"]
    assert len(objects) == BOXES_PER_IMAGE and bool(objects.gt_boxes.nonempty().all())
    assert bool(objects.gt_boxes.inside_box((64, 96)).all())
    assert bool((objects.gt_classes < NUM_CLASSES).all())


@pytest.mark.parametrize("name", ["mimicdet", "retinanet", "fcos", "faster-rcnn"])
def test_calibration_reaches_the_requested_number_of_boxes(name):
    detector = DETECTORS[name]
    model = build_detector(name, SETTINGS)
    calibrate(detector, model, inputs(), 100)
    seen = observe(model, inputs(), detector.score_thresh(model))
    assert seen.passed_boxes == seen.nms_boxes == pytest.approx(100, rel=0.1)
    norm = next(m for m in model.modules() if isinstance(m, FrozenBatchNorm2d))
    assert norm.running_mean.abs().min() > 0 and norm.running_var.std() > 0


def test_impossible_calibration_says_what_is_possible(mimicdet):
    model = build_detector("mimicdet", SETTINGS)  # 85 locations x 3 classes at most
    with pytest.raises(ValueError, match="cannot be made to send about 1000 boxes"):
        calibrate(DETECTORS["mimicdet"], model, inputs(), 1000)


def test_standardised_layer_has_the_moments_over_all_its_calls():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3, padding=1)
    maps = [torch.randn(1, 3, 8, 8), 4 + torch.randn(1, 3, 4, 6)]

    class TwoLevels(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, _):
            return [self.layer(x) for x in maps]

    standardise(TwoLevels(), layer, [], mean=2.0, std=0.5)
    rows = torch.cat([layer(x).flatten(2) for x in maps], dim=2)[0]
    torch.testing.assert_close(rows.mean(dim=1), torch.full((5,), 2.0))
    torch.testing.assert_close(rows.std(dim=1, correction=0), torch.full((5,), 0.5))
    with pytest.raises(ValueError, match="does not call its output layer"):
        standardise(TwoLevels(), nn.Conv2d(3, 5, 1), [], 0.0, 1.0)


def test_observer_tells_proposals_from_detections_and_used_parameters(mimicdet):
    seen = observe(mimicdet, inputs())
    assert seen.proposal_nms_boxes == 0  # no NMS of proposals at inference (4.2)
    fpn = mimicdet.backbone
    unused = [mimicdet.roi_heads, fpn.fpn_lateral2, fpn.fpn_output2]
    absent = sum(p.numel() for module in unused for p in module.parameters())
    assert seen.num_parameters_read == sum(p.numel() for p in mimicdet.parameters()) - absent
    rcnn = build_detector("faster-rcnn", SETTINGS)
    assert observe(rcnn, inputs()).proposal_nms_boxes > 0
    assert observe(rcnn, inputs()).num_parameters_read == sum(p.numel() for p in rcnn.parameters())


def test_flops_of_the_dense_head_hold_its_deformable_convolutions(mimicdet):
    dense = build_detector("mimicdet-dense", SETTINGS)
    dense.load_state_dict(mimicdet.state_dict())
    # All 85 locations of a 64 x 64 image are requested, so that both compute the same products:
    # 64 of 3x3 and 21 of 5x5, from 256 to 256 channels. Sampling is counted for the sparse one.
    products = (64 * 9 + 21 * 25) * 256 * 256 / 1e9
    sparse_flops, dense_flops = (count_flops(m, inputs()) for m in (mimicdet, dense))
    assert dense_flops > products
    assert sparse_flops == pytest.approx(dense_flops, rel=0.01)


# ---------------------------------------------------------------- what is timed


@pytest.mark.parametrize("name", ["mimicdet", "retinanet", "fcos", "faster-rcnn", "backbone"])
def test_a_training_step_reaches_the_parameters_and_leaves_them(name):
    model = build_detector(name, SETTINGS)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    make_workload("train", model, inputs(2))()
    assert model.training
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_stages_follow_the_models_own_forward(mimicdet):
    clock = StageClock(mimicdet, lambda: None)
    before = dict(vars(mimicdet.proposal_generator))
    clock.measure(inputs())
    clock.measure(inputs())
    assert [list(seconds) for seconds in clock.rounds] == [list(STAGES)] * 2
    assert all(value > 0 for seconds in clock.rounds for value in seconds.values())
    assert vars(mimicdet.proposal_generator).keys() == before.keys()  # nothing is left behind
    assert not mimicdet.backbone._forward_hooks and not mimicdet.student_head._forward_pre_hooks
    with pytest.raises(ValueError, match="they are MimicDet's"):
        StageClock(nn.Linear(1, 1), lambda: None)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_that_of_a_process_of_its_own():
    weights = build_detector("backbone", SETTINGS).state_dict()
    ballast = torch.ones(2**28)  # 1 GiB here must not show there

    def peak(mode: str) -> float:
        group = Group(mode, "R-18", NUM_CLASSES, 256, 2, ("backbone",), **COMMON)
        memory = measure_memory(group, "backbone", CONDITIONS, weights)
        assert 0 < memory["baseline"] < memory["peak"]
        return memory["peak"]

    evaluation, training = peak("eval"), peak("train")
    # Gradients and momentum of the trained weights, each as large as they are.
    assert training > evaluation + 2 * 10e6 * 4 / 2**20
    assert training < ballast.numel() * 4 / 2**20 + 500


# ---------------------------------------------------------------- groups and reports


def test_groups_are_all_combinations_and_training_has_no_optimized_cases():
    groups = make_groups(
        ["eval", "train"],
        ["R-18"],
        [3, 80],
        [64],
        {"eval": [1, 8], "train": [2]},
        ["mimicdet", "mimicdet-optimized"],
        **COMMON,
    )
    combinations = {(g.mode, g.num_classes, g.batch, len(g.cases)) for g in groups}
    assert combinations == {
        *(("eval", classes, batch, 2) for classes in (3, 80) for batch in (1, 8)),
        *(("train", classes, 2, 1) for classes in (3, 80)),
    }


def test_forms_of_one_model_are_what_their_names_say(mimicdet):
    weights = {name: x.clone() for name, x in mimicdet.state_dict().items()}
    forms = ["plain", "channels-last", "optimized", "bfloat16", "float16", "compiled"]
    models = {form: Case("mimicdet", form).prepare(mimicdet) for form in forms}

    def first_weight(form):
        return models[form].backbone.bottom_up.res2[0].conv1.weight

    assert models["plain"] is mimicdet
    assert not first_weight("plain").is_contiguous(memory_format=torch.channels_last)
    for form in forms[1:]:
        assert first_weight(form).is_contiguous(memory_format=torch.channels_last), form
    assert models["channels-last"].state_dict().keys() == weights.keys()
    for form, dtype in (("optimized", torch.float32), ("bfloat16", torch.bfloat16)):
        assert first_weight(form).dtype == dtype
    assert first_weight("float16").dtype == torch.float16
    assert models["compiled"].backbone._compiled_call_impl is not None
    assert models["optimized"].backbone._compiled_call_impl is None
    for name, value in mimicdet.state_dict().items():
        assert torch.equal(value, weights[name])
    trainable = [form for form in forms if Case("mimicdet", form).trains]
    assert trainable == ["plain", "channels-last"]


def test_a_compiled_model_counts_as_what_was_compiled(mimicdet):
    def facts(form):
        case = Case("mimicdet", form)
        return runner._facts(case, case.prepare(mimicdet), mimicdet, inputs())

    assert facts("compiled") == facts("optimized") != facts("plain")


def test_resumed_run_measures_what_is_missing_alone(tmp_path):
    def measure(sides: list[int], results: dict) -> list[str]:
        lines: list[str] = []
        common = {**COMMON, "nms_boxes": 30, "stages": True}
        batches = {"eval": [1], "train": [1]}
        cases = ["mimicdet", "mimicdet-optimized", "backbone"]
        groups = make_groups(["eval"], ["R-18"], [3], sides, batches, cases, **common)
        run_groups(
            groups,
            CONDITIONS,
            results,
            lambda r: write_results(r, tmp_path / "r.json"),
            lines.append,
        )
        return lines

    results = new_results(CONDITIONS, "first")
    measure([32], results)
    written = json.loads((tmp_path / "r.json").read_text())
    lines = measure([32, 64], written)
    assert lines[0] == "1 of 2 groups are there already"
    assert lines[1].startswith("[1/1] eval, R-18, 64 x 128, 3 classes, batch 1")
    assert [g["settings"]["short_side"] for g in written["groups"]] == [32, 64]
    assert written["groups"][0] == results["groups"][0]
    for facts in written["groups"][1]["cases"].values():
        assert len(facts["seconds"]) == 2
    assert len(written["groups"][1]["cases"]["mimicdet-optimized"]["stages"]) == 2
    assert "| mimicdet-optimized |" in format_report(written)


def test_results_of_another_machine_are_not_mixed():
    old, new = new_results(CONDITIONS, "a"), new_results(Conditions("cpu", 2), "b")
    with pytest.raises(ValueError, match="file.json was measured with threads 1, this run has 2"):
        continue_results(old, new, "file.json")
    assert continue_results(old, new_results(CONDITIONS, "b"), "")["commands"] == ["a", "b"]
    kept = new_results(Conditions("cpu", 1, glibc_trimming_disabled=True), "b")
    with pytest.raises(ValueError, match="glibc_trimming_disabled False, this run has True"):
        continue_results(old, kept, "file.json")
    del old["glibc_trimming_disabled"]
    with pytest.raises(ValueError, match="glibc_trimming_disabled False, this run has True"):
        continue_results(old, kept, "file.json")


def known_results() -> dict:
    """Measurements made up by hand, of R-50 at several sizes."""

    def facts(*seconds: float, **more) -> dict:
        counts = {"passed_boxes": 990.0, "nms_boxes": 400.0, "proposal_nms_boxes": 0.0}
        sizes = {"parameters": 65_000_000, "parameters_eval": 35_000_000}
        return {"seconds": list(seconds), **counts, **sizes, "gflops": 123.4, **more}

    def group(side: int, size: list[int], cases: dict, **more) -> dict:
        settings = {"mode": "eval", "backbone": "R-50", "num_classes": 80, "batch": 1}
        return {"settings": {**settings, "short_side": side, "size": size, **more}, "cases": cases}

    def stages(head: float) -> list[dict]:
        return [{**dict.fromkeys(STAGES, 0.1), "S-head": head, "post-processing": 0.0}]

    cases = {
        "mimicdet": facts(1.0, 1.2, 5.0, stages=stages(0.05)),
        "mimicdet-dense": facts(2.0, 2.1, 2.2, stages=stages(1.5)),
        "retinanet": facts(2.0, 2.0, 10.0),
        "backbone": facts(0.5, 1.0, 4.0),
    }
    trained = {
        "mimicdet": facts(3.0, memory_mib={"peak": 3000.0, "baseline": 800.0}),
        "faster-rcnn": facts(3.0, memory_mib={"peak": 2000.0, "baseline": 700.0}),
    }
    return {
        "machine": {"cpu": "a CPU", "cores": 2},
        "versions": {"torch": "2.0", "cuda": None},
        "device": "cpu",
        "threads": 2,
        "date": "2026-01-02",
        "commands": ["python tools/benchmark.py --stages"],
        "groups": [
            group(800, [800, 1216], cases),
            group(400, [416, 608], {"mimicdet": facts(0.5)}),
            group(1200, [1216, 1824], {"mimicdet": facts(9.0)}),
            group(800, [800, 1216], trained, mode="train", batch=2),
        ],
    }


def row(report: str, start: str) -> list[str]:
    lines = [line for line in report.splitlines() if line.startswith(f"| {start} |")]
    assert lines, start
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def test_report_of_known_numbers():
    report = format_report(known_results())
    assert "a CPU, 2 cores; cpu, 2 threads; torch 2.0." in report and "2026-01-02" in report
    assert "## Inference, R-50, 800 x 1216, 80 classes, batch 1" in report
    # Ratios by round: 0.5, 0.6, 0.5 and 2, 1.2, 1.25.
    assert row(report, "mimicdet") == (
        ["mimicdet", "1200.0 (1100.0 to 3100.0)", "0.83", "0.50", "1.25"]
        + ["990 (400, 0)", "65.0 (35.0)", "123.4"]
    )
    assert "| mimicdet | 3000.0 (3000.0 to 3000.0) | 0.67 | 1.00 | 3000 (800) |" in report
    assert "50.0 (11.1 %) | 0.0 (0.0 %) | 450.0 | 1200.0 |" in report


def test_plot_is_of_inference_at_batch_1(tmp_path):
    results = known_results()
    again = {"mimicdet": {"seconds": [7.0]}, "mimicdet-3-classes": {"seconds": [7.0]}}
    results["groups"].append({**results["groups"][0], "cases": again})
    curves = latency_curves(results)
    assert "mimicdet-3-classes" not in curves["R-50", 80]
    assert list(curves) == [("R-50", 80)]
    points = curves["R-50", 80]["mimicdet"]
    assert [(side, spread.median) for side, spread in points] == [
        (400, 500.0),
        (800, 1200.0),
        (1200, 9000.0),
    ]
    plot_latency(known_results(), tmp_path / "plots" / "latency.png")
    assert (tmp_path / "plots" / "latency.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no inference at batch 1"):
        latency_curves({**known_results(), "groups": known_results()["groups"][3:]})


def test_every_case_can_be_plotted():
    results = known_results()
    group = results["groups"][0]
    some = next(iter(group["cases"].values()))
    names = [name for name, case in CASES.items() if case.num_classes is None]
    group["cases"] = {name: some for name in names}
    axes = report_module.build_figure({**results, "groups": [group]}).axes[0]
    assert [x.get_text() for x in axes.get_legend().get_texts()] == names
    styles = {(x[0].get_color(), str(x[0]._dash_pattern)) for x in axes.containers}
    assert len(styles) == len(names)


# ---------------------------------------------------------------- command line


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--detectors", "yolo"], "--detectors must be one of mimicdet, "),
        (["--backbones", "R-34"], "--backbones must be one of R-18, R-50, R-101, got 'R-34'"),
        (["--mode", "sleep"], "--mode must be one of eval, train, got 'sleep'"),
        (["--device", "tpu"], "--device must be one of cpu, cuda, got 'tpu'"),
        (["--report", "nowhere.json"], "nowhere.json: No such file"),
        (["--plot", "nowhere.json"], "nowhere.json: No such file"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(arguments, message, capsys):
    assert command_line.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_report_and_plot_from_a_file(tmp_path, capsys):
    path = tmp_path / "results.json"
    write_results(known_results(), path)
    assert command_line.main(["--report", str(path), "--plot", str(path)]) == 0
    assert capsys.readouterr().out.strip() == format_report(known_results()).strip()
    assert (tmp_path / "results.png").exists()
    assert command_line.main(["--output", str(path)]) == 2
    assert "exists; --resume adds to it" in capsys.readouterr().err
    path.write_text("[1, 2]")
    assert command_line.main(["--report", str(path)]) == 2
    assert "holds no results of the benchmark" in capsys.readouterr().err


def test_quick_fills_in_what_is_not_given():
    quick = command_line.parse_arguments(["--quick", "--sizes", "64"])
    assert (quick.sizes, quick.backbones, quick.mode) == ([64], ["R-18"], ["eval", "train"])
    full = command_line.parse_arguments([])
    assert (full.sizes, full.backbones, full.mode) == ([400, 600, 800], ["R-50", "R-101"], ["eval"])


def test_tool_measures_and_writes(tmp_path, monkeypatch, capsys):
    output = tmp_path / "run" / "results.json"
    arguments = ["--quick", "--mode", "eval", "--sizes", "32", "--detectors", "backbone"]
    arguments += ["--output", str(output), "--threads", "1"]
    tool = str(ROOT / "tools" / "benchmark.py")
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(tool, run_name="__main__")
    assert stop.value.code == 0
    report = output.with_suffix(".md").read_text()
    assert capsys.readouterr().out.strip() == report.strip()
    assert "--quick --mode eval --sizes 32 --detectors backbone" in report
    assert row(report, "backbone")[0] == "backbone"


def test_glibc_trimming_is_disabled_where_it_can_be(tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(results_module, "disable_glibc_trimming", lambda: called.append(1) or True)
    arguments = ["--quick", "--mode", "eval", "--sizes", "32", "--detectors", "backbone"]
    arguments += ["--threads", "1", "--output", str(tmp_path / "results.json")]
    assert command_line.main(arguments) == 0 and not called
    assert "glibc trimming" not in capsys.readouterr().out
    arguments[-1] = str(tmp_path / "kept.json")
    assert command_line.main([*arguments, "--disable-glibc-trimming"]) == 0 and called
    assert "glibc trimming disabled" in capsys.readouterr().out
    monkeypatch.setattr(results_module, "disable_glibc_trimming", lambda: False)
    arguments[-1] = str(tmp_path / "refused.json")
    assert command_line.main([*arguments, "--disable-glibc-trimming"]) == 2
    assert "--disable-glibc-trimming needs glibc" in capsys.readouterr().err


def test_onnx_row_gives_the_file_one_canvas_of_all_images(monkeypatch):
    """What the exporter writes is tested in tests/export; here the file returns what it gets."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    names = ["images", "image_sizes"]

    def write_echo(model, path, metadata):
        kinds, ranks = [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64], [4, 2]
        infos = [
            [
                onnx.helper.make_tensor_value_info(name + end, kind, [None] * rank)
                for name, kind, rank in zip(names, kinds, ranks)
            ]
            for end in ("", "_out")
        ]
        nodes = [onnx.helper.make_node("Identity", [x], [x + "_out"]) for x in names]
        graph = onnx.helper.make_graph(nodes, "echo", *infos)
        opset = onnx.helper.make_opsetid("", metadata["opset"])
        onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))

    monkeypatch.setattr("mimicdet.commands.benchmark.detectors.write_onnx", write_echo)
    small, wide = torch.ones(3, 4, 5), torch.full((3, 2, 7), 9, dtype=torch.uint8)
    model = CASES["mimicdet-onnx"].prepare(torch.nn.Identity())
    canvas, sizes = model([{"image": small}, {"image": wide}])
    assert sizes.tolist() == [[4, 5], [2, 7]] and canvas.shape == (2, 3, 4, 7)
    assert (canvas[0, :, :, :5] == 1).all() and (canvas[1, :, :2] == 9).all()
    assert canvas.sum() == small.sum() + wide.sum()


def test_onnx_row_is_of_the_cpu_and_of_inference(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    arguments = ["--detectors", "mimicdet-onnx"]
    assert command_line.main([*arguments, "--device", "cuda"]) == 2
    assert "mimicdet-onnx is measured on the CPU alone" in capsys.readouterr().err
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    assert command_line.main(arguments) == 2
    assert "needs onnx, onnxscript, onnxruntime" in capsys.readouterr().err
    groups = make_groups(
        ["train"], ["R-18"], [3], [64], {"train": [1]}, ["mimicdet-onnx", "mimicdet"], **COMMON
    )
    assert [g.cases for g in groups] == [("mimicdet",)]


def test_what_cannot_train_is_told(tmp_path, capsys):
    output = tmp_path / "results.json"
    arguments = ["--mode", "train", "--detectors", "mimicdet-optimized", "mimicdet-compiled"]
    assert command_line.main([*arguments, "--output", str(output)]) == 2
    message = "--mode train: mimicdet-optimized, mimicdet-compiled cannot train"
    assert message in capsys.readouterr().err and not output.exists()


def test_class_counts_are_measured_side_by_side(monkeypatch):
    def untimed(work, *_):
        return dict.fromkeys(work, [1.0])

    monkeypatch.setattr("mimicdet.commands.benchmark.runner.interleave", untimed)
    cases = ("mimicdet-3-classes", "mimicdet-1203-classes")
    (group,) = make_groups(["eval"], ["R-18"], [80], [64], {"eval": [1]}, cases, **COMMON)
    facts = run_group(group, CONDITIONS)["cases"]
    few, many = (facts[name]["parameters"] for name in cases)
    # The S-head's and the T-head's 1024-d class features, each with a bias.
    assert many - few == 2 * 1200 * 1025
    assert not set(cases) & set(DEFAULT_CASES)
