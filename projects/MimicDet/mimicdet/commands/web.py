"""The runtime's web page on a checkpoint, where it can show what the model samples: demo/web.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimicdet_runtime import Detector
from mimicdet_runtime.server import MODEL_SECONDS, Models, serve
from mimicdet_runtime.zoo import find_model

from ..utils.errors import command
from ..visualization.sampling import sampling_points
from .demo import CheckpointDetector, load_predictor


class SamplingDetector(CheckpointDetector):
    """A checkpoint's detections, and the points that the S-head samples for one of them."""

    def sampling(self, image, box: Sequence[float]) -> dict[str, Any]:
        """
        The adjusted anchor box that overlaps `box` (XYXY) most in an (H, W, 3) uint8 BGR image, and
        its sampling points.
        """
        inputs = self.predictor.preprocess(image)
        record = sampling_points(self.predictor.model, inputs, reference_boxes=[list(box)])
        content = record.to_json()
        if not content["points"]:
            return {"points": [], "anchor": None}
        return {"points": content["points"][0], "anchor": content["proposals"][0]}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="web.py", description="A web page that tries a checkpoint and shows what it samples."
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="ONNX files to choose from too")
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port (8000; 0: any that is free)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config"
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run demo/web.py: serve until Ctrl-C."""
    args = build_parser().parse_args(argv)
    serve(make_models(args), args.host, args.port)
    return 0


def make_models(args: argparse.Namespace) -> Models:
    """The checkpoint, then the ONNX files; UserError where one of them cannot be used."""
    models = Models(lambda source, name: Detector(source, name=name, seconds=MODEL_SECONDS))
    # Not optimized: what is sampled is read from the model's own modules.
    opts = [*args.opts, "MODEL.WEIGHTS", args.weights]
    predictor = load_predictor(args.config_file, opts, optimize=False)
    models.put(SamplingDetector(predictor), Path(args.weights).name)
    for path in args.models:
        models.add(find_model(path), Path(path).name)
    return models
