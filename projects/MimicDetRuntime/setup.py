"""The requirements, which depend on the machine; all else is in pyproject.toml."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from setuptools import setup


def requirement(name: str, release: str, module: str) -> list[str]:
    """The package `name`, unless another one brings its module: their files would clash."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec(module):
            return []
    return [f"{name}>={release}"]


setup(
    install_requires=[
        "numpy",
        "Pillow>=9.1",
        *requirement("onnxruntime", "1.17", "onnxruntime"),
        *requirement("opencv-python-headless", "4.8", "cv2"),
    ]
)
