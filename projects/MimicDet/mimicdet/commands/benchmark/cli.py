"""Command line of tools/benchmark.py."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mimicdet_runtime.cli import positive

from ...utils.errors import UserError, check_choice, check_choices, check_installed, command
from .detectors import BACKBONES, CASES, DEFAULT_CASES
from .onnx_files import compare_onnx_files, format_comparison
from .report import format_report, plot_latency
from .results import Conditions, continue_results, new_results, read_results, write_results
from .runner import make_groups, run_groups
from .workloads import MODES

# Defaults of --quick in the place of those of the full comparison.
_QUICK: dict[str, Any] = {
    "sizes": [192],
    "backbones": ["R-18"],
    "mode": list(MODES),
    "repeats": 3,
    "warmup": 1,
    "nms_boxes": 200,
}

_EPILOG = """\
The tables, and with --plot a picture, can be written anew from a file of results:
    tools/benchmark.py --report results.json
    tools/benchmark.py --plot results.json
A long job writes after each group of measurements; --resume goes on with what is missing, and adds
what this call requests to what is there:
    tools/benchmark.py --output results.json --stages --memory
    tools/benchmark.py --output results.json --resume --sizes 400 600 --backbones R-50
Exported files, of this project or another, are timed side by side on square images, beside configs
of this project, which are exported with random weights:
    tools/benchmark.py --onnx peer_320.onnx Light/mimicdet_lite0_320px.yaml --sizes 320
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Time, memory and size of MimicDet beside Detectron2's detectors.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", default="output/benchmark/results.json", help="JSON; the table goes beside it")
    add("--resume", action="store_true", help="go on with an --output that exists")
    add("--quick", action="store_true", help="a small comparison, about a minute")
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=positive, default=torch.get_num_threads(), help="of the CPU")
    add(
        "--disable-glibc-trimming",
        action="store_true",
        help="glibc reuses the memory of freed tensors, as in train_net.py on a CPU",
    )
    several: dict[str, Any] = {"nargs": "+", "metavar": "N", "type": positive}
    add(
        "--sizes",
        **several,
        default=[400, 600, 800],
        help="short sides in pixels; the images are 1.52 as wide",
    )
    add("--classes", **several, default=[80], help="numbers of classes, each measured")
    add("--batch", **several, default=[1], help="images at once at inference, each measured")
    add("--train-batch", **several, default=[2], help="images of a training step, each measured")
    names: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    add("--backbones", **names, default=["R-50", "R-101"], help=", ".join(BACKBONES))
    add("--mode", **names, default=["eval"], help=" and ".join(MODES))
    add("--detectors", **names, default=DEFAULT_CASES, help=", ".join(CASES))
    add("--repeats", type=positive, default=15, help="rounds that count")
    add("--warmup", type=positive, default=2, help="rounds before them")
    add(
        "--nms-boxes",
        type=positive,
        default=1000,
        help="boxes an image left to each detector's NMS",
    )
    add("--memory", action="store_true", help="peak memory, a process for each case")
    add("--stages", action="store_true", help="the stages of MimicDet at inference")
    add("--report", metavar="JSON", help="write the tables of these results, measure nothing")
    add(
        "--onnx",
        nargs="+",
        metavar="FILE",
        help="time these files or MimicDet configs alone, on 1 and 2 threads",
    )
    add("--plot", metavar="JSON", help="draw these results as a .png beside, measure nothing")
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments with the defaults of --quick or of the full comparison; UserError for names."""
    parser = build_parser()
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**_QUICK)
    args = parser.parse_args(arguments)
    check_choices("--backbones", args.backbones, BACKBONES)
    check_choices("--detectors", args.detectors, CASES)
    check_choices("--mode", args.mode, MODES)
    check_choice("--device", args.device, ("cpu", "cuda"))
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device; --device cpu measures here")
    if "mimicdet-onnx" in args.detectors:
        if args.device != "cpu":
            raise UserError("--detectors mimicdet-onnx is measured on the CPU alone")
        check_installed("--detectors mimicdet-onnx", "onnx", "onnxscript", "onnxruntime")
    return args


def measure(args: argparse.Namespace, command: str) -> None:
    """Run what the arguments request and write JSON and Markdown."""
    conditions = Conditions(args.device, args.threads, args.disable_glibc_trimming)
    results = new_results(conditions, command)
    if Path(args.output).exists():
        if not args.resume:
            raise UserError(f"{args.output} exists; --resume adds to it")
        results = continue_results(read_results(args.output), results, args.output)
    conditions.apply()
    common = ("repeats", "warmup", "nms_boxes", "memory", "stages")
    groups = make_groups(
        modes=args.mode,
        backbones=args.backbones,
        class_counts=args.classes,
        short_sides=args.sizes,
        batches={"eval": args.batch, "train": args.train_batch},
        cases=args.detectors,
        **{name: getattr(args, name) for name in common},
    )
    if not groups:
        raise UserError(
            f"--mode train: {', '.join(args.detectors)} cannot train, being prepared for inference"
        )

    def save(measured: dict[str, Any]) -> None:
        write_results(measured, args.output)
        Path(args.output).with_suffix(".md").write_text(format_report(measured))

    run_groups(
        groups, conditions, results, save, lambda line: print(line, file=sys.stderr, flush=True)
    )
    print(format_report(results))


@command
def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    args = parse_arguments(given)
    if args.report:
        print(format_report(read_results(args.report)))
    if args.plot:
        plot_latency(read_results(args.plot), Path(args.plot).with_suffix(".png"))
    if args.onnx:
        check_installed("--onnx", "onnxruntime")
        if any(x.endswith(".yaml") for x in args.onnx):
            check_installed("--onnx with a config", "onnx", "onnxscript")
        models = {"num_classes": args.classes[0], "nms_boxes": args.nms_boxes}
        rows = compare_onnx_files(args.onnx, args.sizes, (1, 2), args.repeats, **models)
        print(format_comparison(list(rows)))
    if not (args.report or args.plot or args.onnx):
        measure(args, f"python tools/benchmark.py {shlex.join(given)}")
    return 0
