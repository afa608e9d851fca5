"""
The command `mimicdet`.

Only the standard library is imported here: `mimicdet --help` answers at once, and an error in the
arguments is told before NumPy, OpenCV or ONNX Runtime are loaded.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError, command
from .version import __version__
from .zoo import find_model

EXIT_SOME_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 130
_MODEL = "name of a published model, or ONNX file written by tools/export_model.py"


def _probability(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def positive(text: str) -> int:
    """Type of an argument: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog="mimicdet", description="Run object detectors that MimicDet exported to ONNX."
    )
    parser.add_argument("--version", action="version", version=f"mimicdet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    detect = commands.add_parser("detect", help="detect in images, a folder or a video")
    detect.usage = "mimicdet detect MODEL INPUT [INPUT ...] [options], or detect --model MODEL ..."
    detect.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="images, folders, or one video; MODEL before"
    )
    detect.add_argument("--model", help=_MODEL)
    detect.add_argument(
        "-o", "--output", default="detections", metavar="FOLDER", help="of results (detections)"
    )
    detect.add_argument("--score", type=_probability, default=0.5, help="lowest score (0.5)")
    detect.add_argument("--batch", type=positive, default=1, help="images a run (1)")
    detect.add_argument("--no-draw", action="store_true", help="write JSON only")
    detect.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    detect.set_defaults(run=_detect)
    info = commands.add_parser("info", help="show what a model says about itself")
    info.add_argument("model", help=_MODEL)
    info.set_defaults(run=_info)
    serve = commands.add_parser("serve", help="a web page to try models in")
    serve.add_argument("models", nargs="*", metavar="MODEL", help="to choose from: " + _MODEL)
    serve.add_argument("--model", action="append", default=[], help="one of them")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="port (8000; 0: any that is free)")
    serve.set_defaults(run=_serve)
    for parts in (detect, serve):
        parts.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        parts.add_argument("--threads", type=positive, default=None, help="threads on the CPU")
        parts.add_argument(
            "--max-pixels",
            type=positive,
            metavar="N",
            help="of an image, 178 million at most (89 million)",
        )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Returns:
        the exit code: 0; 1 if some images could not be read and the others are done; 2 for input
        that cannot be used; 130 after Ctrl-C, with the results so far written.
    """
    args = build_parser().parse_args(argv)
    if getattr(args, "max_pixels", None):
        from . import images

        images.MAX_PIXELS = args.max_pixels
    return args.run(args)


def _info(args: argparse.Namespace) -> int:
    from .detector import Detector
    from .metadata import format_metadata

    print(format_metadata(Detector(find_model(args.model)).info))
    return 0


def _serve(args: argparse.Namespace) -> int:
    from .detector import Detector
    from .server import MODEL_SECONDS, Models, serve

    options = (args.device, args.threads or 0)
    models = Models(lambda source, name: Detector(source, *options, name, MODEL_SECONDS))
    for model in args.models + args.model:
        models.add(find_model(model), Path(model).name)
    serve(models, args.host, args.port)
    return 0


def _detect(args: argparse.Namespace) -> int:
    from .detector import Detector
    from .images import find_images, split_inputs
    from .results import RESULTS, ResultWriter
    from .runner import drawing_path

    if args.model is None:
        args.model, *args.inputs = args.inputs
    if not args.inputs:
        raise UserError(f"{args.model}: nothing to detect in; name images after the model")
    output, model = Path(args.output), find_model(args.model)
    video, inputs = split_inputs(args.inputs)
    files = find_images(inputs, output)
    targets = {file: None if args.no_draw else drawing_path(file, output) for file in files}
    if video is not None and args.resume:
        raise UserError("--resume is for images; a video is done in one go")
    detector = Detector(model, args.device, args.threads or 0)
    if detector.info.includes_resize and args.batch > 1:
        raise UserError(f"{args.model}: resizes inside the graph, so --batch has to be 1")
    header = {
        "weights_sha256": detector.info.written.get("weights_sha256"),
        "score": args.score,
        "class_names": list(detector.class_names),
    }
    with contextlib.closing(ResultWriter(output, header, args.resume)) as writer:
        try:
            if video is not None:
                code = _detect_video(detector, video, output, writer, args)
            else:
                code = _detect_images(detector, targets, writer, args)
        except KeyboardInterrupt:
            advice = "" if video is not None else "; --resume goes on from here"
            print(f"\nmimicdet: stopped{advice}", file=sys.stderr)
            code = EXIT_STOPPED
    print(f"{len(writer.done)} images, {writer.num_detections} detections: {output / RESULTS}")
    return code


def _detect_images(detector, targets, writer, args) -> int:
    from .progress import Progress
    from .runner import run_on_images

    def handle(file, image, detections) -> bool:
        # After the drawing: an image that is recorded is complete.
        writer.add(file.name, image.shape[:2], detections)
        return True

    done = writer.done
    todo = {file: target for file, target in targets.items() if file.name not in done}
    if len(todo) < len(targets):
        print(f"{len(targets) - len(todo)} of {len(targets)} images are done", file=sys.stderr)
    with contextlib.closing(Progress(len(todo))) as progress:
        problems = run_on_images(detector, todo, handle, progress, args.score, args.batch)
    if problems:
        print(f"mimicdet: {len(problems)} of {len(targets)} images skipped", file=sys.stderr)
    return EXIT_SOME_FAILED if problems else 0


def _detect_video(detector, path, output, writer, args) -> int:
    from .runner import run_on_video
    from .video import VideoReader

    target = output / f"{path.stem}.mp4"
    if not args.no_draw and target.resolve() == path.resolve():
        raise UserError(f"{target}: the drawing would replace the video; choose another output")

    def handle(number, frame, detections) -> bool:
        writer.add(f"{path.name}#{number:06d}", frame.shape[:2], detections)
        return True

    with contextlib.closing(VideoReader(path)) as video:
        run_on_video(detector, video, None if args.no_draw else target, handle, args.score)
    return 0
