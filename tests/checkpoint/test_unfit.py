"""Weights that are wrong, partial or not finite are neither evaluated nor exported."""

import pytest
import torch

from mimicdet.commands import export_model
from mimicdet.commands.train import build_parser, load_for_evaluation, main
from mimicdet.utils.errors import UserError
from tests.helpers import small_cfg, small_model

CLASSES = ("MODEL.ROI_HEADS.NUM_CLASSES", 5)  # the data set's
NAME = "student_head.box_deltas.bias"
KINDS = {
    "wrong": "is a checkpoint of another architecture",
    "partial": f"does not fit the model. Missing: {NAME}",
    "not finite": f"{NAME} holds values that are not finite",
}


@pytest.fixture(params=KINDS)
def unfit(request, tmp_path):
    """(kind, path of the weights, what is said of them)."""
    state, path = small_model(*CLASSES).state_dict(), tmp_path / "weights.pth"
    if request.param == "wrong":
        state = {"layer1.weight": torch.zeros(2)}
    elif request.param == "partial":
        del state[NAME]
    else:
        state[NAME] = torch.full_like(state[NAME], torch.nan)
    torch.save({"model": state}, path)
    yield request.param, path, KINDS[request.param]
    path.unlink()


def test_evaluation(unfit):
    kind, path, said = unfit
    cfg = small_cfg(*CLASSES, "MODEL.WEIGHTS", str(path), "DATASETS.TEST", ("mimicdet_shapes_val",))
    with pytest.raises(UserError, match=f"weights.pth.*{said}"):
        load_for_evaluation(cfg)
    if kind == "wrong":
        with pytest.raises(UserError, match=said):
            load_for_evaluation(cfg, strict=False)
    else:
        load_for_evaluation(cfg, strict=False)


def test_the_flag_goes_with_evaluation(capsys):
    assert not build_parser().parse_args([]).no_strict
    assert main(["--no-strict"]) == 2
    assert capsys.readouterr().err == "error: --no-strict goes with --eval-only\n"


def test_export(unfit, tmp_path, capsys):
    _, path, said = unfit
    config, output = tmp_path / "x.yaml", tmp_path / "x.onnx"
    sets = ["DATASETS.TRAIN", ("mimicdet_shapes_train",), "DATASETS.TEST", ()]
    config.write_text(small_cfg(*CLASSES, *sets).dump())
    arguments = ["--config-file", str(config), "--output", str(output)]
    assert export_model.main([*arguments, "MODEL.WEIGHTS", str(path)]) == 2
    assert said in capsys.readouterr().err and not output.exists()
