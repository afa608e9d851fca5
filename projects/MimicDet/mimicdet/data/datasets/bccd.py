"""The embedded blood cells: photographs of BCCD in data/bccd of a checkout, not in the wheels."""

from pathlib import Path

from ...utils.errors import UserError
from ..folders import register_coco_file

CLASSES = ("RBC", "WBC", "Platelets")
SPLITS = ("train", "val", "test")
ROOT = Path(__file__).resolve().parents[5] / "data" / "bccd"


def register_bccd(split: str, root: Path = ROOT) -> None:
    """
    Register mimicdet_bccd_SPLIT.

    Its records are read at the first DatasetCatalog.get: UserError where `root` is missing.
    """
    name = f"mimicdet_bccd_{split}"
    json_file, image_root = root / "annotations" / f"instances_{split}.json", root / "images"

    def check() -> None:
        if not json_file.is_file():
            raise UserError(
                f"data set {name}: no file {json_file}. These images come with a checkout of "
                "MimicDet's repository, not with an installed package; tools/prepare_bccd.py "
                "makes them, to be named by their address coco:JSON_FILE:IMAGE_FOLDER"
            )

    register_coco_file(name, json_file, image_root, CLASSES, check)
