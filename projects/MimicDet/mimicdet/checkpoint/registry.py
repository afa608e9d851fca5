"""Published checkpoints: files and downloads that are checked against the registry's SHA-256."""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping

import torch
from detectron2.utils.file_io import PathManager

from mimicdet_runtime.zoo import FILE_KINDS, find_file, read_registry

from ..utils.errors import UserError, check_choice, file_errors
from ..utils.files import file_sha256
from .integrity import check_whole

# Of these schemes a SHA-256 is not asked for: files of this machine, and Detectron2's own host.
TRUSTED = ("file://", "detectron2://", "catalog://")
# What torch.load and zipfile raise for a file that is none, or is cut short.
_NO_CHECKPOINT = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile)
MODEL_SCHEME = "zoo://"  # and the name of a published model
# Of addresses that load_backbone takes: weights of a backbone, and no checkpoint of a model.
BACKBONE_SCHEMES = ("package://", "timm://")


def model_address(name: str) -> str:
    """What MODEL.WEIGHTS names the checkpoint of a published model by."""
    file = read_registry()[name]["checkpoint"]
    return f"{MODEL_SCHEME}{name}" if "file" in file else file["url"]


def fetch(address: str) -> str:
    """
    A local copy of MODEL.WEIGHTS, downloaded if need be.

    An address on the web is taken where the registry has its SHA-256, or with it behind the
    address: `https://host/model.pth#sha256=<64 hexadecimal digits>`. `zoo://NAME` is the checkpoint
    of a published model that this checkout brings, or $MIMICDET_MODELS. Detectron2's catalogue
    (detectron2:// and catalog://, one public host) needs none: its files, as all others, are read
    as arrays and run nothing.

    Raises:
        UserError: there is no such file, it is not the one that was published, or an address comes
            without SHA-256.
    """
    if address.startswith(BACKBONE_SCHEMES):
        raise UserError(f"MODEL.WEIGHTS: {address} is a backbone alone, which training starts from")
    if address.startswith(MODEL_SCHEME):
        return str(find_file(_published(address.removeprefix(MODEL_SCHEME))))
    if "://" not in address and not os.path.isfile(address):
        raise UserError(f"MODEL.WEIGHTS: there is no checkpoint {address!r}")
    location, expected = address, {}
    if "://" in address:
        location, _, fragment = address.partition("#")
        expected = _expected_sha256(location, fragment)
    try:
        # Detectron2's PathManager knows no file://.
        path = PathManager.get_local_path(location.removeprefix("file://"))
    except Exception as error:  # a download fails in as many ways as there are protocols
        raise UserError(f"MODEL.WEIGHTS: {address!r} cannot be had: {error}") from error
    for source, sha256 in expected.items():
        if (found := file_sha256(path)) != sha256:
            raise UserError(
                f"{location}: the copy {path} has SHA-256 {found}, the {source} says {sha256}. "
                "Remove the copy to have it fetched again"
            )
    return path


def _published(name: str) -> Mapping[str, str]:
    """The checkpoint of a registry entry that is a file; UserError for an unknown name."""
    files = {name: entry["checkpoint"] for name, entry in read_registry().items()}
    known = {name: file for name, file in files.items() if "file" in file}
    check_choice("MODEL.WEIGHTS zoo://", name, known)
    return known[name]


def _expected_sha256(location: str, fragment: str) -> dict[str, str]:
    """By who says it: the registry, the part of the address behind #. UserError where none does."""
    files = (entry.get(kind) for entry in read_registry().values() for kind in FILE_KINDS)
    published = {file["url"]: file["sha256"] for file in files if file and "url" in file}
    expected = {"registry": published[location]} if location in published else {}
    if digits := re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment):
        expected["address"] = digits[1].lower()
    elif fragment or not (expected or location.startswith(TRUSTED)):
        raise UserError(
            f"MODEL.WEIGHTS: {location} is downloaded only with its SHA-256, so that nobody can "
            f"exchange the file: {location}#sha256=<64 hexadecimal digits, of `sha256sum FILE`>"
        )
    return expected


def read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """
    The state dict of a .safetensors file or of a file of torch.save, by itself or under the key
    "model" or "state_dict". Only tensors are read, no code is run.

    Raises:
        UserError: no such file, or it holds no state dict.
    """
    with file_errors():
        try:
            check_whole(path)
            if path.endswith(".safetensors"):
                from safetensors.torch import load_file

                return load_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except _NO_CHECKPOINT as error:
            raise UserError(
                f"{path} is no file of tensors that torch.save wrote: {error}"
            ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise UserError(f"{path} holds no state dict of tensors")
    return dict(content)
