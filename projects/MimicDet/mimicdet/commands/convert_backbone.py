"""torchvision's ImageNet backbones in Detectron2's format: tools/convert_backbone.py."""

import argparse
from collections.abc import Sequence

from ..model_zoo.convert import ARCHITECTURES, PIXEL_MEAN, PIXEL_STD, convert_backbone
from ..utils.errors import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Bring a torchvision ImageNet backbone into Detectron2's format."
    )
    parser.add_argument("source", help=f"{', '.join(ARCHITECTURES)}, or a .pth file")
    parser.add_argument("output", help="the .pkl file to write")
    parser.add_argument(
        "--weights", default="IMAGENET1K_V1", help="torchvision's name of the weights"
    )
    args = parser.parse_args(argv)
    count = convert_backbone(args.source, args.output, args.weights)
    print(f"{count} arrays written to {args.output}")
    print(
        f"Use it with INPUT.FORMAT RGB, MODEL.PIXEL_MEAN {PIXEL_MEAN}, "
        f"MODEL.PIXEL_STD {PIXEL_STD}, MODEL.RESNETS.STRIDE_IN_1X1 False"
    )
    return 0
