"""A model of the export's contract and images for it."""

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs onnx to write a model")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from tests.runtime.mock_model import write_mock  # noqa: E402


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    return write_mock(tmp_path_factory.mktemp("model") / "mock.onnx")


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Three images, one of them in a folder below; grey values 102, 153, 204."""
    folder = tmp_path / "images"
    for name, value in (("a.png", 102), ("b.png", 153), ("below/c.png", 204)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((60, 80, 3), value, np.uint8))
    return folder
