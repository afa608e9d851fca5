"""A small model with random weights on disk, as a run leaves it: config and checkpoint."""

from pathlib import Path

import pytest
import torch

from tests.helpers import small_cfg, small_model


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A folder with config.yaml and model_final.pth; of 5 classes, so scores are about 1 / 6."""
    folder = tmp_path_factory.mktemp("run")
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", 5, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96]
    opts += ["DATASETS.TRAIN", ("mimicdet_shapes_train",)]
    opts += ["DATASETS.TEST", ("mimicdet_shapes_val",)]
    (folder / "config.yaml").write_text(small_cfg(*opts).dump())
    torch.save({"model": small_model(*opts).state_dict()}, folder / "model_final.pth")
    return folder
