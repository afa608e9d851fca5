"""The command line of tools/visualize_distillation.py."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import build_augmentation
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from matplotlib.figure import Figure
from torch import nn

from ..checkpoint import load_weights
from ..config import load_config
from ..data import MimicDatasetMapper, class_names, load_records
from ..distillation import (
    DISTILLATION_REGISTRY,
    DetectorAdapter,
    DetectorTensors,
    FrozenTeacher,
    build_distiller,
)
from ..distillation.pairing import check_pair
from ..engine import setup_cfg
from ..utils.errors import UserError, command, make_folder
from ..visualization.distillation import (
    ChannelVariance,
    channel_variance,
    difference_maps,
    imitation_regions,
    object_ranks,
    visible,
)
from ..visualization.distillation_drawing import (
    draw_differences,
    draw_ranks,
    draw_regions,
    draw_variance,
)
from ..visualization.grid import pick_evenly

# Each picture, and the method that needs of a pair what the picture needs.
PICTURES = {
    "masks": "FineGrained",
    "variance": "FineGrained",
    "differences": "PredictionGuided",
    "ranks": "RankMimicking",
}


@dataclass(frozen=True)
class Pair:
    """A student and its teacher, with their weights."""

    cfg: CfgNode
    student: DetectorAdapter
    teacher: FrozenTeacher

    @property
    def strides(self) -> tuple[int, ...]:
        return self.student.layout.strides


@dataclass(frozen=True)
class View:
    """One image and what both detectors offer of it."""

    name: str
    pixels: np.ndarray  # (H, W, 3) uint8 RGB, the network's input
    student: DetectorTensors
    teacher: DetectorTensors

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visualize_distillation.py",
        description="Draw what distillation methods see of a student and its teacher: "
        "imitation masks, variances, differences, ranks.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="names a teacher")
    parser.add_argument(
        "--input", metavar="DATASET", help="name or address; by default DATASETS.TEST"
    )
    parser.add_argument("--num-images", type=int, default=4, help="picked evenly")
    parser.add_argument("--output", type=Path, default="output/distillation", metavar="FOLDER")
    parser.add_argument(
        "--pictures",
        nargs="+",
        choices=list(PICTURES),
        help="by default all that this pair of detectors allows",
    )
    parser.add_argument("--psi", nargs="*", type=float, default=[0.2, 0.5, 0.8])
    parser.add_argument("--iou-thresholds", nargs="*", type=float, default=[0.5, 0.8])
    parser.add_argument("--num-objects", type=int, default=2, help="an image, for their ranks")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="overrides: MODEL.WEIGHTS FILE DISTILLATION.TEACHER.WEIGHTS FILE KEY VALUE ...",
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for a command line that cannot work, before anything is read."""
    if min(args.num_images, args.num_objects) < 1:
        raise UserError("--num-images and --num-objects must be at least 1")
    if not all(0 <= x <= 1 for x in args.psi + args.iou_thresholds):
        raise UserError("--psi and --iou-thresholds must be 0 to 1")
    if not args.psi + args.iou_thresholds:
        raise UserError("--psi and --iou-thresholds are both empty")


def load_pair(config_file: str, opts: Sequence[str], dataset: str | None = None) -> Pair:
    """
    Build both detectors with their checkpoints; errors as of setup_cfg and build_distiller.

    Args:
        dataset: name or address, in the place of the config's DATASETS.TEST.
    """
    options = [*opts, *(["DATASETS.TEST", f"({dataset!r},)"] if dataset else [])]
    cfg = setup_cfg(config_file, options)
    if not cfg.DISTILLATION.METHODS:
        raise UserError(f"{config_file}: DISTILLATION names no methods and no teacher")
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS path/to/checkpoint.pth is needed behind the options")
    if not cfg.DATASETS.TEST:
        raise UserError("--input is needed: DATASETS.TEST is empty")
    # In training mode, which a student's adapter reads, with the batch norms of evaluation.
    model = build_model(cfg).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    load_weights(model, cfg.MODEL.WEIGHTS)
    distiller = build_distiller(cfg, model)
    return Pair(cfg, distiller.adapter, distiller.teachers[-1])


def choose_pictures(pair: Pair, requested: Sequence[str] | None) -> list[str]:
    """
    The pictures that the pair allows; why others are left out goes to stderr. UserError where a
    requested one is not possible.
    """
    defaults = load_config("")  # whatever the run's own methods are set to
    layouts = pair.student.layout, pair.teacher.adapter.layout
    chosen = []
    for picture in requested or PICTURES:
        method = DISTILLATION_REGISTRY.get(PICTURES[picture])(defaults, *layouts)
        try:
            check_pair([method], pair.student, pair.teacher.adapter, pair.teacher.source)
        except UserError as error:
            if requested:
                raise
            print(f"visualize_distillation: no {picture}: {error}", file=sys.stderr)
            continue
        chosen.append(picture)
    return chosen


def views(pair: Pair, num_images: int) -> Iterator[View]:
    """Images of DATASETS.TEST that have objects, resized as in evaluation."""
    cfg = pair.cfg
    records = [x for x in load_records(cfg.DATASETS.TEST[0]) if x.get("annotations")]
    if not records:
        raise UserError(f"data set '{cfg.DATASETS.TEST[0]}' has no annotated image")
    resize = build_augmentation(cfg, is_train=False)
    mapper = MimicDatasetMapper(cfg, is_train=True, augmentations=resize)
    for index in pick_evenly(len(records), num_images):
        batched_input = mapper(records[index])
        image = batched_input["image"]
        rgb = image.flip(0) if cfg.INPUT.FORMAT == "BGR" else image
        with torch.no_grad(), EventStorage():  # the student's losses are logged, and not used
            _, student = pair.student.forward_training([batched_input])
        name = Path(records[index]["file_name"]).stem
        pixels = rgb.permute(1, 2, 0).numpy()
        yield View(name, pixels, student, pair.teacher([batched_input]))


def draw_view(
    pair: Pair, view: View, pictures: Sequence[str], args: argparse.Namespace
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Pictures of one image by their names, and the numbers behind them."""
    figures: dict[str, Figure] = {}
    numbers: dict[str, Any] = {}
    gt_boxes = view.student.gt_boxes[0]
    if "masks" in pictures:
        regions = imitation_regions(
            view.student, view.size, pair.strides, args.psi, args.iou_thresholds
        )
        figures["masks"] = draw_regions(view.pixels, gt_boxes, regions, pair.strides)
        numbers["mask_shares"] = {x.label: x.shares for x in regions}
    if "differences" in pictures:
        maps = difference_maps(view.student, view.teacher, view.size, pair.strides)
        figures["differences"] = draw_differences(view.pixels, gt_boxes, maps, pair.strides)
        numbers["mean_differences"] = {
            name: [float(x.mean()) for x in getattr(maps, name)]
            for name in ("prediction", "feature", "product")
        }
    if "ranks" in pictures:
        names = class_names(pair.cfg)
        layouts = pair.student.layout, pair.teacher.adapter.layout
        readings = layouts[0].class_scores, layouts[1].class_scores
        ranks = object_ranks(view.student, view.teacher, readings)[: args.num_objects]
        numbers["ranks"] = []
        for number, x in enumerate(ranks, 1):
            name = names[x.gt_class]
            figures[f"ranks_{number}"] = draw_ranks(view.pixels, x, name)
            divergences = {
                "class_divergence": x.class_scores.divergence,
                "iou_divergence": x.ious.divergence,
            }
            content = {"class": name, "box": x.gt_box.tolist(), "anchors": len(x.anchors)}
            numbers["ranks"].append({**content, **divergences})
    return figures, numbers


def level_variances(pair: Pair, seen: Sequence[View]) -> list[ChannelVariance]:
    """FGFI's Fig. 6 (b), (c), of every level over all images, with its psi of 0.5."""
    masks = [imitation_regions(x.student, x.size, pair.strides, [0.5])[0].masks for x in seen]
    return [
        channel_variance(
            [visible(x.teacher.features[level][0], x.size, stride) for x in seen],
            [x[level] for x in masks],
        )
        for level, stride in enumerate(pair.strides)
    ]


def run(args: argparse.Namespace) -> Iterator[Path]:
    """Write the pictures and distillation.json; yields each path that was written."""
    check_arguments(args)
    pair = load_pair(args.config_file, args.opts, args.input)
    pictures = choose_pictures(pair, args.pictures)
    make_folder(args.output)
    content: dict[str, Any] = {"strides": list(pair.strides), "images": []}
    seen = list(views(pair, args.num_images))
    for number, view in enumerate(seen, 1):
        figures, numbers = draw_view(pair, view, pictures, args)
        content["images"].append({"image": view.name, **numbers})
        for name, figure in figures.items():
            path = args.output / f"{number:02d}_{view.name}_{name}.png"
            figure.savefig(path)
            yield path
    if "variance" in pictures:
        levels = level_variances(pair, seen)
        content["variance"] = [
            {"inside": x.inside.tolist(), "outside": x.outside.tolist()} for x in levels
        ]
        path = args.output / "variance.png"
        draw_variance(levels, pair.strides).savefig(path)
        yield path
    path = args.output / "distillation.json"
    path.write_text(json.dumps(content))
    yield path


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print each path as its file is written."""
    for path in run(build_parser().parse_args(argv)):
        print(path)
    return 0
