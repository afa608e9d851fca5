"""What is wrong with data sets, and what is in them: tools/validate_dataset.py."""

import argparse
import contextlib
from collections.abc import Sequence

from detectron2.config import get_cfg
from detectron2.utils.logger import setup_logger

from mimicdet_runtime.progress import Progress

from ..data import load_records, register_datasets
from ..data.problems import Problems
from ..data.validation import count_content, read_images
from ..utils.errors import UserError, command


def validate(names: Sequence[str], num_classes: int = 0, images: bool = False) -> list[str]:
    """
    Check data sets and print what is in them.

    Args:
        names: addresses such as "coco:FILE", or registered names.
        num_classes: what MODEL.ROI_HEADS.NUM_CLASSES will be; 0: any.
        images: also decode every image.

    Returns:
        a paragraph of faults for each data set that is not sound, and for classes that disagree.
    """
    reports, sound = [], []
    for name in names:
        try:
            _register([name], num_classes)
            records = load_records(name)
            print(f"{name}: {count_content(name, records).summary()}")
            if images:
                with contextlib.closing(Progress(len(records))) as progress:
                    read_images(name, records, progress.advance).raise_if_any()
            sound.append(name)
        except UserError as error:
            reports.append(_report(error))
    try:
        _register(sound, num_classes)
    except UserError as error:
        reports.append(_report(error))
    return reports


def _register(names: Sequence[str], num_classes: int) -> None:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(names), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    register_datasets(cfg)


def _report(error: UserError) -> str:
    """The error's text, or where it is made of Problems every one of these on a line."""
    problems: Problems | None = getattr(error, "problems", None)
    if problems is None:
        return str(error)
    lines = [f"{problems.source}:"]
    for kind, records in problems.by_kind().items():
        lines += [f"  {kind} ({len(records)}):", *(f"    {record}" for record in records)]
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run tools/validate_dataset.py; exit code 1: a data set is not sound."""
    parser = argparse.ArgumentParser(description="Find what is wrong with data sets.")
    parser.add_argument("names", nargs="+", metavar="ADDRESS_OR_NAME", help="coco:FILE:FOLDER ...")
    parser.add_argument("--images", action="store_true", help="also read and decode every image")
    parser.add_argument(
        "--num-classes", type=int, default=0, metavar="N", help="NUM_CLASSES of the config"
    )
    args = parser.parse_args(argv)
    setup_logger(name="mimicdet")
    reports = validate(args.names, args.num_classes, args.images)
    for report in reports:
        print(report)
    print("not sound" if reports else "sound")
    return 1 if reports else 0
