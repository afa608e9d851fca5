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
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

from ..utils.errors import UserError

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
    """
    Check a local copy of a published file; addresses that the registry does not know pass.

    Raises:
        UserError: the copy's SHA-256 is another.
    """
    published = {
        entry[kind]["url"]: entry[kind]["sha256"]
        for entry in read_registry().values()
        for kind in FILE_KINDS
        if kind in entry
    }
    wanted = published.get(address)
    if wanted is None:
        return
    found = file_sha256(path)
    if found != wanted:
        raise UserError(
            f"{address}: the copy {path} has SHA-256 {found}, the registry says {wanted}. "
            "Remove the copy to have it fetched again"
        )


def fetch(address: str) -> str:
    """
    A local copy of MODEL.WEIGHTS, downloaded if need be, checked where it is a published file.

    Raises:
        UserError: there is no such file, or it is not what was published.
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
