"""The command line of tools/visualize_sampling.py."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image

from mimicdet_runtime.images import find_images, read_image

from ..data import load_records
from ..engine import Predictor, setup_cfg
from ..modeling.meta_arch.mimicdet import MimicDet
from ..utils.errors import UserError, command, make_folder
from ..visualization.grid import boxes_from_record, pick_evenly
from ..visualization.sampling import draw_sampling, sampling_points


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visualize_sampling.py",
        description="Draw adjusted anchor boxes and the S-head's sampling points (Fig. 3).",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="INPUT",
        help="image files and folders, or the name or address of one data set",
    )
    parser.add_argument("--output", default="output/sampling", metavar="FOLDER")
    parser.add_argument("--num-images", type=int, default=4, help="of a data set, picked evenly")
    parser.add_argument("--compare-config", metavar="FILE", help="by default --config-file's")
    parser.add_argument("--compare-weights", metavar="FILE", help="a checkpoint to draw beside")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="one for each checkpoint")
    parser.add_argument(
        "--choose",
        choices=("score", "ground-truth"),
        default="score",
        help="objects: the best detections of the first checkpoint, or the annotated ones",
    )
    parser.add_argument("--num-objects", type=int, default=5, help="objects an image at most")
    parser.add_argument("--score-threshold", type=float, default=0.3)
    parser.add_argument(
        "--show",
        nargs="*",
        choices=("detections", "ground-truth"),
        default=["detections"],
        help="what else is drawn",
    )
    parser.add_argument("--width", type=int, default=720, help="of each picture, pixels")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="overrides: MODEL.WEIGHTS FILE KEY VALUE ..."
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for a command line that cannot work, before anything is read."""
    for name in ("num_images", "num_objects", "width"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if args.compare_config and not args.compare_weights:
        raise UserError("--compare-config needs --compare-weights")
    count = 2 if args.compare_weights else 1
    if args.labels and len(args.labels) != count:
        raise UserError(f"--labels: {len(args.labels)} labels for {count} checkpoint(s)")


def input_images(inputs: Sequence[str], num_images: int) -> list[tuple[str, np.ndarray | None]]:
    """
    The image files that --input names, each with the (G, 4) XYXY boxes of its objects where it is
    of a data set, which must be registered. UserError where there is none.
    """
    if len(inputs) == 1 and inputs[0] in DatasetCatalog:
        records = load_records(inputs[0])
        if not records:
            raise UserError(f"--input: data set '{inputs[0]}' has no images")
        chosen = [records[index] for index in pick_evenly(len(records), num_images)]
        return [(x["file_name"], boxes_from_record(x)) for x in chosen]
    return [(str(x.path), None) for x in find_images(inputs)]


def load_predictor(config_file: str, opts: Sequence[str]) -> Predictor:
    """A MimicDet with its checkpoint; errors as of setup_cfg and Predictor."""
    predictor = Predictor(setup_cfg(config_file, list(opts)), optimize=False)
    if not isinstance(predictor.model, MimicDet):
        raise UserError(f"{config_file}: MODEL.META_ARCHITECTURE is not MimicDet")
    return predictor


def _load(args: argparse.Namespace) -> list[Predictor]:
    """The one or two checkpoints that the command line names."""
    is_data = len(args.input) == 1 and not Path(args.input[0]).exists()
    # Registered beside the config's own data sets; it gives the class names.
    opts = [*args.opts, *(["DATASETS.TEST", f"({args.input[0]!r},)"] if is_data else [])]
    predictors = [load_predictor(args.config_file, opts)]
    if args.compare_weights:
        opts += ["MODEL.WEIGHTS", args.compare_weights]
        predictors.append(load_predictor(args.compare_config or args.config_file, opts))
    return predictors


def compare(
    predictors: Sequence[Predictor],
    file_name: str,
    gt_boxes: np.ndarray | None,
    args: argparse.Namespace,
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """
    The pictures of all checkpoints side by side, and what is written of each to sampling.json.

    All show the same objects: the annotated ones, or the best detections of the first checkpoint,
    for which the others give the adjusted box that overlaps it most.
    """
    reference = None
    if args.choose == "ground-truth":
        if gt_boxes is None:
            raise UserError("--choose ground-truth needs a data set as --input")
        reference = gt_boxes[: args.num_objects]
    pixels = read_image(file_name)
    panels: list[np.ndarray] = []
    content = []
    for predictor, label in zip(predictors, args.labels or ["", ""]):
        record = sampling_points(
            predictor.model,
            predictor.preprocess(pixels),
            num_objects=args.num_objects,
            score_threshold=args.score_threshold,
            reference_boxes=reference,
        )
        reference = record.boxes if reference is None else reference
        content.append({"image": file_name, "label": label, **record.to_json()})
        panel = draw_sampling(
            pixels[:, :, ::-1],
            record,
            predictor.class_names,
            width=args.width,
            title=label,
            show_detections="detections" in args.show,
            gt_boxes=gt_boxes if "ground-truth" in args.show else None,
        )
        gap = np.full((panel.shape[0], 12, 3), 255, dtype=np.uint8)
        panels += [gap, panel] if panels else [panel]
    return Image.fromarray(np.concatenate(panels, axis=1)), content


def run(args: argparse.Namespace) -> Iterator[Path]:
    """Write the pictures and sampling.json; yields each path that was written."""
    check_arguments(args)
    predictors = _load(args)
    images = input_images(args.input, args.num_images)
    output = Path(args.output)
    make_folder(output)
    content: list[dict[str, Any]] = []
    for number, (file_name, gt_boxes) in enumerate(images, 1):
        picture, records = compare(predictors, file_name, gt_boxes, args)
        path = output / f"{number:02d}_{Path(file_name).stem}.jpg"
        picture.save(path, quality=90)
        content += records
        yield path
    path = output / "sampling.json"
    path.write_text(json.dumps(content))
    yield path


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print each path as its file is written."""
    for path in run(build_parser().parse_args(argv)):
        print(path)
    return 0
