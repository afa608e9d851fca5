"""Gives one mutated annotation file to the package, and compares with the oracle's verdict."""

import random
from collections.abc import Callable
from pathlib import Path

import mutated_annotations as mutations
from data_folders import coco_content, write_coco, write_image, write_voc
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from mimicdet.data import register_datasets
from mimicdet.data.catalog import load_records
from mimicdet.utils.errors import UserError


class Trial:
    """Data sets of three formats in a folder, one file of which is written anew each time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.json = write_coco(folder / "coco", coco_content())
        self.voc = write_voc(folder / "voc")
        self.kitti = folder / "kitti"
        (self.kitti / "labels").mkdir(parents=True)
        write_image(self.kitti / "images" / "a.png")

    def coco(self, rng: random.Random) -> str:
        images = self.folder / "coco" / "images"
        text = mutations.mutated_json(rng)
        return self._run(f"coco:{self.json}:{images}", self.json, text,
                         lambda: mutations.wrong_coco(text, images))  # fmt: skip

    def xml(self, rng: random.Random) -> str:
        text, file = mutations.mutated_xml(rng), self.voc / "Annotations" / "a.xml"
        return self._run(f"voc:{self.voc}:train", file, text, lambda: mutations.wrong_voc(text))

    def labels(self, rng: random.Random) -> str:
        text, file = mutations.mutated_labels(rng), self.kitti / "labels" / "a.txt"
        address = f"kitti:{self.kitti}/labels:{self.kitti}/images"
        return self._run(address, file, text, lambda: mutations.wrong_kitti(text))

    def _run(self, name: str, file: Path, text: str, oracle: Callable[[], str]) -> str:
        """ "named" or "taken"; AssertionError where the oracle disagrees."""
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        wrong = oracle()
        cfg = get_cfg()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0
        try:
            register_datasets(cfg)
            records = load_records(name)
            assert not wrong, f"taken, but wrong ({wrong}): {text}"
            assert records and all("annotations" in x for x in records)
            if name.startswith("coco:"):  # no object is lost without a word
                given = len(mutations.json.loads(text)["annotations"])
                assert sum(len(x["annotations"]) for x in records) == given, text
        except UserError as error:
            assert wrong, f"{error}: but right: {text}"
            assert "\n" not in str(error) and str(self.folder) in str(error), str(error)
            return "named"
        finally:
            for registered in {name} & set(DatasetCatalog.keys()):
                DatasetCatalog.remove(registered)
            if name in MetadataCatalog:
                MetadataCatalog.remove(name)
        return "taken"
