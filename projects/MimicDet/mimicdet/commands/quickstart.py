"""
The quickstart, `make demo`: make the embedded data, train, evaluate, draw, report.

Nothing here is special to the embedded data but the defaults: it trains any config on a CPU or on
one GPU, through the functions that train_net.py uses. The terminal gets a few lines, the whole log
goes to OUTPUT_DIR/log.txt.
"""

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.engine.hooks import CallbackHook, PeriodicWriter
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, get_event_storage
from detectron2.utils.logger import setup_logger

from ..checkpoint.packages import how_to_install
from ..data import load_records
from ..engine import MimicTrainer, setup_cfg
from ..utils.errors import UserError, command, make_folder
from ..visualization import detection_grid, plot_curves
from .report import write_report
from .train import add_resume_or_start, output_errors, wants_resume

DEFAULT_CONFIG = "configs/Quickstart/mimicdet_lite0_bccd.yaml"
_AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_FILES = ("model_final.pth", "model_best.pth", "metrics.json", "config.yaml", "log.txt")
_LOGGERS = ("detectron2", "fvcore", "mimicdet", "py.warnings")
_logger = logging.getLogger(__name__)


class ProgressLine(EventWriter):
    """
    An EventWriter that keeps one line of the terminal up to date: iteration, loss, ETA.

    Where the output is no terminal it prints a line each time, so that a log stays readable.
    """

    def __init__(self, max_iter: int, stream: TextIO, window_size: int = 20) -> None:
        """Losses are medians over `window_size` iterations."""
        self._max_iter = max_iter
        self._stream = stream
        self._window_size = window_size

    def write(self) -> None:
        """Print the present iteration; called every so many iterations by Detectron2."""
        storage, total = get_event_storage(), self._max_iter
        done = storage.iter + 1
        # The writers run once more after the last iteration, with nothing new.
        if done > total:
            return
        histories = storage.histories()
        text = f"  iteration {done:>{len(str(total))}}/{total} ({100 * done // total:3d} %)"
        if "total_loss" in histories:
            count = storage.count_samples("total_loss", self._window_size)
            text += f"  loss {histories['total_loss'].median(count):.3f}"
        if "time" in histories:
            seconds = histories["time"].median(1000)
            left = timedelta(seconds=round(seconds * (total - done)))
            text += f"  {seconds:.2f} s/iteration  ETA {left}"
        if self._stream.isatty():
            text = "\r\033[K" + text
        end = "" if self._stream.isatty() and done < total else "\n"
        print(text, end=end, file=self._stream, flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quickstart.py",
        description="Train a small MimicDet on embedded data; write its AP, curves and pictures.",
    )
    add = parser.add_argument
    add("--output", default="output/quickstart", metavar="FOLDER")
    add("--config-file", default=DEFAULT_CONFIG, metavar="FILE")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    add_resume_or_start(parser)
    add("--num-images", type=int, default=8, help="images in the grid")
    add("--score-threshold", type=float, default=0.4, help="lowest score drawn in the grid")
    add("opts", nargs=argparse.REMAINDER, help="overrides of the config: KEY VALUE KEY VALUE ...")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for a command line that cannot work, before anything is written."""
    if not Path(args.config_file).is_file():
        raise UserError(f"config file '{args.config_file}' does not exist")
    if len(args.opts) % 2:
        raise UserError(f"overrides must be pairs, KEY VALUE, got: {' '.join(args.opts)}")
    if "OUTPUT_DIR" in args.opts[::2]:
        raise UserError("OUTPUT_DIR is set by --output")
    if args.num_images < 1:
        raise UserError(f"--num-images must be at least 1, got {args.num_images}")
    if Path(args.output).exists() and not Path(args.output).is_dir():
        raise UserError(f"--output '{args.output}' is no folder")


def start_log(output: Path) -> None:
    """Make the output folder and send every log line and warning to its log.txt."""
    make_folder(output)
    logging.captureWarnings(True)
    for name in _LOGGERS:
        setup_logger(str(output / "log.txt"), name=name, configure_stdout=False)
    # Reports a CUDA toolkit without a GPU, right onto the terminal.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    _logger.info("Environment:\n%s", collect_env_info())


@contextlib.contextmanager
def _data_log_on(stream: TextIO) -> Iterator[None]:
    """Let what mimicdet.data says reach the terminal too: making data takes a while."""
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("  %(message)s"))
    logger = logging.getLogger("mimicdet.data")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def make_data(args: argparse.Namespace, stream: TextIO) -> CfgNode:
    """
    Return the requested config with its data sets registered and loaded; embedded data sets are
    written if they are not there already.

    Raises:
        UserError: what the config says cannot be, or its data are missing or broken.
    """
    with _data_log_on(stream):
        cfg = setup_cfg(args.config_file, [*args.opts, "OUTPUT_DIR", args.output])
        if line := how_to_install(cfg.MODEL.WEIGHTS):
            print(f"  starts from random weights, its AP will be low: {line}", file=stream)
            cfg.defrost()
            cfg.MODEL.WEIGHTS = ""
            cfg.freeze()
        if not cfg.DATASETS.TRAIN or not cfg.DATASETS.TEST:
            raise UserError("DATASETS.TRAIN and DATASETS.TEST must each name a data set")
        for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
            records = load_records(name)
            objects = sum(len(record.get("annotations", [])) for record in records)
            print(f"  {name}: {len(records)} images, {objects} objects", file=stream, flush=True)
    return cfg


def prepare_output(cfg: CfgNode, resume: bool) -> None:
    """Write config.yaml; set the metrics of an earlier run aside, unless it is resumed."""
    output = Path(cfg.OUTPUT_DIR)
    metrics = output / "metrics.json"
    if metrics.exists() and not resume:
        # Detectron2 appends: without this the curves would mix two runs.
        metrics.replace(output / "metrics.previous.json")
    (output / "config.yaml").write_text(cfg.dump())


def train(
    cfg: CfgNode, resume: bool, seconds: dict[str, float], stream: TextIO
) -> Mapping[str, Any]:
    """
    Train and evaluate; the seconds of both are written into `seconds`.

    Returns:
        Detectron2's results: {"bbox": {"AP": ..., ...}}, by data set where there are several.

    Raises:
        UserError: a loss or gradient is not finite, or a checkpoint does not fit.
    """
    start = end_of_steps = time.perf_counter()

    def mark_step(done: int) -> None:
        """What train() does after the last iteration is evaluation."""
        nonlocal end_of_steps
        end_of_steps = time.perf_counter()
        if done >= cfg.SOLVER.MAX_ITER:
            print("3/4 evaluation", file=stream, flush=True)

    marks = CallbackHook(
        before_train=lambda trainer: mark_step(trainer.start_iter),
        after_step=lambda trainer: mark_step(trainer.iter + 1),
    )
    trainer = MimicTrainer(cfg)
    line = PeriodicWriter([ProgressLine(trainer.max_iter, stream)])
    trainer.register_hooks([line, marks])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    seconds["training"] = end_of_steps - start
    # DefaultTrainer evaluates once at the end of training, whatever TEST.EVAL_PERIOD is.
    results = getattr(trainer, "_last_eval_results", None) or trainer.test(
        cfg, trainer.evaluated_model
    )
    seconds["evaluation"] = time.perf_counter() - end_of_steps
    return results


def box_results(results: Mapping[str, Any], dataset_name: str) -> dict[str, float]:
    """Box AP of one data set from Detectron2's results of one or several; UserError for none."""
    of_set = results.get(dataset_name, results)
    if "bbox" not in of_set:
        raise UserError(f"the evaluation of '{dataset_name}' gave no box AP")
    return dict(of_set["bbox"])


def format_ap_table(results: Mapping[str, float]) -> str:
    """
    Return a text table: AP, AP50, AP75, APs, APm, APl, then the AP of each class.

    Args:
        results: COCOEvaluator's "bbox" results, 0..100; a NaN (no such objects) is shown as "-".
    """
    cells = {name: "-" if value != value else f"{value:.1f}" for name, value in results.items()}
    shown = [name for name in _AP_NAMES if name in cells]
    lines = ["".join(f"{x:>8}" for x in row) for row in (shown, [cells[x] for x in shown])]
    classes = [(k.removeprefix("AP-"), cell) for k, cell in cells.items() if k.startswith("AP-")]
    if classes:
        rows = [("class", "AP"), *classes]
        width = max(len(name) for name, _ in rows)
        lines += ["", *(f"  {name:<{width}}{cell:>8}" for name, cell in rows)]
    return "\n".join(lines)


def draw(cfg: CfgNode, args: argparse.Namespace, output: Path) -> list[Path]:
    """Write detections.png, curves.png and report.html; return the paths of what was written."""
    grid, curves = output / "detections.png", output / "curves.png"
    written = [grid]
    # The evaluator's results file; a predictor where VOC or several sets leave none.
    detections: Path | DefaultPredictor = output / "inference" / "coco_instances_results.json"
    if len(cfg.DATASETS.TEST) > 1 or not detections.exists():
        predictor_cfg = cfg.clone()
        predictor_cfg.defrost()
        predictor_cfg.MODEL.WEIGHTS = str(output / "model_final.pth")
        detections = DefaultPredictor(predictor_cfg)
    detection_grid(
        cfg.DATASETS.TEST[0],
        detections,
        grid,
        num_images=args.num_images,
        score_threshold=args.score_threshold,
        title="MimicDet: detections beside ground truth",
    )
    try:
        plot_curves(output / "metrics.json", curves, title="MimicDet: training")
        written.append(curves)
    except UserError as error:
        # Everything else that such a run made is worth having.
        _logger.warning("no curves: %s", error)
    written.append(write_report([output], output / "report.html"))
    return written


def run(args: argparse.Namespace, stream: TextIO) -> None:
    """Do everything that the quickstart does."""
    seconds: dict[str, float] = {}  # of each part, in the order in which they ran
    check_arguments(args)
    output = Path(args.output)
    start_log(output)

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    # What the libraries print, COCO's evaluation for one, belongs into the log.
    with open(output / "log.txt", "a") as log, contextlib.redirect_stdout(log):
        say("1/4 data")
        start = time.perf_counter()
        cfg = make_data(args, stream)
        seconds["data"] = time.perf_counter() - start
        resume = wants_resume(args, cfg.OUTPUT_DIR)
        prepare_output(cfg, resume)
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
        say(f"2/4 training: {cfg.SOLVER.MAX_ITER} iterations, log in {output / 'log.txt'}")
        with output_errors(cfg.OUTPUT_DIR):
            results = train(cfg, resume, seconds, stream)
        table = format_ap_table(box_results(results, cfg.DATASETS.TEST[0]))
        say("4/4 pictures and report")
        start = time.perf_counter()
        written = draw(cfg, args, output)
        seconds["pictures"] = time.perf_counter() - start
    say(f"\nHeld-out data, {cfg.DATASETS.TEST[0]}:\n\n{table}\n")
    say("Written:")
    for path in [*written, *(output / name for name in _FILES)]:
        if path.exists():
            say(f"  {path}")
    times = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    say(f"\nSeconds: {times}; {sum(seconds.values()):.0f} in all")


@command
def main(argv: Sequence[str] | None = None) -> int:
    run(build_parser().parse_args(argv), sys.stdout)
    return 0
