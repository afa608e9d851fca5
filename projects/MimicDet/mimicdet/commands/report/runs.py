"""What a finished run left behind, read for the report; what is missing is told, not raised."""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO

from ...config import load_config
from ...data import load_records
from ...engine.setup import setup_cfg
from ...evaluation.error_split import ErrorSplit, split_errors
from ...evaluation.matching import Evaluation, ImageBoxes, check_results, evaluate, images_of
from ...utils.errors import UserError, file_errors, read_json
from ...visualization.curves import read_metrics

HEADS = ("student", "teacher")
RESULTS = "coco_instances_results.json"
_MACHINE = ("GPU 0", "GPU available", "sys.platform", "Python", "PyTorch", "torchvision")
_SECONDS = r"\(([\d.]+) s / iter per device, on (\d+) devices\)"


@dataclass(frozen=True)
class GroundTruth:
    """A data set's objects and image files."""

    name: str
    coco: COCO
    class_names: list[str]
    files: dict[int, str]  # image id -> file


@dataclass(frozen=True)
class HeadResults:
    """How one head did on the ground truth."""

    evaluation: Evaluation
    images: list[ImageBoxes]
    errors: ErrorSplit


@dataclass(frozen=True)
class LogFacts:
    """Numbers that only log.txt holds; None or empty where it does not."""

    inference_seconds: float | None = None  # an image, of the last evaluation, model alone
    training_time: str | None = None
    machine: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """One run; a part that could not be read is None or empty, and `problems` says why."""

    label: str
    folder: Path
    cfg: CfgNode | None = None
    metrics: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    truth: GroundTruth | None = None
    heads: dict[str, HeadResults] = field(default_factory=dict)  # "student", "teacher"
    log: LogFacts = field(default_factory=LogFacts)
    problems: list[str] = field(default_factory=list)

    @property
    def main_head(self) -> str | None:
        """The head that the report looks at closely: the student where it was evaluated."""
        return next((name for name in HEADS if name in self.heads), None)

    @property
    def main(self) -> HeadResults | None:
        """Results of that head."""
        return self.heads[self.main_head] if self.main_head else None


def read_run(folder: str | Path) -> Run:
    """
    Read config, metrics, log and detections of a run's OUTPUT_DIR.

    Raises:
        UserError: there is no such folder, or nothing in it is of a run.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"run '{folder}': no such folder")
    names = ("config.yaml", "metrics.json", f"inference/{RESULTS}")
    if not any((path / name).is_file() for name in names):
        raise UserError(f"run '{folder}' has none of {', '.join(names)}: is it an OUTPUT_DIR?")
    run = Run(path.resolve().name, path)
    config = str(path / "config.yaml")
    with _noted(run, "metrics"):
        run.metrics = read_metrics(path / "metrics.json")
    if (path / "log.txt").is_file():
        run.log = read_log((path / "log.txt").read_text(errors="replace"))
    with _noted(run, "config"):
        run.cfg = load_config(config)
    if run.cfg is not None:
        with _noted(run, "ground truth"):
            # The report runs anywhere, whatever the run was trained on.
            run.truth = read_truth(setup_cfg(config, ["MODEL.DEVICE", "cpu"]).DATASETS.TEST)
    for head, place in result_folders(run).items() if run.truth is not None else ():
        with _noted(run, f"detections of the {head}"):
            run.heads[head] = read_head(place, run.truth)
    return run


@contextlib.contextmanager
def _noted(run: Run, what: str) -> Iterator[None]:
    """A UserError inside becomes one of the run's problems."""
    try:
        yield
    except UserError as error:
        run.problems.append(f"no {what}: {error}")


def read_truth(names: Sequence[str]) -> GroundTruth:
    """
    The ground truth of the only test set; DatasetCatalog must know it.

    Raises:
        UserError: there is not exactly one set, or it is not evaluated with COCO's metric.
    """
    if len(names) != 1:
        raise UserError(
            f"DATASETS.TEST names {len(names)} data sets; detections are kept of runs with one"
        )
    records = load_records(names[0])  # writes the embedded data where they are missing
    metadata = MetadataCatalog.get(names[0])
    if metadata.get("evaluator_type", "coco") != "coco" or not metadata.get("json_file"):
        raise UserError(f"data set '{names[0]}' is not evaluated with COCO's metric")
    with file_errors(), contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(metadata.json_file)
    categories = coco.loadCats(sorted(coco.getCatIds()))
    files = {record["image_id"]: record["file_name"] for record in records}
    return GroundTruth(names[0], coco, [x["name"] for x in categories], files)


def result_folders(run: Run) -> dict[str, Path]:
    """Where the detections of each head lie: inference_HEAD, else inference for EVAL_HEAD's."""
    default = run.cfg.MODEL.MIMICDET.EVAL_HEAD if run.cfg is not None else "student"
    folders = {default: run.folder / "inference"}
    for head in HEADS:
        if (run.folder / f"inference_{head}" / RESULTS).is_file():
            folders[head] = run.folder / f"inference_{head}"
    return folders


def read_head(folder: Path, truth: GroundTruth) -> HeadResults:
    """Evaluate the detections in a folder; UserError for a file that is missing or faulty."""
    path = folder / RESULTS
    results: list[dict[str, Any]] = read_json(path)
    check_results(str(path), results)
    images = images_of(truth.coco, results)
    errors = split_errors(images)
    return HeadResults(evaluate(truth.coco, results), images, errors)


def read_log(text: str) -> LogFacts:
    """What Detectron2's log says of speed and machine; of several evaluations the last one."""
    inference = re.findall(rf"Total inference pure compute time: \S+ {_SECONDS}", text)
    training = re.findall(r"Total training time: ([^(\n]+?) \(", text)
    names = "|".join(map(re.escape, _MACHINE))
    facts = dict(re.findall(rf"^({names}) {{2,}}(.+?)(?: [@(].*)?$", text, re.MULTILINE))
    machine = {name: facts[name].strip() for name in _MACHINE if name in facts}
    return LogFacts(
        float(inference[-1][0]) if inference else None,
        training[-1].strip() if training else None,
        machine,
    )
