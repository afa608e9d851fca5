"""The command line of tools/export_model.py."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..checkpoint.student import load_deployed_cfg
from ..export.formats import DEFAULT_OPSET, FORMATS
from ..export.writer import PRECISIONS, ExportOptions, export_model
from ..utils.errors import command


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write the student of a trained MimicDet as one verified file."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--format", default="onnx", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--precision", default="float32", help=f"one of {', '.join(PRECISIONS)}")
    parser.add_argument(
        "--include-resize",
        action="store_true",
        help="the graph takes one image at its full size and resizes it as the config says",
    )
    parser.add_argument(
        "--fixed-size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="onnx: for one image on a canvas of this size alone, as some compilers ask for",
    )
    parser.add_argument(
        "--sample-images",
        default="",
        metavar="DIR",
        help="pictures to verify the file with; int8 is calibrated on them, or on DATASETS.TRAIN",
    )
    parser.add_argument("--opset", type=int, default=DEFAULT_OPSET, help="of ONNX")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="overrides: MODEL.WEIGHTS path/to/model_final.pth ...",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    setup_logger(name="mimicdet")
    options = ExportOptions(
        args.format,
        args.precision,
        args.include_resize,
        args.opset,
        args.sample_images,
        tuple(args.fixed_size) if args.fixed_size else None,
    )
    cfg, class_names = load_deployed_cfg(args.config_file, args.opts)
    metadata = export_model(
        cfg, class_names, args.output, options, config_name=Path(args.config_file).name
    )
    print(json.dumps(metadata, indent=1))
    return 0
