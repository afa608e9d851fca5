"""
COCO's AP of an exported model by pycocotools, with a picture of every image:

    python -m mimicdet_runtime.evaluation MODEL.onnx ANNOTATIONS.json IMAGE_FOLDER -o FOLDER
"""

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .detector import Detector
from .drawing import draw_detections
from .errors import UserError, command, file_errors
from .images import read_image, write_image
from .progress import Progress

_AP_NAMES = ("AP", "AP50", "AP75")


def _import_pycocotools() -> tuple[Any, Any]:
    """The classes COCO and COCOeval."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UserError(f"pycocotools is needed (pip install pycocotools): {error}") from error
    return COCO, COCOeval


def read_truth(path: Path, class_names: Sequence[str]) -> Any:
    """
    COCO's annotations; UserError where the file cannot be read or its classes are not those of the
    model, numbered from 1 in the same order.
    """
    coco, _ = _import_pycocotools()
    with file_errors(), contextlib.redirect_stdout(io.StringIO()):
        try:
            truth = coco(str(path))
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f"{path}: no COCO annotations: {error!r}") from error
    classes = {i: category["name"] for i, category in truth.cats.items()}
    if classes != dict(enumerate(class_names, 1)):
        raise UserError(f"{path}: classes {classes} are not the model's {list(class_names)}")
    return truth


def average_precisions(truth: Any, results: list[dict[str, Any]]) -> dict[str, float]:
    """AP, AP50, AP75 and "AP-NAME" of each class, 0..100; NaN for a class without a box."""
    _, coco_eval = _import_pycocotools()
    if not results:
        return dict.fromkeys(_AP_NAMES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools' own lines
        evaluation = coco_eval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {name: 100 * float(evaluation.stats[i]) for i, name in enumerate(_AP_NAMES)}
    # By IoU, recall, class, size (the first: all) and detections an image (the last: 100).
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for i, category in enumerate(evaluation.params.catIds):
        of_class = precision[:, :, i]
        known = of_class[of_class > -1]
        name = f"AP-{truth.cats[category]['name']}"
        values[name] = 100 * float(known.mean()) if known.size else float("nan")
    return values


def detect(
    detector: Detector, truth: Any, images: Path, output: Path, score: float
) -> tuple[list[dict[str, Any]], float]:
    """
    Detect in every image of `truth` and draw what has at least `score` into output/images.

    Returns:
        COCO's results of any score, and the seconds that detection took.
    """
    results, seconds = [], 0.0
    with contextlib.closing(Progress(len(truth.imgs))) as progress:
        for image_id, record in sorted(truth.imgs.items()):
            image = read_image(images / record["file_name"])
            start = time.perf_counter()
            found = detector(image)
            seconds += time.perf_counter() - start
            results += found.to_coco(image_id)
            target = output / "images" / record["file_name"]
            write_image(target, draw_detections(image, found.above(score)))
            progress.advance()
    return results, seconds


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mimicdet_runtime.evaluation", description=__doc__)
    add = parser.add_argument
    add("model", type=Path, help="ONNX file written by tools/export_model.py")
    add("annotations", type=Path, help="COCO JSON file")
    add("images", type=Path, help="folder of its images")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER")
    add("--score", type=float, default=0.4, help="lowest score drawn (0.4)")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(f"{' '.join(unknown)}: unknown here; options of a training need Detectron2")
    if not args.model.is_file():
        raise UserError(
            f"{args.model}: no such file; this checkout ships no such model. tools/export_model.py "
            "writes one where Detectron2 is installed"
        )
    detector = Detector(args.model)
    truth = read_truth(args.annotations, detector.class_names)
    print(f"{args.model}: {len(truth.imgs)} images, {len(truth.anns)} objects", flush=True)
    results, seconds = detect(detector, truth, args.images, args.output, args.score)
    with file_errors():
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "results.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    print()
    for name, value in average_precisions(truth, results).items():
        print(f"  {name:<16}{value:6.1f}")
    print(f"\n{1000 * seconds / max(len(truth.imgs), 1):.0f} ms an image. Written:")
    print(f"  {args.output / 'images'}\n  {args.output / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
