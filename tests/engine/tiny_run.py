"""A data set of four images and a model that learns it in seconds, for runs of train_net.py."""

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from detectron2.utils.logger import setup_logger

ROOT = Path(__file__).resolve().parents[2]
SIZE = 96
CLASSES = ("disc", "square")
# (class, x, y, width, height): sizes that the finest level's 32 px anchors are responsible for.
BOXES = [
    [(1, 8, 8, 44, 44)],
    [(0, 40, 36, 48, 48)],
    [(1, 44, 4, 40, 48), (0, 4, 46, 42, 42)],
    [(0, 24, 24, 46, 44)],
]


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, boxes in enumerate(BOXES, 1):
        pixels = np.full((SIZE, SIZE, 3), 40, np.uint8)
        for label, x, y, w, h in boxes:
            if label:
                cv2.rectangle(pixels, (x, y), (x + w - 1, y + h - 1), (60, 200, 240), -1)
            else:
                center, axes = (x + w // 2, y + h // 2), (w // 2, h // 2)
                cv2.ellipse(pixels, center, axes, 0, 0, 360, (240, 90, 60), -1)
        cv2.imwrite(str(folder / f"{number}.jpg"), pixels)


def coco_content() -> dict:
    annotations = [
        {"image_id": image, "category_id": label + 1, "bbox": box, "area": box[2] * box[3]}
        for image, boxes in enumerate(BOXES, 1)
        for label, *box in boxes
    ]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": SIZE, "height": SIZE}
            for i in range(1, len(BOXES) + 1)
        ],
        "annotations": [{**a, "id": i, "iscrowd": 0} for i, a in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
    }


def write_coco(folder: Path, content: dict | None = None) -> str:
    """Write images and annotations; return the address of the data set."""
    write_images(folder / "images")
    path = folder / "annotations.json"
    path.write_text(json.dumps(coco_content() if content is None else content))
    return f"coco:{path}:{folder / 'images'}"


def write_voc(folder: Path) -> str:
    """The same images as Pascal VOC; return the address of the split "trainval"."""
    write_images(folder / "JPEGImages")
    for part in ("Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for number, boxes in enumerate(BOXES, 1):
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><pose>x</pose><truncated>0</truncated>"
            f"<difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for label, x, y, w, h in boxes
        )
        size = f"<size><width>{SIZE}</width><height>{SIZE}</height><depth>3</depth></size>"
        text = f"<annotation>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{number}.xml").write_text(text)
    names = "".join(f"{i}\n" for i in range(1, len(BOXES) + 1))
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text(names)
    return f"voc:{folder}:trainval"


def write_config(path: Path, address: str) -> Path:
    """A config file of a tiny model on the data set."""
    content = {
        "_BASE_": str(ROOT / "configs" / "Base-MimicDet.yaml"),
        "MODEL": {
            "DEVICE": "cpu",
            "BACKBONE": {"FREEZE_AT": 0},
            "RESNETS": {"DEPTH": 18, "NORM": "BN", "RES2_OUT_CHANNELS": 64},
            "FPN": {"OUT_CHANNELS": 32},
            "RPN": {"POST_NMS_TOPK_TRAIN": 500, "POST_NMS_TOPK_TEST": 500},
            "ROI_HEADS": {
                "NUM_CLASSES": 0,
                "BATCH_SIZE_PER_IMAGE": 32,
                "SCORE_THRESH_TEST": 0.001,
            },
            "ROI_BOX_HEAD": {"NUM_CONV": 1, "CONV_DIM": 16, "FC_DIM": 32},
            "MIMICDET": {
                "REFINEMENT": {"MATCH_NEAREST": True},
                "STUDENT": {
                    "ALIGNMENT_DIM": 32,
                    "FEATURE_DIM": 32,
                    "INIT": "he",
                    "HARD_MINING_TOPK": 48,
                },
                "TEACHER": {"OUTPUT_INIT": "gaussian"},
            },
        },
        "DATASETS": {"TRAIN": [address], "TEST": [address]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"MIN_SIZE_TRAIN": [SIZE], "MIN_SIZE_TEST": SIZE},
        "SOLVER": {
            "IMS_PER_BATCH": 4,
            "BASE_LR": 0.003,
            "WARMUP_ITERS": 10,
            "STEPS": [32],
            "MAX_ITER": 40,
            "CHECKPOINT_PERIOD": 20,
            "CLIP_GRADIENTS": {"ENABLED": True, "CLIP_TYPE": "norm", "CLIP_VALUE": 5.0},
        },
        "TEST": {"EVAL_PERIOD": 20},
        "SEED": 2,
        "VIS_PERIOD": 20,
    }
    path.write_text(yaml.safe_dump(content))
    return path


# As short as a run can be: two iterations, no evaluation on the way.
SHORT = "SOLVER.MAX_ITER 2 SOLVER.STEPS () SOLVER.WARMUP_ITERS 0 TEST.EVAL_PERIOD 0".split()


def environment(**changes: str) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "projects" / "MimicDet"),
        **changes,
    }


def start(
    *arguments: object, launcher: tuple[str, ...] = (), log: Path | None = None, **env: str
) -> subprocess.Popen:
    """
    Start train_net.py in a process of its own; its output goes to one pipe, or to the file `log`,
    which needs no reader.
    """
    command = [sys.executable, *launcher, str(ROOT / "train_net.py"), *map(str, arguments)]
    with open(log, "w") if log else contextlib.nullcontext(subprocess.PIPE) as stdout:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(**env),
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
        )


def finish(process: subprocess.Popen, timeout: float = 180) -> tuple[int, str]:
    """(exit code, output); the process is ended where it takes too long."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"no end after {timeout} s:\n{output[-3000:]}") from None
    return process.returncode, output


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def state(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def copy_until(source: Path, target: Path, checkpoint: str) -> Path:
    """The output folder as an interruption right after this checkpoint would have left it."""
    target.mkdir(parents=True)
    for name in (checkpoint, "model_best.pth", "model_best.json"):
        shutil.copy(source / name, target)
    (target / "last_checkpoint").write_text(checkpoint)
    return target


@contextlib.contextmanager
def loggers_restored():
    """Detectron2's setup leaves handlers behind that write to closed files and streams."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "mimicdet")]
    before = [(x, list(x.handlers), x.propagate, x.level) for x in loggers]
    setup_logger.cache_clear()
    try:
        yield
    finally:
        setup_logger.cache_clear()
        for logger, handlers, propagate, level in before:
            for handler in [x for x in logger.handlers if x not in handlers]:
                logger.removeHandler(handler)
            logger.propagate = propagate
            logger.setLevel(level)


def remove(folder: Path) -> None:
    """Checkpoints are large; pytest would keep them over three sessions."""
    for path in folder.glob("*.pth"):
        path.unlink()
