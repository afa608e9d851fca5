"""The command line of tools/report.py, and `write_report` for those who have the runs at hand."""

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.logger import setup_logger

from ...checkpoint import MimicCheckpointer
from ...engine.setup import setup_cfg
from ...engine.trainer import MimicTrainer
from ...utils.errors import UserError, command, file_errors, make_folder
from ...utils.files import durable_path
from .page import page
from .runs import RESULTS, read_run
from .sections import build_sections


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="Write one self-contained HTML page about a run or several side by side.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of a run")
    parser.add_argument("-o", "--output", default="output/report.html", metavar="FILE")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="a name for each run")
    parser.add_argument("--title", default="MimicDet report")
    parser.add_argument("--num-images", type=int, default=2, help="best and worst images each")
    parser.add_argument(
        "--score-threshold", type=float, default=0.4, help="lowest score in these pictures"
    )
    parser.add_argument(
        "--eval-teacher",
        action="store_true",
        help="first evaluate the T-head of model_final.pth, into RUN/inference_teacher",
    )
    return parser


def write_report(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    labels: Sequence[str] | None = None,
    title: str = "MimicDet report",
    num_images: int = 2,
    score_threshold: float = 0.4,
) -> Path:
    """
    Write the page about finished runs; parts that a run lacks are told on the page.

    Args:
        folders: OUTPUT_DIRs; labels: a name for each, by default the folders' names, with
            their parents' where two are alike.
        num_images: best and worst images each; score_threshold: lowest score drawn there.

    Returns:
        the path of the page; its folder is made if it is missing.

    Raises:
        UserError: a folder is missing or no run; labels and runs do not match.
    """
    if labels and len(labels) != len(folders):
        raise UserError(f"--labels: {len(labels)} labels for {len(folders)} runs")
    runs = [read_run(folder) for folder in folders]
    names = [run.label for run in runs]
    for index, (run, name) in enumerate(zip(runs, names)):
        if labels:
            run.label = labels[index]
        elif names.count(name) > 1:
            run.label = f"{run.folder.resolve().parent.name}/{name}"
    subtitle = f"{', '.join(run.label for run in runs)}. Written on {date.today()}."
    path = Path(output)
    make_folder(path.parent)
    text = page(title, subtitle, build_sections(runs, score_threshold, num_images))
    with file_errors():
        path.write_text(text, encoding="utf-8")
    return path


def evaluate_teacher(folder: str | Path) -> None:
    """
    Evaluate the T-head of a run's model_final.pth; detections and, in Detectron2's form,
    metrics.json go to inference_teacher.

    Raises:
        UserError: config, data or checkpoint are missing, or it has no T-head.
    """
    path = Path(folder)
    cfg = setup_cfg(str(path / "config.yaml"), ["MODEL.MIMICDET.EVAL_HEAD", "teacher"])
    model = MimicTrainer.build_model(cfg)
    MimicCheckpointer(model, strict=True).load(str(path / "model_final.pth"))
    output = str(path / "inference_teacher")
    evaluators = [MimicTrainer.build_evaluator(cfg, x, output) for x in cfg.DATASETS.TEST]
    results = flatten_results_dict(MimicTrainer.test(cfg, model, evaluators))
    with file_errors(), durable_path(path / "inference_teacher" / "metrics.json") as new:
        new.write_text(json.dumps({"iteration": cfg.SOLVER.MAX_ITER, **results}) + "\n")
    if not (path / "inference_teacher" / RESULTS).is_file():
        raise UserError(f"run '{folder}': the evaluation left no {RESULTS}")


@command
def main(argv: Sequence[str] | None = None) -> int:
    options = vars(build_parser().parse_args(argv))
    folders, eval_teacher = options.pop("runs"), options.pop("eval_teacher")
    if options["num_images"] < 0:
        raise UserError(f"--num-images must be at least 0, got {options['num_images']}")
    if eval_teacher:
        setup_logger(name="detectron2")
        for folder in folders:
            read_run(folder)  # what is no run is told before minutes are spent
            evaluate_teacher(folder)
    print(write_report(folders, **options))
    return 0
