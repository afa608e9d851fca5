"""Installation of the package ``mimicdet``: ``pip install --no-build-isolation -e .``

Detectron2 is an extra, not a plain requirement: given ``detectron2 @ git+...`` pip fetches the
repository even where Detectron2 is installed already, so that an installation without network would
fail. ``make setup`` takes care of Detectron2; by hand: ``pip install --no-build-isolation -r
requirements/detectron2.txt``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCE = "projects/MimicDet"
# A distribution of its own too, for machines without torch; packed here so that both have the same
# command `mimicdet`.
RUNTIME = "projects/MimicDetRuntime"

REQUIRED = [
    "torch",
    "torchvision",
    # Detectron2's tools/benchmark.py calls np.percentile(interpolation=), gone since 2.4.
    "numpy<2.4",
    "Pillow",
    "fvcore",
    "pycocotools",
    "matplotlib",
    "tensorboard",
]
# onnx and onnxscript write the files that ONNX Runtime reads.
EXPORT = ["onnx>=1.16", "onnxscript>=0.7.1", "onnxruntime>=1.18", "safetensors"]
TEST = ["pytest>=7", *EXPORT]
# The formatter's output changes between its releases, hence the narrow range.
# psutil: Detectron2's tools/benchmark.py.
DEV = [*TEST, "psutil", "ruff>=0.17,<0.18", "mypy>=1.11"]


def opencv_requirement() -> list[str]:
    """The headless OpenCV, unless another package brings ``cv2``: their files would clash."""
    headless = "opencv-python-headless"
    try:
        importlib.metadata.distribution(headless)
    except importlib.metadata.PackageNotFoundError:
        return [] if importlib.util.find_spec("cv2") else [headless]
    return [headless]


def read_requirements(name: str) -> list[str]:
    """The lines of a file of ``requirements/`` without comments."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


class BuildWithConfigs(build_py):
    """Puts the checkout's ``configs/`` into a wheel as ``mimicdet/model_zoo/configs``.

    An editable installation reads them where they lie, so the tree never holds a second copy.
    """

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            destination = Path(self.build_lib) / "mimicdet" / "model_zoo" / "configs"
            shutil.rmtree(destination, ignore_errors=True)
            shutil.copytree(ROOT / "configs", destination)


setup(
    name="mimicdet",
    version="0.1.0",
    description="MimicDet: one-stage object detection that mimics a two-stage head, on Detectron2",
    license="Apache-2.0",
    author="MimicDet contributors",
    python_requires=">=3.10",
    package_dir={"": SOURCE, "mimicdet_runtime": f"{RUNTIME}/mimicdet_runtime"},
    packages=[
        *find_packages(SOURCE, include=["mimicdet", "mimicdet.*"]),
        *find_packages(RUNTIME, include=["mimicdet_runtime"]),
    ],
    package_data={
        "mimicdet.checkpoint": ["registry.json"],
        "mimicdet_runtime": ["static/*"],
    },
    entry_points={"console_scripts": ["mimicdet = mimicdet_runtime.cli:main"]},
    install_requires=REQUIRED + opencv_requirement(),
    extras_require={
        "detectron2": read_requirements("detectron2.txt"),
        "export": EXPORT,
        "test": TEST,
        "dev": DEV,
    },
    cmdclass={"build_py": BuildWithConfigs},
)
