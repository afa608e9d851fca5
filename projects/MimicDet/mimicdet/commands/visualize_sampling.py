"""The command line of tools/visualize_sampling.py."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image

from mimicdet_runtime.images import find_images, read_image

from ..data import load_records
from ..engine import Predictor, setup_cfg
from ..modeling.meta_arch.mimicdet import MimicDet
from ..utils.errors import UserError, command, make_folder
from ..visualization.grid import boxes_from_record, pick_evenly
from ..visualization.sampling import SamplingRecord, draw_sampling, sampling_points


@dataclass(frozen=True)
class InputImage:
    """An image to look at: the name of its picture, its file, and its objects where known."""

    name: str
    file_name: str
    gt_boxes: np.ndarray | None  # (G, 4) XYXY pixels, crowds left out


@dataclass(frozen=True)
class Contender:
    """A checkpoint to look at, under the label that its pictures carry."""

    label: str
    predictor: Predictor


def build_parser() -> argparse.ArgumentParser:
    """The parser of tools/visualize_sampling.py."""
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
    wanted = 2 if args.compare_weights else 1
    if args.labels and len(args.labels) != wanted:
        raise UserError(f"--labels: {len(args.labels)} labels for {wanted} checkpoint(s)")


def input_images(inputs: Sequence[str], num_images: int) -> list[InputImage]:
    """The images that --input names; a data set must be registered. UserError where none is."""
    if len(inputs) == 1 and inputs[0] in DatasetCatalog:
        records = load_records(inputs[0])
        chosen = [records[index] for index in pick_evenly(len(records), num_images)]
        if not chosen:
            raise UserError(f"--input: data set '{inputs[0]}' has no images")
        return [
            InputImage(Path(x["file_name"]).stem, x["file_name"], boxes_from_record(x))
            for x in chosen
        ]
    return [InputImage(x.path.stem, str(x.path), None) for x in find_images(inputs)]


def load_contender(config_file: str, opts: Sequence[str], label: str = "") -> Contender:
    """Build a model for evaluation with its checkpoint; errors as of setup_cfg and Predictor."""
    predictor = Predictor(setup_cfg(config_file, list(opts)), optimize=False)
    if not isinstance(predictor.model, MimicDet):
        raise UserError(f"{config_file}: MODEL.META_ARCHITECTURE is not MimicDet")
    return Contender(label, predictor)


def compare(
    contenders: Sequence[Contender], image: InputImage, args: argparse.Namespace
) -> list[SamplingRecord]:
    """
    A record for each checkpoint, of the same objects: the annotated ones, or the best detections of
    the first checkpoint, for which the others give the adjusted box that overlaps it most.
    """
    reference = None
    if args.choose == "ground-truth":
        if image.gt_boxes is None:
            raise UserError("--choose ground-truth needs a data set as --input")
        reference = image.gt_boxes[: args.num_objects]
    records: list[SamplingRecord] = []
    pixels = read_image(image.file_name)
    for contender in contenders:
        record = sampling_points(
            contender.predictor.model,
            contender.predictor.preprocess(pixels),
            num_objects=args.num_objects,
            score_threshold=args.score_threshold,
            reference_boxes=reference,
        )
        records.append(record)
        reference = record.boxes if reference is None else reference
    return records


def draw(
    contenders: Sequence[Contender],
    records: Sequence[SamplingRecord],
    image: InputImage,
    args: argparse.Namespace,
) -> Image.Image:
    """The pictures of all checkpoints side by side."""
    pixels = read_image(image.file_name)[:, :, ::-1]
    panels = [
        draw_sampling(
            pixels,
            record,
            contender.predictor.class_names,
            width=args.width,
            title=contender.label,
            show_detections="detections" in args.show,
            gt_boxes=image.gt_boxes if "ground-truth" in args.show else None,
        )
        for contender, record in zip(contenders, records)
    ]
    gap = np.full((panels[0].shape[0], 12, 3), 255, dtype=np.uint8)
    parts = [part for panel in panels for part in (gap, panel)][1:]
    return Image.fromarray(np.concatenate(parts, axis=1))


def _load(args: argparse.Namespace) -> list[Contender]:
    """The one or two checkpoints that the command line names."""
    is_data = len(args.input) == 1 and not Path(args.input[0]).exists()
    # Registered beside the config's own data sets; it gives the class names.
    opts = [*args.opts, *(["DATASETS.TEST", f"({args.input[0]!r},)"] if is_data else [])]
    labels = args.labels or ["", ""]
    contenders = [load_contender(args.config_file, opts, labels[0])]
    if args.compare_weights:
        config_file = args.compare_config or args.config_file
        opts += ["MODEL.WEIGHTS", args.compare_weights]
        contenders.append(load_contender(config_file, opts, labels[1]))
    return contenders


def run(args: argparse.Namespace) -> Iterator[Path]:
    """Write the pictures and sampling.json; yields each path that was written."""
    check_arguments(args)
    contenders = _load(args)
    images = input_images(args.input, args.num_images)
    output = Path(args.output)
    make_folder(output)
    content = []
    for number, image in enumerate(images, 1):
        records = compare(contenders, image, args)
        path = output / f"{number:02d}_{image.name}.jpg"
        draw(contenders, records, image, args).save(path, quality=90)
        content += [
            {"image": image.file_name, "label": contender.label, **record.to_json()}
            for contender, record in zip(contenders, records)
        ]
        yield path
    path = output / "sampling.json"
    path.write_text(json.dumps(content))
    yield path


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run tools/visualize_sampling.py: print each path as its file is written."""
    for path in run(build_parser().parse_args(argv)):
        print(path)
    return 0
