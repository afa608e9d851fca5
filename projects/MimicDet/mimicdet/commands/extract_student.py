"""The command line of tools/extract_student.py."""

import argparse
from collections.abc import Sequence

from ..checkpoint.student import ENDINGS, extract_student, load_deployed_cfg
from ..utils.errors import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the student of a training checkpoint.")
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, metavar="FILE", help=" or ".join(ENDINGS))
    parser.add_argument("--half", action="store_true", help="in float16, half the size")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides: MODEL.WEIGHTS ...")
    args = parser.parse_args(argv)
    cfg, names = load_deployed_cfg(args.config_file, args.opts)
    count = extract_student(cfg, names, cfg.MODEL.WEIGHTS, args.output, half=args.half)
    print(f"{count} tensors written to {args.output}")
    return 0
