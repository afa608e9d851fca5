"""Data: the embedded data set, custom data sets by address, the training mapper."""

from .cache import cache_root
from .catalog import class_names, load_records, output_name, register_datasets, register_embedded
from .datasets.shapes import write_shapes
from .images import read_image
from .loader import TrainLoader, build_test_loader
from .mapper import MimicDatasetMapper
from .validation import check_images

__all__ = [
    "MimicDatasetMapper",
    "TrainLoader",
    "build_test_loader",
    "cache_root",
    "check_images",
    "class_names",
    "load_records",
    "output_name",
    "read_image",
    "register_datasets",
    "register_embedded",
    "write_shapes",
]

register_embedded()
