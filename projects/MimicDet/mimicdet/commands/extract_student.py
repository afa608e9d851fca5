"""The command line of tools/extract_student.py."""

import argparse
import sys

from ..checkpoint.student import ENDINGS, extract_student, load_deployed_cfg
from ..utils.errors import error_text


def main(argv: list[str] | None = None) -> int:
    """The command line of tools/extract_student.py; returns the exit code: 0, or 2 for an error."""
    parser = argparse.ArgumentParser(description="Write the student of a training checkpoint.")
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, metavar="FILE", help=" or ".join(ENDINGS))
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides: MODEL.WEIGHTS ...")
    args = parser.parse_args(argv)
    try:
        cfg, names = load_deployed_cfg(args.config_file, args.opts)
        count = extract_student(cfg, names, cfg.MODEL.WEIGHTS, args.output)
    except (AssertionError, KeyError, OSError, ValueError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 2
    print(f"{count} tensors written to {args.output}")
    return 0
