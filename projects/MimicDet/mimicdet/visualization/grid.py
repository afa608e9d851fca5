"""An image grid: detections beside ground truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw

from ..data.images import read_image
from ..evaluation.matching import check_results
from ..utils.drawing import class_color, draw_key, draw_labelled_boxes, load_font
from ..utils.errors import UserError, read_json

# COCO-format results: a file, its records, or a predictor (DefaultPredictor: BGR image -> output).
Detections = str | PathLike[str] | Sequence[dict[str, Any]] | Callable[[np.ndarray], dict[str, Any]]

_BACKGROUND = (247, 248, 250)
_CARD = (255, 255, 255)
_CARD_EDGE = (217, 221, 227)
_MAT = (32, 34, 40)
_INK = (28, 32, 40)
_FAINT = (105, 113, 125)
_MARGIN = 18
_PADDING = 10
_HEADER = 26


@dataclass
class _Objects:
    """The boxes of one image, XYXY in its own pixels."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray | None,
    class_names: Sequence[str],
    *,
    width: int | None = None,
    crowd: Sequence[bool] | np.ndarray | None = None,
) -> np.ndarray:
    """
    Draw boxes with class names, and scores where given, on an image.

    Args:
        image: (H, W, 3) uint8, RGB; boxes: (N, 4) XYXY in its pixels.
        classes: N contiguous class ids, 0..len(class_names) - 1.
        scores: N scores 0..1, or None for ground truth.
        width: of the picture in pixels, the image is resized to it first; None: as the image.
        crowd: N flags; crowd regions are drawn dashed.

    Returns:
        uint8 RGB array of shape (H', W', 3).

    Raises:
        ValueError: lengths differ, the image is no RGB image, or a class id has no name.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    for name, values in (("classes", classes), ("scores", scores), ("crowd", crowd)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{len(boxes)} boxes but {len(values)} {name}")
    for index in classes:
        if not 0 <= index < len(class_names):
            raise ValueError(
                f"class id {index} has no name: there are {len(class_names)} class names"
            )
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = 1.0 if width is None else width / picture.width
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    labels = [class_names[index] for index in classes]
    order = np.arange(len(labels))
    if scores is not None:
        labels = [f"{name} {score:.2f}" for name, score in zip(labels, scores)]
        # The best is drawn on top, and has the first choice of place for its label.
        order = np.argsort(-np.asarray(scores), kind="stable")
    if crowd is not None:
        labels = [f"{label} (crowd)" if flag else label for label, flag in zip(labels, crowd)]
    draw_labelled_boxes(
        picture,
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4)[order] * scale,
        [class_color(int(classes[i])) for i in order],
        [labels[i] for i in order],
        dashed=None if crowd is None else [bool(crowd[i]) for i in order],
        line_width=int(np.clip(picture.width // 150, 2, 4)),
        font_size=int(np.clip(picture.width // 36, 11, 18)),
    )
    return np.asarray(picture)


def pick_evenly(count: int, at_most: int) -> list[int]:
    """Return indices spread evenly over range(count), always the same ones."""
    return np.linspace(0, count - 1, max(min(at_most, count), 0)).round().astype(int).tolist()


def detection_grid(
    dataset_name: str,
    detections: Detections,
    output_png: str | PathLike[str] | None = None,
    *,
    num_images: int = 8,
    columns: int = 2,
    score_threshold: float = 0.4,
    panel_width: int = 460,
    title: str = "",
) -> np.ndarray:
    """
    Draw a grid of images: in each cell the detections on the left, the ground truth on the right.

    Args:
        dataset_name: a data set registered in Detectron2's DatasetCatalog.
        detections: COCO-format results ({image_id, category_id, bbox XYWH, score}), as the file
            coco_instances_results.json that COCOEvaluator writes or as its records; or a predictor
            such as DefaultPredictor, called with each chosen image as BGR uint8 (H, W, 3).
        output_png: where the grid is written; None: nowhere.
        num_images: cells at most; images are picked evenly over the data set.
        panel_width: width in pixels of each of a cell's two pictures.

    Returns:
        uint8 RGB array of shape (H, W, 3).

    Raises:
        UserError: the data set is empty, an image of it or the results file cannot be read, or the
            results do not belong to the data set.
    """
    if num_images < 1 or columns < 1:
        raise ValueError(f"num_images ({num_images}) and columns ({columns}) must be at least 1")
    records = DatasetCatalog.get(dataset_name)
    if not records:
        raise UserError(f"data set '{dataset_name}' has no images")
    metadata = MetadataCatalog.get(dataset_name)
    names: list[str] = list(metadata.thing_classes)
    if not callable(detections):
        by_image = _group_by_image(detections, records, metadata)
    chosen = [records[index] for index in pick_evenly(len(records), num_images)]
    cells, shown = [], set()
    for record in chosen:
        image = read_image(record["file_name"], "RGB")
        if callable(detections):
            output = detections(np.ascontiguousarray(image[:, :, ::-1]))
            results = _from_predictor(output, score_threshold)
        else:
            of_image = by_image.get(record["image_id"], [])
            results = _from_results(of_image, metadata, score_threshold)
        truth = _from_record(record)
        shown |= {*results.classes.tolist(), *truth.classes.tolist()}
        sides = {
            f"Detections: {len(results.boxes)}": results,
            f"Ground truth: {len(truth.boxes)}": truth,
        }
        cells.append(_draw_cell(image, sides, names, panel_width))
    subtitle = (
        f"{len(chosen)} of {len(records)} images, detections with a score of at least "
        f"{score_threshold:.2f}"
    )
    legend = [(names[index], class_color(index)) for index in sorted(shown)]
    grid = _compose(cells, min(columns, len(cells)), title or dataset_name, subtitle, legend)
    if output_png is not None:
        path = Path(output_png)
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.save(path, format="PNG")
    return np.asarray(grid)


def _group_by_image(
    detections: str | PathLike[str] | Sequence[dict[str, Any]],
    records: Sequence[dict[str, Any]],
    metadata: Any,
) -> dict[Any, list[dict[str, Any]]]:
    if isinstance(detections, (str, PathLike)):
        where, results = f"results file '{detections}'", read_json(Path(detections))
    else:
        where, results = "the results", list(detections)
    check_results(where, results)
    known = {record["image_id"] for record in records}
    grouped: dict[Any, list[dict[str, Any]]] = {}
    for number, result in enumerate(results):
        if result["image_id"] not in known:
            raise UserError(
                f"{where}: record {number} is of image {result['image_id']!r}, which data set "
                f"'{metadata.name}' does not have"
            )
        grouped.setdefault(result["image_id"], []).append(result)
    return grouped


def _from_results(results: Sequence[dict[str, Any]], metadata: Any, threshold: float) -> _Objects:
    """Convert COCO-format records of one image; category ids are the data set's own."""
    results = [result for result in results if result["score"] >= threshold]
    categories = [result["category_id"] for result in results]
    id_map = metadata.get("thing_dataset_id_to_contiguous_id", {x: x for x in categories})
    for category in categories:
        if category not in id_map:
            raise UserError(f"category id {category} is not one of data set '{metadata.name}'")
    boxes = np.array([result["bbox"] for result in results], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = np.array([id_map[x] for x in categories], dtype=np.int64)
    return _Objects(boxes, classes, np.array([result["score"] for result in results]))


def _from_predictor(output: dict[str, Any], threshold: float) -> _Objects:
    instances = output["instances"].to("cpu")
    instances = instances[instances.scores >= threshold]
    return _Objects(
        instances.pred_boxes.tensor.detach().double().numpy(),
        instances.pred_classes.numpy(),
        instances.scores.detach().double().numpy(),
    )


def _from_record(record: dict[str, Any]) -> _Objects:
    annotations = record.get("annotations", [])
    boxes = [
        BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations
    ]
    return _Objects(
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array([a["category_id"] for a in annotations], dtype=np.int64),
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
    )


def boxes_from_record(record: dict[str, Any]) -> np.ndarray:
    """(G, 4) XYXY boxes of the annotations of a Detectron2 record, crowds left out."""
    objects = _from_record(record)
    return objects.boxes[~objects.crowd]


def _draw_cell(
    image: np.ndarray, sides: dict[str, _Objects], names: Sequence[str], width: int
) -> Image.Image:
    """Draw a card with two headed pictures of `width` pixels; very tall images are made smaller."""
    height, limit = image.shape[0] * width / image.shape[1], 1.25 * width
    fitting = width if height <= limit else max(round(width * limit / height), 1)
    panels = [
        Image.fromarray(
            draw_detections(
                image, x.boxes, x.classes, x.scores, names, width=fitting, crowd=x.crowd
            )
        )
        for x in sides.values()
    ]
    size = (2 * width + 3 * _PADDING, panels[0].height + _HEADER + 2 * _PADDING)
    cell = Image.new("RGB", size, _CARD)
    draw = ImageDraw.Draw(cell)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=_CARD_EDGE)
    top = _PADDING + _HEADER
    for side, (panel, text) in enumerate(zip(panels, sides)):
        left = _PADDING + side * (width + _PADDING)
        draw.text((left, _PADDING), text, font=load_font(15, bold=True), fill=_INK)
        draw.rectangle((left, top, left + width - 1, top + panel.height - 1), fill=_MAT)
        cell.paste(panel, (left + (width - panel.width) // 2, top))
    return cell


def _compose(
    cells: Sequence[Image.Image],
    columns: int,
    title: str,
    subtitle: str,
    legend: Sequence[tuple[str, tuple[int, int, int]]],
) -> Image.Image:
    """Title, subtitle, legend and cells, all of one width, under each other."""
    step = cells[0].width + _MARGIN
    limit = 100 + 24 * len(legend) + sum(cell.height + _MARGIN for cell in cells)
    grid = Image.new("RGB", (columns * step + _MARGIN, limit), _BACKGROUND)
    draw = ImageDraw.Draw(grid)
    draw.text((_MARGIN, _MARGIN), title, font=load_font(24, bold=True), fill=_INK)
    draw.text((_MARGIN, _MARGIN + 32), subtitle, font=load_font(14), fill=_FAINT)
    start = (_MARGIN, _MARGIN + 58)
    top = round(draw_key(draw, legend, start, grid.width - _MARGIN, 14, _INK))
    top += 32 if legend else 0
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        for column, cell in enumerate(row):
            grid.paste(cell, (_MARGIN + column * step, top))
        top += max(cell.height for cell in row) + _MARGIN
    return grid.crop((0, 0, grid.width, top))
