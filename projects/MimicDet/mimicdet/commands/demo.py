"""Detection in images, videos and a webcam's pictures with a checkpoint: demo/demo.py."""

import argparse
import contextlib
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimicdet_runtime import Detections
from mimicdet_runtime.drawing import draw_detections
from mimicdet_runtime.images import IMAGE_SUFFIXES, ImageFile, find_images, import_cv2
from mimicdet_runtime.progress import Progress
from mimicdet_runtime.runner import drawing_path, run_on_images, run_on_video
from mimicdet_runtime.video import VideoReader

from ..engine import Predictor, setup_cfg
from ..export.optimize import PRECISIONS
from ..utils.allocator import disable_glibc_trimming
from ..utils.errors import UserError, command

_ESCAPE = 27
_WINDOW = "MimicDet (Esc: stop)"


class CheckpointDetector:
    """A Predictor behind the calls of the runtime's Detector."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.class_names = predictor.class_names

    def __call__(self, image: np.ndarray) -> Detections:
        return self.detect([image])[0]

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each (H, W, 3) uint8 BGR image."""
        return [
            Detections(
                instances.pred_boxes.tensor.float().cpu().numpy(),
                instances.scores.float().cpu().numpy(),
                instances.pred_classes.cpu().numpy(),
                self.class_names,
            )
            for instances in self.predictor.predict(images)
        ]


def load_predictor(config_file: str, opts: Sequence[str], **options: Any) -> Predictor:
    """The model of a config with its checkpoint; options and errors as of Predictor."""
    cfg = setup_cfg(config_file, list(opts))
    if cfg.MODEL.DEVICE == "cpu":
        disable_glibc_trimming()
    return Predictor(cfg, **options)


def build_parser() -> argparse.ArgumentParser:
    """The arguments of Detectron2's demo."""
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Detect with a checkpoint in images, a video or a webcam."
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", help="image files, folders or patterns 'folder/*.jpg'"
    )
    source.add_argument("--video-input", metavar="FILE", help="a video file")
    source.add_argument("--webcam", action="store_true", help="the first camera")
    add("--output", help="folder, or a file for one picture or video; without it a window opens")
    add("--confidence-threshold", type=float, default=0.5, help="lowest score that is shown (0.5)")
    add(
        "--precision",
        choices=list(PRECISIONS),
        default="float32",
        help="of the arithmetic; bfloat16 is the fast one where the CPU computes in it (float32)",
    )
    add(
        "--compile",
        action="store_true",
        help="give the backbone to torch.compile: a minute or more at the first image",
    )
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE pairs for the config, MODEL.WEIGHTS among them; last of all arguments",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run demo/demo.py; exit code 1: some images could not be read, and the others are done."""
    args = build_parser().parse_args(argv)
    output = Path(args.output) if args.output else None
    opts = [*args.opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", str(args.confidence_threshold)]
    options = {"precision": args.precision, "compile_backbone": args.compile}
    # What can be wrong with files is told before the model is built.
    if args.input:
        targets = image_targets(args.input, output)
        predictor = load_predictor(args.config_file, opts, **options)
        return detect_images(CheckpointDetector(predictor), targets)
    source = 0 if args.webcam else Path(args.video_input)
    name = "webcam.mp4" if args.webcam else f"{source.stem}.mp4"
    target = output / name if output and output.suffix.lower() != ".mp4" else output
    with contextlib.closing(VideoReader(source)) as video:
        predictor = load_predictor(args.config_file, opts, **options)
        run_on_video(
            CheckpointDetector(predictor),
            video,
            target,
            lambda _, frame, detections: target is not None or _show(frame, detections, wait=1),
        )
    return 0


def image_targets(inputs: Sequence[str], output: Path | None) -> dict[ImageFile, Path | None]:
    """
    The images of files, folders and patterns, each with the file to draw to; None: a window.

    Raises:
        UserError: there are none, or a drawing would replace its image or another drawing.
    """
    files = find_images([path for given in inputs for path in _expand(given)], output)
    if output is None:
        return dict.fromkeys(files)
    if output.suffix.lower() not in IMAGE_SUFFIXES or output.is_dir():
        return {file: drawing_path(file, output) for file in files}
    if len(files) > 1:
        raise UserError(f"--output {output} is one file, but there are {len(files)} images")
    return {file: drawing_path(ImageFile(file.path, output.name), output.parent) for file in files}


def _expand(given: str) -> list[str]:
    expanded = str(Path(given).expanduser())
    if Path(expanded).exists():
        return [expanded]
    matches = sorted(glob.glob(expanded, recursive=True))
    if not matches:
        raise UserError(f"{given}: no such file or folder, and no file fits it as a pattern")
    return matches


def detect_images(detector: CheckpointDetector, targets: Mapping[ImageFile, Path | None]) -> int:
    """Draw or show images with their detections; returns the exit code."""

    def handle(file: ImageFile, image: np.ndarray, detections: Detections) -> bool:
        progress.say(f"{file.path}: {len(detections)} detections")
        return targets[file] is not None or _show(image, detections, wait=0)

    with contextlib.closing(Progress(len(targets))) as progress:
        problems = run_on_images(detector, targets, handle, progress)
    return 1 if problems else 0


def _show(image: np.ndarray, detections: Detections, wait: int) -> bool:
    """Show detections for `wait` ms, 0: until a key is pressed; False if that was Escape."""
    cv2 = import_cv2()
    try:
        cv2.imshow(_WINDOW, draw_detections(image, detections))
        return cv2.waitKey(wait) != _ESCAPE
    except cv2.error as error:
        raise UserError("this OpenCV cannot open a window; give --output") from error
