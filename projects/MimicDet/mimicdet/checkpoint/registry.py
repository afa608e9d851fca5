"""
The published models: registry.json, and downloads that are checked against it.

    {"COCO-Detection/mimicdet_R_50_FPN_1x.yaml": {
        "checkpoint": {"url": "https://...", "sha256": "..."},
        "onnx": {"url": "https://...", "sha256": "..."},
        "metrics": {"bbox/AP": 39.0, ...}}}
"""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

from ..utils.errors import UserError, file_errors

REGISTRY_FILE = Path(__file__).with_name("registry.json")
FILE_KINDS = ("checkpoint", "onnx")


def read_registry() -> dict[str, dict[str, Any]]:
    """All entries by config name; UserError for a file that is broken."""
    return check_registry(json.loads(REGISTRY_FILE.read_text(encoding="utf-8")))


def check_registry(entries: Any) -> dict[str, dict[str, Any]]:
    """The entries as they are; UserError that names the entry and what it lacks."""
    if not isinstance(entries, dict):
        raise UserError("the registry must be a JSON object of entries by config name")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or "checkpoint" not in entry:
            raise UserError(f"registry entry {name!r} has no 'checkpoint'")
        for kind in FILE_KINDS:
            file = entry.get(kind, {"url": "-", "sha256": "0" * 64})
            if not file.get("url") or len(file.get("sha256", "")) != 64:
                raise UserError(f"registry entry {name!r}: {kind} needs a url and its sha256")
    return entries


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_download(address: str, path: str | Path) -> None:
    """Raise UserError where the copy of a published file has another SHA-256 than it."""
    published = {
        entry[kind]["url"]: entry[kind]["sha256"]
        for entry in read_registry().values()
        for kind in FILE_KINDS
        if kind in entry
    }
    sha256 = file_sha256(path) if address in published else None
    if sha256 != published.get(address):
        raise UserError(
            f"{address}: the copy {path} has SHA-256 {sha256}, the registry says "
            f"{published[address]}. Remove the copy to have it fetched again"
        )


def fetch(address: str) -> str:
    """
    A local copy of MODEL.WEIGHTS, downloaded if need be; UserError where there is no such file, or
    it is not the one that was published.
    """
    if "://" not in address and not os.path.isfile(address):
        raise UserError(f"MODEL.WEIGHTS: there is no checkpoint {address!r}")
    try:
        # Detectron2's PathManager knows no file://.
        path = PathManager.get_local_path(address.removeprefix("file://"))
    except Exception as error:  # a download fails in as many ways as there are protocols
        raise UserError(f"MODEL.WEIGHTS: {address!r} cannot be had: {error}") from error
    verify_download(address, path)
    return path


def read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """
    The state dict of a .safetensors file or of a file of torch.save, by itself or under the key
    "model" or "state_dict". Only tensors are read, no code is run.

    Raises:
        UserError: no such file, or it holds no state dict.
    """
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    try:
        with file_errors():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} is no file of tensors that torch.save wrote: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise UserError(f"{path} holds no state dict of tensors")
    return dict(content)
