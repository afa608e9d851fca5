"""10,000 mutated annotation files: each is named or, by an independent oracle, rightly taken."""

import logging
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))

from annotation_trials import Trial  # noqa: E402


@pytest.mark.parametrize(("kind", "number"), [("coco", 10_000), ("xml", 1000), ("labels", 1000)])
def test_mutated_files(tmp_path, clean_catalogs, kind, number):
    logging.disable(logging.WARNING)
    try:
        trial, counts = Trial(tmp_path), Counter()
        for seed in range(number):
            counts[getattr(trial, kind)(random.Random(seed))] += 1
    finally:
        logging.disable(logging.NOTSET)
    print(f"{kind}: {number} files, {dict(counts)}, none disagrees with the oracle")
