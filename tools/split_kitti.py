#!/usr/bin/env python
"""
Split KITTI's training images so that no video sequence is on both sides.

    python tools/split_kitti.py devkit_object/mapping ImageSets

The devkit's mapping folder has train_mapping.txt and train_rand.txt. Two lists are written,
train.txt and val.txt, for data sets named kitti:LABEL_FOLDER:IMAGE_FOLDER:ImageSets/train.txt.
"""

import argparse
import sys
from pathlib import Path

from mimicdet.data.datasets.kitti import read_sequences, split_by_sequence


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mapping", type=Path, help="the devkit's folder mapping")
    parser.add_argument("output", type=Path, help="folder to write train.txt and val.txt to")
    parser.add_argument("--train-share", type=float, default=0.5, help="of the images (0.5)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of sequences (0)")
    args = parser.parse_args()
    try:
        sequences = read_sequences(
            args.mapping / "train_mapping.txt", args.mapping / "train_rand.txt"
        )
        sides = split_by_sequence(sequences, args.train_share, args.seed)
        args.output.mkdir(parents=True, exist_ok=True)
        for name, ids in zip(("train.txt", "val.txt"), sides):
            (args.output / name).write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
            print(f"{len(ids)} images in {args.output / name}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
