"""Lists of KITTI's images for training and validation: tools/split_kitti.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..data.datasets.kitti import read_sequences, split_by_sequence
from ..utils.errors import command, file_errors, make_folder


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Split KITTI's training images so that no video sequence is on both sides."
    )
    parser.add_argument("mapping", type=Path, help="the devkit's folder mapping")
    parser.add_argument("output", type=Path, help="folder to write train.txt and val.txt to")
    parser.add_argument("--train-share", type=float, default=0.5, help="of the images (0.5)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of sequences (0)")
    args = parser.parse_args(argv)
    sequences = read_sequences(args.mapping / "train_mapping.txt", args.mapping / "train_rand.txt")
    sides = split_by_sequence(sequences, args.train_share, args.seed)
    make_folder(args.output)
    for name, ids in zip(("train.txt", "val.txt"), sides):
        with file_errors():
            (args.output / name).write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
        print(f"{len(ids)} images in {args.output / name}")
    return 0
