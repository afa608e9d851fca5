"""Runs that stop before an iteration and go on, and what they did: see `train` and `same`."""

import json
import os
import zlib
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch

from mimicdet.commands.train import main
from mimicdet.engine import MimicTrainer
from tests.distillation.tiny_detectors import NARROW, RETINANET
from tests.engine import tiny_run

SIZES = [(96, 72), (72, 96)]  # (width, height)
COMMON = {
    "INPUT.MIN_SIZE_TRAIN": (48, 64, 80),  # flips are on anyway
    "INPUT.CROP.ENABLED": True,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 12,
    "SOLVER.STEPS": (6,),
    "SOLVER.WARMUP_ITERS": 4,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "TEST.EVAL_PERIOD": 4,
}
MODELS = {
    "sgd": {},
    "adamw": {"MODEL.MIMICDET.OPTIMIZER": "adamw", "SOLVER.BASE_LR": 0.0003},
    "retinanet": {
        **NARROW,
        **RETINANET,
        "MODEL.ROI_HEADS.NUM_CLASSES": 0,
        "MODEL.RETINANET.NUM_CLASSES": 80,
        "MODEL.RESNETS.DEPTH": 50,
    },
}


def write_data(folder: Path) -> Path:
    """Ten images of two shapes with a box each, and a config on them."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    content = tiny_run.coco_content()
    content["images"], content["annotations"] = [], []
    for i in range(1, 11):
        width, height = SIZES[i % 3 == 0]
        pixels = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        pixels = cv2.resize(pixels, (width, height))
        x, y = (int(v) for v in generator.integers(0, 20, 2))
        cv2.rectangle(pixels, (x, y), (x + 43, y + 43), (60, 200, 240), -1)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), pixels)
        image = {"id": i, "file_name": f"{i}.png", "width": width, "height": height}
        content["images"].append(image)
        box = {"bbox": [x, y, 44, 44], "area": 44 * 44, "category_id": i % 2 + 1, "iscrowd": 0}
        content["annotations"].append({"id": i, "image_id": i, **box})
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return tiny_run.write_config(folder / "resume.yaml", f"coco:{path}:{folder / 'images'}")


class Stopped(Exception):
    """Stands for what ends a run."""


def train(config: Path, output: Path, *opts: object, stop: int = -1, ends=Stopped) -> None:
    """
    train_net.py --resume-or-start; before iteration `stop` it calls `ends`. What each iteration saw
    is appended to `output`/seen.RANK.jsonl: file names, and a checksum of pixels and boxes.
    """
    common = [x for item in COMMON.items() for x in item]
    arguments = ["--config-file", config, "--resume-or-start", "OUTPUT_DIR", output, *common, *opts]
    output.mkdir(exist_ok=True)
    seen = output / f"seen.{os.environ.get('RANK', 0)}.jsonl"
    original, calls = MimicTrainer.run_step, []

    def record(_, inputs):
        data = [x["image"].numpy() for x in inputs[0]]
        data += [x["instances"].gt_boxes.tensor.numpy() for x in inputs[0]]
        checksum = zlib.crc32(b"".join(x.tobytes() for x in data))
        calls.append([[os.path.basename(x["file_name"]) for x in inputs[0]], checksum])

    def run_step(self):
        if self.iter == stop:
            raise ends()
        handle = self._trainer.model.register_forward_pre_hook(record)
        original(self)
        handle.remove()
        with open(seen, "a") as f:
            f.write(json.dumps([self.iter, *calls.pop()]) + "\n")

    with patch.object(MimicTrainer, "run_step", run_step):
        code = main(list(map(str, arguments)))
    assert code == 0


def seen(output: Path, rank: int = 0) -> dict[int, list]:
    """{iteration: what it saw}; an iteration that ran twice saw the same both times."""
    result: dict[int, list] = {}
    for line in (output / f"seen.{rank}.jsonl").read_text().splitlines():
        iteration, *what = json.loads(line)
        assert result.setdefault(iteration, what) == what, f"iteration {iteration}"
    return result


def differences(first: object, second: object, path: str = "") -> list[str]:
    """Where two checkpoints differ by a bit."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) and first.dtype == second.dtype else [path]
    if isinstance(first, dict | list | tuple) and len(first) == len(second):
        keys = first if isinstance(first, dict) else range(len(first))
        return [x for key in keys for x in differences(first[key], second[key], f"{path}/{key}")]
    return [] if first == second else [path]


def assert_same(reference: Path, other: Path, ranks: int = 1, start: int = 0) -> None:
    """Both saw the same from iteration `start` on, and ended with the same checkpoint and AP."""
    for rank in range(ranks):
        expected = {k: v for k, v in seen(reference, rank).items() if k >= start}
        assert seen(other, rank) == expected and max(expected) > start
    checkpoints = [tiny_run.state(x / "model_final.pth") for x in (reference, other)]
    assert {"hooks", "_trainer"} <= set(checkpoints[0]["trainer"])
    assert differences(*checkpoints) == []
    ap = [[x["bbox/AP"] for x in tiny_run.metrics(y) if "bbox/AP" in x] for y in (reference, other)]
    assert ap[0][-1] == ap[1][-1] or ap[0][-1] != ap[0][-1]  # NaN: nothing was detected
