"""From a finished run to the files and the registry entry of a published model."""

import argparse
import json
import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import setup_logger

from mimicdet_runtime import Detector, read_image, zoo

from ..checkpoint.student import extract_student, load_deployed_cfg
from ..config import load_config
from ..data import load_records, register_datasets
from ..engine.trainer import MimicTrainer
from ..export.writer import ExportOptions, export_model
from ..model_zoo.model_zoo import get_config_file, list_configs
from ..model_zoo.table import write_models
from ..utils.errors import UserError, command, make_folder
from ..utils.files import file_sha256, new_path
from ..visualization.curves import read_metrics
from .train import evaluate, load_for_evaluation

MAX_BYTES = 10_000_000  # of a file: they are kept in the repository
# What differs between machines and changes no weight.
_OF_THE_MACHINE = re.compile(
    r"DATASETS\.T\w+|OUTPUT_DIR|MODEL\.WEIGHTS|MODEL\.DEVICE|DATALOADER\.NUM_WORKERS"
    r"|.*\.NUM_CLASSES|VERSION"
)


class Description(NamedTuple):
    """What a run's files do not say."""

    name: str  # of the model
    config: str  # of the run, as list_configs() spells it
    data: str  # what it was trained on, and where that comes from
    licence: str  # of the data
    machine: str  # that the training took its time on


def publish(
    run: str | Path,
    folder: str | Path,
    about: Description,
    *,
    checkpoint: str = "",
    base_url: str = "",
    opts: Sequence[str] = (),
) -> dict[str, Any]:
    """
    Write a run's student as safetensors in float16, ONNX and ONNX in INT8, evaluate both heads and
    the files on the run's test set.

    Args:
        run: the OUTPUT_DIR of a training that came to its end.
        folder: where the files go.
        checkpoint: empty: model_final.pth of the run.
        base_url: the address that `folder` will have; empty: it is the checkout's models/.
        opts: overrides of the run's config, such as places of the data.

    Returns:
        the entry of the registry.

    Raises:
        UserError: the run lacks a file or has not ended, an unknown config, a file that cannot be
            verified or is larger than MAX_BYTES.
    """
    run, folder = Path(run), Path(folder)
    if about.config not in list_configs():
        raise UserError(f"--config: there is no config {about.config!r}")
    weights = Path(checkpoint or run / "model_final.pth")
    cfg, class_names = _read_run(run, weights, opts)
    iterations, minutes = spent(run / "metrics.json", weights)
    if not checkpoint and iterations < cfg.SOLVER.MAX_ITER:
        raise UserError(f"{run}: the run stopped at iteration {iterations}")
    clean, overrides = public_config(about.config, load_config(str(run / "config.yaml")))
    clean.MODEL.ROI_HEADS.NUM_CLASSES = len(class_names)
    make_folder(folder)
    files = {
        "checkpoint": folder / f"{about.name}.safetensors",
        "onnx": folder / f"{about.name}.onnx",
        "onnx_int8": folder / f"{about.name}_int8.onnx",
    }
    extract_student(clean, class_names, str(weights), str(files["checkpoint"]), half=True)
    metrics = _evaluate_files(cfg, class_names, files, Path(about.config).name)
    return {
        "config": about.config,
        "command": shlex.join(
            ["python", "train_net.py", "--config-file", f"configs/{about.config}", *overrides]
        ),
        "weights": weights.name,
        "seed": cfg.SEED,
        "iterations": iterations,
        "minutes": round(minutes, 1),
        "machine": about.machine,
        "data": about.data,
        "licence": about.licence,
        "metrics": metrics,
    } | {kind: describe(file, base_url) for kind, file in files.items()}


def _read_run(run: Path, weights: Path, opts: Sequence[str]) -> tuple[CfgNode, list[str]]:
    """The config of a finished run with its data sets registered, and the classes."""
    for needed in (run / "config.yaml", weights, run / "metrics.json"):
        if not needed.is_file():
            raise UserError(f"{run} is no finished run: there is no {needed.name}")
    opts = [*opts, "MODEL.WEIGHTS", str(weights)]
    cfg, class_names = load_deployed_cfg(str(run / "config.yaml"), opts)
    register_datasets(cfg)
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"one set is evaluated, DATASETS.TEST has {len(cfg.DATASETS.TEST)}")
    return cfg, class_names


def _evaluate_files(
    cfg: CfgNode, class_names: list[str], files: dict[str, Path], config_name: str
) -> dict[str, dict[str, float]]:
    """AP of both heads and of the ONNX files, which are written from the student's file."""
    teacher = evaluate_head(cfg, "teacher")
    cfg.MODEL.WEIGHTS = str(files["checkpoint"])
    metrics = {"student": evaluate_head(cfg, "student"), "teacher": teacher}
    (test,) = cfg.DATASETS.TEST
    pictures = str(Path(load_records(test)[0]["file_name"]).parent)
    for kind, options in (
        ("onnx", ExportOptions(sample_images=pictures)),
        ("onnx_int8", ExportOptions(precision="int8")),  # calibrated on DATASETS.TRAIN
    ):
        export_model(cfg, class_names, files[kind], options, config_name)
        metrics[kind] = evaluate_onnx(cfg, files[kind])
    return metrics


def describe(file: Path, base_url: str) -> dict[str, str]:
    """A file's part of the entry; UserError where it is too large."""
    if (size := file.stat().st_size) > MAX_BYTES:
        raise UserError(f"{file} has {size} bytes, more than {MAX_BYTES}")
    address = {"url": f"{base_url.rstrip('/')}/{file.name}"} if base_url else {}
    return {"file": file.name, **address, "sha256": file_sha256(file)}


def spent(metrics_json: Path, checkpoint: Path) -> tuple[int, float]:
    """Iterations of a training checkpoint, and the minutes that they took, without evaluation."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    metrics = read_metrics(metrics_json)
    if "time" not in metrics or "iteration" not in content:
        raise UserError(f"{checkpoint} or {metrics_json} is not of a training run")
    iterations, seconds = metrics["time"]
    end, past, total = int(content["iteration"]) + 1, 0, 0.0
    for iteration, each in zip(iterations + 1, seconds):
        total += each * max(min(iteration, end) - past, 0)
        past = iteration
    return end, float(total / 60)


def public_config(name: str, run_cfg: CfgNode) -> tuple[CfgNode, list[str]]:
    """
    The config of this name as the run had it, with none of the machine's paths, and the overrides
    that make it so. UserError for an override that is a path.
    """
    cfg = load_config(get_config_file(name))
    plain, used = (_flat(yaml.safe_load(x.dump())) for x in (cfg, run_cfg))
    overrides = []
    for key, value in used.items():
        if plain.get(key) == value or _OF_THE_MACHINE.fullmatch(key):
            continue
        if isinstance(value, str) and "/" in value:
            raise UserError(f"{key} of the run is {value!r}, which only its machine has")
        overrides += [key, str(value)]
    cfg.merge_from_list(overrides)
    return cfg, overrides


def _flat(nodes: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in nodes.items():
        is_node = isinstance(value, dict)
        values |= _flat(value, f"{prefix}{key}.") if is_node else {f"{prefix}{key}": value}
    return values


def evaluate_head(cfg: CfgNode, head: str) -> dict[str, float]:
    """AP of a head of MODEL.WEIGHTS on the test set."""
    cfg = cfg.clone()
    cfg.MODEL.MIMICDET.EVAL_HEAD = head
    with tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR:
        return _rounded(evaluate(cfg, load_for_evaluation(cfg)))


def evaluate_onnx(cfg: CfgNode, path: Path) -> dict[str, float]:
    """AP of an ONNX file in the runtime, on the test set of a config."""
    detector = Detector(path)
    (name,) = cfg.DATASETS.TEST
    with tempfile.TemporaryDirectory() as folder:
        evaluator = MimicTrainer.build_evaluator(cfg, name, folder)
        evaluator.reset()
        for record in load_records(name):
            image = read_image(record["file_name"])
            found = detector(image)
            result = Instances(image.shape[:2], pred_boxes=Boxes(torch.from_numpy(found.boxes)))
            result.scores = torch.from_numpy(found.scores)
            result.pred_classes = torch.from_numpy(found.classes)
            evaluator.process([record], [{"instances": result}])
        return _rounded(evaluator.evaluate())


def _rounded(results: dict[str, Any]) -> dict[str, float]:
    return {key: round(float(value), 2) for key, value in results["bbox"].items()}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn a finished run into a model of the zoo.")
    add = parser.add_argument
    add("run", help="the OUTPUT_DIR of the training")
    add("--name", required=True, help="of the model")
    add("--config", required=True, help="the run's config, as the model zoo names it")
    add("--data", required=True, help="what it was trained on, and where that comes from")
    add("--licence", required=True, help="of the data")
    add("--machine", required=True, help="that trained it, such as '2 CPU cores'")
    add("--checkpoint", default="", metavar="FILE", help="another than model_final.pth")
    add("--folder", default=str(zoo.CHECKOUT_FOLDER), help="where the files go (models/)")
    add("--base-url", default="", help="address at which the folder will be, if at any")
    add("--page", default="", metavar="FILE", help="MODEL_ZOO.md (beside models/)")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="overrides of the run's config")
    args = parser.parse_args(argv)
    setup_logger(name="mimicdet")
    about = Description(args.name, args.config, args.data, args.licence, args.machine)
    options = {"checkpoint": args.checkpoint, "base_url": args.base_url, "opts": args.opts}
    entry = publish(args.run, args.folder, about, **options)
    registry = {**zoo.read_registry(), args.name: entry}
    registry = zoo.check_registry(dict(sorted(registry.items())))
    with new_path(zoo.REGISTRY_FILE) as path:
        path.write_text(json.dumps(registry, indent=1) + "\n", encoding="utf-8")
    write_models(Path(args.page or zoo.CHECKOUT_FOLDER.with_name("MODEL_ZOO.md")), registry)
    print(json.dumps({args.name: entry}, indent=1))
    return 0
