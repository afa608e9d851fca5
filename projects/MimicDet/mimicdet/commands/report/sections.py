"""The sections of the report: from runs to HTML, also where parts of a run are missing."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ...evaluation.error_split import KINDS
from ...utils.errors import UserError
from ...visualization.curves import Panel, group_scalars
from .images import best_and_worst, picture_pair
from .page import Cell, Section, charts, line_chart, number, paragraph, table
from .runs import HEADS, HeadResults, Run

Evaluated = Sequence[tuple[Run, HeadResults]]  # runs with the results of their main heads

_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_MOST_CLASSES = 8
_NO_DETECTIONS = "No run left detections that can be evaluated; see Notes."


def build_sections(runs: Sequence[Run], score_threshold: float, num_images: int) -> list[Section]:
    """All sections in their order; one that has nothing to show says so."""
    evaluated_runs = [(run, run.main) for run in runs if run.main is not None]

    def evaluated(section: Callable[..., str], *args: Any) -> str:
        return section(evaluated_runs, *args) if evaluated_runs else paragraph(_NO_DETECTIONS)

    sections = [
        ("summary", "Average precision", average_precision(runs)),
        ("curves", "Curves", curves(runs)),
        ("classes", "AP of each class", evaluated(class_table)),
        ("precision-recall", "Precision and recall", evaluated(precision_recall)),
        ("errors", "Errors", evaluated(errors)),
        ("images", "Best and worst images", evaluated(images, score_threshold, num_images)),
        ("heads", "Student against teacher", heads(runs)),
        ("speed", "Speed", speed(runs)),
        ("settings", "Settings", settings(runs)),
    ]
    problems = [f"{run.label}: {problem}" for run in runs for problem in run.problems]
    if problems:
        notes = "".join(paragraph(problem, faint=False) for problem in problems)
        sections.append(("notes", "Notes", notes))
    return sections


def _compared(values: Sequence[float]) -> list[Cell]:
    """Cells of percent that compare runs: a bar each, the highest bold where there are several."""
    known = [value for value in values if value == value]
    best = max(known) if len(known) > 1 else None
    return [Cell(number(v), v / 100 if v == v else None, v == best) for v in values]


def average_precision(runs: Sequence[Run]) -> str:
    """COCO's summary for each run and head, and the last and best AP that training logged."""
    rows: list[list[str | Cell]] = []
    for run in runs:
        for head, results in run.heads.items():
            values = [number(results.evaluation.summary[name]) for name in _SUMMARY]
            rows.append([f"{run.label}, {head}", *values])
        if not run.heads:
            last = {key: float(values[-1]) for key, (_, values) in run.metrics.items()}
            values = [number(last.get(f"bbox/{name}")) for name in _SUMMARY]
            rows.append([f"{run.label}, as logged in training", *values])
    truth = next((run.truth for run in runs if run.truth is not None), None)
    note = "COCO's metric, in percent."
    if truth is not None:
        count, objects = len(truth.coco.imgs), len(truth.coco.anns)
        note += f" Test set {truth.name}: {count} images, {objects} objects."
    return table(("Run", *_SUMMARY), rows) + paragraph(note)


def curves(runs: Sequence[Run]) -> str:
    """Total loss and AP of all runs in common charts, then everything of each run."""
    if not any(run.metrics for run in runs):
        return paragraph("No run has a metrics.json.")
    parts = []
    if len(runs) > 1:
        parts.append(charts([_overlay(runs, key, *rest) for key, *rest in _OVERLAYS]))
    for run in runs:
        own = charts([line_chart(panel) for panel in group_scalars(run.metrics)])
        if len(runs) == 1:
            return own
        name = html.escape(run.label)
        parts.append(f"<details><summary>{name}: all curves</summary>{own}</details>")
    return "".join(parts)


# Scalar, title, scale.
_OVERLAYS = (
    ("total_loss", "Total loss", "log"),
    ("bbox/AP", "AP on the test set", "linear"),
    ("bbox/AP50", "AP50 on the test set", "linear"),
    ("mimic/cosine_cls", "Cosine of the heads' classification features", "linear"),
)


def _overlay(runs: Sequence[Run], key: str, title: str, scale: str) -> str:
    """One scalar of all runs in one chart; empty where fewer than two runs have it."""
    lines = [
        (*run.metrics[key], {"label": run.label, "color": f"C{index}"})
        for index, run in enumerate(runs)
        if key in run.metrics
    ]
    # Without two there is nothing to compare; the run's own curves show it.
    limits = (None if scale == "log" else 0.0, None)
    return line_chart(Panel(title, lines, scale, limits)) if len(lines) > 1 else ""


def class_table(evaluated_runs: Evaluated) -> str:
    """AP of every class, runs side by side, with the objects of the test set."""
    rows: list[list[str | Cell]] = []
    firsts: dict[tuple[str, ...], HeadResults] = {}  # as a rule all test sets have the same classes
    for run, results in evaluated_runs:
        firsts.setdefault(tuple(run.truth.class_names), results)
    for names, first in firsts.items():
        classes = np.concatenate([x.gt_classes[~x.gt_crowd] for x in first.images])
        count = np.bincount(classes, minlength=len(names))
        nothing = np.full(len(names), np.nan)
        columns = [
            x.evaluation.per_class if tuple(run.truth.class_names) == names else nothing
            for run, x in evaluated_runs
        ]
        for name, objects, *values in zip(names, count, *columns):
            rows.append([name, str(objects), *_compared(values)])
    header = ("Class", "Objects", *(_head_label(run) for run, _ in evaluated_runs))
    return table(header, rows)


def _head_label(run: Run) -> str:
    return run.label if run.main_head == "student" else f"{run.label}, {run.main_head}"


def precision_recall(evaluated_runs: Evaluated) -> str:
    """Precision over recall at IoU 0.5: the classes of each run, and runs against each other."""
    recall = np.linspace(0, 1, 101)

    def chart(title: str, *curves: tuple[str, np.ndarray, str, str]) -> str:
        lines = [
            (recall, y, {"label": name, "color": color, "linestyle": dash})
            for name, y, color, dash in curves
        ]
        return line_chart(Panel(title, lines, limits=(0, 1.02), x_label="recall"))

    parts = []
    if len(evaluated_runs) > 1:
        means = [
            (f"{_head_label(run)}, IoU {iou:.2f}", _mean(results, row), f"C{i}", dash)
            for i, (run, results) in enumerate(evaluated_runs)
            for iou, row, dash in ((0.5, 0, "-"), (0.75, 5, "--"))
        ]
        parts.append(chart("Mean precision of the classes", *means))
    for run, results in evaluated_runs:
        precision = results.evaluation.precision[0]
        objects = np.concatenate([x.gt_classes for x in results.images])
        common = np.argsort(-np.bincount(objects, minlength=precision.shape[1]), kind="stable")
        shown = [int(i) for i in sorted(common[:_MOST_CLASSES]) if (precision[:, i] > -1).all()]
        curves = [(run.truth.class_names[i], precision[:, i], f"C{i}", "-") for i in shown]
        if len(evaluated_runs) == 1:
            curves.append(("all", _mean(results, 0), "black", "-"))
            curves.append(("all, IoU 0.75", _mean(results, 5), "black", "--"))
        parts.append(chart(f"{_head_label(run)}: precision at IoU 0.50", *curves))
    note = ""
    if any(len(run.truth.class_names) > _MOST_CLASSES for run, _ in evaluated_runs):
        note = paragraph(f"The {_MOST_CLASSES} classes with the most objects are drawn.")
    return charts(parts) + note


def _mean(results: HeadResults, row: int) -> np.ndarray:
    """Mean precision over the classes that have objects, at one of the ten IoUs: (101,)."""
    precision = results.evaluation.precision[row]
    return precision[:, (precision > -1).all(axis=0)].mean(axis=1)


_ERROR_TEXT = {
    "localisation": "right class, IoU with the object from 0.1 to 0.5",
    "classification": "IoU of 0.5 or more with an object of another class",
    "both": "another class and IoU from 0.1 to 0.5",
    "duplicate": "the object was found before by a better detection",
    "background": "IoU of at most 0.1 with every object",
    "missed": "an object that no detection points to",
}


def errors(evaluated_runs: Evaluated) -> str:
    """TIDE's split: what AP50 gains when one kind of error is put right."""
    highest = max(max(results.errors.gains.values()) for _, results in evaluated_runs)
    rows: list[list[str | Cell]] = []
    for kind in KINDS:
        row: list[str | Cell] = [kind]
        for _, results in evaluated_runs:
            gain, count = results.errors.gains[kind], results.errors.counts[kind]
            row += [str(count), Cell(number(gain, 2), gain / max(highest, 1e-9))]
        rows.append(row)
    header = ["Kind"]
    for run, results in evaluated_runs:
        label = _head_label(run)
        header += [f"{label}: number", f"dAP, of AP50 {number(results.errors.ap50)}"]
    meanings = "".join(f"<li><b>{kind}</b>: {text}</li>" for kind, text in _ERROR_TEXT.items())
    return (
        table(header, rows)
        + paragraph(
            "dAP: points that AP50 gains when this kind of error alone is put right (TIDE, Bolya "
            "et al., 2020). The gains do not add up to what is missing. Numbers count all "
            "detections, those of low score too."
        )
        + f"<details><summary>What the kinds mean</summary><ul>{meanings}</ul></details>"
    )


def images(evaluated_runs: Evaluated, threshold: float, count: int) -> str:
    """Pictures of the images of lowest and highest F1 of each run."""
    parts = [
        paragraph(
            f"By F1 at IoU 0.5 of detections with a score of at least {threshold:.2f}. Left the "
            "detections, right the ground truth."
        )
    ]
    for run, results in evaluated_runs:
        best, worst = best_and_worst(results.images, threshold, count)
        for name, scores in (("worst", worst), ("best", best)):
            pairs = "".join(_pair_or_note(score, run) for score in scores)
            label = html.escape(_head_label(run))
            parts.append(f'<h3>{label}: {name}</h3><div class="pictures">{pairs}</div>')
    return "".join(parts)


def _pair_or_note(score, run: Run) -> str:
    try:
        return picture_pair(score, run.truth)
    except UserError as error:
        return paragraph(f"Image {score.image.image_id} cannot be read: {error}")


def heads(runs: Sequence[Run]) -> str:
    """AP of either head of the same checkpoint, where both were evaluated."""
    rows: list[list[str | Cell]] = []
    missing = []
    for run in runs:
        if any(head not in run.heads for head in HEADS):
            missing.append(run.label)
            continue
        both = [run.heads[head].evaluation.summary for head in HEADS]
        for name in _SUMMARY:
            student, teacher = (values[name] for values in both)
            cells = (number(student), number(teacher), number(student - teacher))
            rows.append([f"{run.label}, {name}", *cells])
    parts = []
    if rows:
        parts.append(table(("", "Student", "Teacher", "Difference"), rows))
    if missing:
        note = "--eval-teacher evaluates the T-head of the last checkpoint."
        parts.append(paragraph(f"Not both heads were evaluated: {', '.join(missing)}. {note}"))
    return "".join(parts)


def speed(runs: Sequence[Run]) -> str:
    """Seconds an iteration and an image, and on what."""
    facts = [_speed_facts(run) for run in runs]
    names = dict.fromkeys(name for known in facts for name in known)
    rows: list[list[str | Cell]] = [[x, *(known.get(x, "-") for known in facts)] for x in names]
    note = "From metrics.json and log.txt. Inference is the model alone, in the last evaluation."
    return table(("", *(run.label for run in runs)), rows, "facts") + paragraph(note)


def _speed_facts(run: Run) -> dict[str, str]:
    medians = {key: float(np.median(values)) for key, (_, values) in run.metrics.items()}
    last = max((int(iterations[-1]) for iterations, _ in run.metrics.values()), default=None)
    seconds = run.log.inference_seconds
    return {
        "Iterations": number(last, 0),
        "Seconds an iteration, median": number(medians.get("time"), 3),
        "of which waiting for data": number(medians.get("data_time"), 3),
        "Training time": run.log.training_time or "-",
        "Inference, ms an image": number(None if seconds is None else 1000 * seconds),
        "Device": run.cfg.MODEL.DEVICE if run.cfg is not None else "-",
        **run.log.machine,
    }


_CHOSEN = (
    "MODEL.RESNETS.DEPTH",
    "MODEL.MIMICDET.MIMIC.ENABLED",
    "MODEL.MIMICDET.STUDENT.ALIGNMENT",
    "MODEL.MIMICDET.STUDENT.KERNEL_SIZES",
    "INPUT.MIN_SIZE_TEST",
    "SOLVER.MAX_ITER",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.BASE_LR",
    "SEED",
)


def settings(runs: Sequence[Run]) -> str:
    """The keys in which the runs differ; of one run those that tell most."""
    known = [run for run in runs if run.cfg is not None]
    if not known:
        return paragraph("No run has a config.yaml.")
    flat = [_flatten(run.cfg) for run in known]
    if len(known) > 1:
        keys = [key for key in sorted(set().union(*flat)) if len({x.get(key) for x in flat}) > 1]
        note = "The keys of config.yaml in which the runs differ."
    else:
        keys, note = [key for key in _CHOSEN if key in flat[0]], "A few keys of config.yaml."
    if not keys:
        return paragraph("The runs have the same config.")
    rows: list[list[str | Cell]] = [[key, *(x.get(key, "-") for x in flat)] for key in keys]
    return table(("Key", *(run.label for run in known)), rows, "facts") + paragraph(note)


def _flatten(cfg: CfgNode, prefix: str = "") -> dict[str, str]:
    flat = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif key != "OUTPUT_DIR":  # differs always and says nothing
            flat[prefix + key] = str(value)
    return flat
