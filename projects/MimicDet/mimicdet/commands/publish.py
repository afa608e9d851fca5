"""From a finished run to the files and the registry entry of a published model."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger

from ..checkpoint.registry import check_registry, file_sha256
from ..checkpoint.student import extract_student, load_deployed_cfg
from ..export.writer import ExportOptions, export_model
from ..model_zoo.model_zoo import list_configs
from ..utils.errors import UserError, command, make_folder
from ..visualization.curves import read_metrics


def publish(
    run: str | Path, folder: str | Path, name: str, base_url: str, options: ExportOptions
) -> dict[str, Any]:
    """
    Write student checkpoint, ONNX, config and metrics of a run, and the registry entry for them.

    Args:
        run: the OUTPUT_DIR of a training that came to its end.
        folder: where the files go, below a folder of the config's name.
        name: of the config, as list_configs() spells it.
        base_url: the address that `folder` will have.

    Returns:
        the entry, which is in `entry.json` as well: {name: {...}}, to be put into registry.json.

    Raises:
        UserError: the run has no config, checkpoint or metrics, has not ended or was not evaluated;
            an unknown name, or a file that cannot be verified.
    """
    run, base_url = Path(run), base_url.rstrip("/")
    if name not in list_configs():
        raise UserError(f"--name: there is no config {name!r}")
    for needed in ("config.yaml", "model_final.pth", "metrics.json"):
        if not (run / needed).is_file():
            raise UserError(f"{run} is no finished run: there is no {needed}")
    cfg, class_names = load_deployed_cfg(
        str(run / "config.yaml"), ["MODEL.WEIGHTS", str(run / "model_final.pth")]
    )
    metrics = final_metrics(run / "metrics.json", cfg.SOLVER.MAX_ITER)
    place = Path(name).with_suffix("")
    target = Path(folder) / place
    make_folder(target)
    extract_student(cfg, class_names, cfg.MODEL.WEIGHTS, str(target / "student.safetensors"))
    cfg.MODEL.WEIGHTS = str(target / "student.safetensors")
    export_model(cfg, class_names, target / "model.onnx", options, Path(name).name)
    shutil.copyfile(run / "config.yaml", target / "config.yaml")
    entry = {
        kind: {"url": f"{base_url}/{place}/{file}", "sha256": file_sha256(target / file)}
        for kind, file in (("checkpoint", "student.safetensors"), ("onnx", "model.onnx"))
    } | {"metrics": metrics}
    check_registry({name: entry})
    (target / "entry.json").write_text(json.dumps({name: entry}, indent=1) + "\n")
    return entry


def final_metrics(path: Path, max_iter: int) -> dict[str, float]:
    """
    The last evaluation's numbers, from Detectron2's metrics.json: "bbox/AP" and the like.

    Raises:
        UserError: the run stopped before max_iter, or was never evaluated.
    """
    metrics = read_metrics(path)
    last = max(int(iterations[-1]) for iterations, _ in metrics.values())
    if last < max_iter - 1:
        raise UserError(f"{path}: the run stopped at iteration {last + 1} of {max_iter}")
    results = {key: float(values[-1]) for key, (_, values) in metrics.items() if "bbox/" in key}
    if not results:
        raise UserError(f"{path}: the run was not evaluated; DATASETS.TEST was empty")
    return results


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn a finished run into a model-zoo entry.")
    parser.add_argument("run", help="the OUTPUT_DIR of the training")
    parser.add_argument("folder", help="where the files go")
    parser.add_argument("--name", required=True, help="the config's name in the model zoo")
    parser.add_argument("--base-url", required=True, help="address at which the folder will be")
    parser.add_argument("--sample-images", default="", metavar="DIR", help="to verify the ONNX")
    args = parser.parse_args(argv)
    setup_logger(name="mimicdet")
    options = ExportOptions(sample_images=args.sample_images)
    entry = publish(args.run, args.folder, args.name, args.base_url, options)
    print(json.dumps({args.name: entry}, indent=1))
    return 0
