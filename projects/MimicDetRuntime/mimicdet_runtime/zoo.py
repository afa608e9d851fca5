"""
The published models by name: registry.json, and where their files are.

    {"bccd": {
        "config": "Light/mimicdet_lite0_320px_bccd.yaml",
        "checkpoint": {"file": "bccd.safetensors", "sha256": "..."},
        "onnx": {"file": "bccd.onnx", "sha256": "..."},
        "onnx_int8": {"file": "bccd_int8.onnx", "sha256": "..."},
        ...}}

A file is in a folder of models, has an address ("url"), or both. tools/publish.py writes the rest
of an entry too: command, seed, data, licence, AP of both heads. Folders of models are the one that
the environment variable MIMICDET_MODELS names, and a checkout's models/.
"""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UserError, file_errors
from .files import file_sha256

REGISTRY_FILE = Path(__file__).with_name("registry.json")
FOLDER_VARIABLE = "MIMICDET_MODELS"
CHECKOUT_FOLDER = Path(__file__).resolve().parents[3] / "models"
FILE_KINDS = ("checkpoint", "onnx", "onnx_int8")


def read_registry() -> dict[str, dict[str, Any]]:
    """All entries by the model's name; UserError for a file that is broken."""
    return check_registry(json.loads(REGISTRY_FILE.read_text(encoding="utf-8")))


def check_registry(entries: Any) -> dict[str, dict[str, Any]]:
    """The entries as they are; UserError that names the entry and what it lacks."""
    if not isinstance(entries, dict):
        raise UserError("the registry must be a JSON object of entries by the model's name")
    for name, entry in entries.items():
        for key in ("config", "checkpoint"):
            if not isinstance(entry, dict) or key not in entry:
                raise UserError(f"registry entry {name!r} has no {key!r}")
        for kind in FILE_KINDS:
            file = entry.get(kind, {"url": "-", "sha256": "0" * 64})
            if not (file.get("file") or file.get("url")) or len(file.get("sha256", "")) != 64:
                raise UserError(
                    f"registry entry {name!r}: {kind} needs a file or a url, and its sha256"
                )
    return entries


def onnx_models() -> dict[str, Mapping[str, str]]:
    """The ONNX files of the registry by the names that `mimicdet` takes: bccd, bccd_int8."""
    files = (entry.get(kind) for entry in read_registry().values() for kind in FILE_KINDS[1:])
    return {Path(file["file"]).stem: file for file in files if file and "file" in file}


def find_model(model: str | os.PathLike[str]) -> Path:
    """
    The ONNX file of a published model's name; of anything else that is a path, this path.

    Raises:
        UserError: a name of no published model, with the names there are; its file is not here, or
            is not the one that was published.
    """
    path, known = Path(model), onnx_models()
    if str(model) in known and not path.is_file():
        return find_file(known[str(model)])
    if path.is_file() or path.suffix or path.name != str(model):
        return path
    near = difflib.get_close_matches(str(model), known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
        f"{model}: no such file, and no published model{hint}; "
        f"those are: {', '.join(known) or 'none'}"
    )


def find_file(file: Mapping[str, str]) -> Path:
    """A registry entry's file in a folder of models; UserError as in find_model."""
    own = os.environ.get(FOLDER_VARIABLE)
    folders = [*([Path(own)] if own else []), CHECKOUT_FOLDER]
    path = next((x / file["file"] for x in folders if (x / file["file"]).is_file()), None)
    if path is None:
        address = file.get("url", "the folder models/ of MimicDet's repository")
        raise UserError(
            f"{file['file']} is not in {' or '.join(map(str, folders))}. Packages come without "
            f"models: get it from {address} into a folder of yours, and name that folder in the "
            f"environment variable {FOLDER_VARIABLE}"
        )
    with file_errors():
        found = file_sha256(path)
    if found != file["sha256"]:
        raise UserError(f"{path} has SHA-256 {found}, the registry says {file['sha256']}")
    return path
