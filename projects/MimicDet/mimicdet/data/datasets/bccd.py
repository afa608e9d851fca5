"""The embedded blood cells: photographs of BCCD in data/bccd of a checkout, not in the wheels."""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ...utils.errors import UserError

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

    def load() -> list[dict]:
        if not json_file.is_file():
            raise UserError(
                f"data set {name}: no file {json_file}. These images come with a checkout of "
                "MimicDet's repository, not with an installed package; tools/prepare_bccd.py "
                "makes them, to be named by their address coco:JSON_FILE:IMAGE_FOLDER"
            )
        return load_coco_json(str(json_file), str(image_root), name)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=list(CLASSES),
        json_file=str(json_file),
        image_root=str(image_root),
        evaluator_type="coco",
    )
