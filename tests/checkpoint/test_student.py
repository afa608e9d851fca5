"""Student-only checkpoints: what is in them, and what loads them."""

import json

import pytest
import torch

from mimicdet.checkpoint import MimicCheckpointer, load_weights
from mimicdet.checkpoint.student import load_deployed_cfg, read_student_metadata
from mimicdet.commands.extract_student import main
from mimicdet.utils.errors import UserError
from mimicdet.utils.files import file_sha256
from tests.helpers import make_input, small_cfg, small_model

ENDINGS = [".pth", ".safetensors"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training checkpoint on a data set of three classes, and its config."""
    folder = tmp_path_factory.mktemp("trained")
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 3}
    torch.save(content, folder / "model_final.pth")
    data = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate("abc", 1)],
    }
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "1.jpg").touch()
    cfg = small_cfg("DATASETS.TRAIN", (f"coco:{folder / 'data.json'}",), "DATASETS.TEST", ())
    (folder / "config.yaml").write_text(cfg.dump())
    yield folder, model
    (folder / "model_final.pth").unlink()


def extract(folder, output, *opts):
    config = ["--config-file", str(folder / "config.yaml"), "--output", str(output)]
    weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    return main([*config, *weights, *map(str, opts)])


@pytest.fixture(scope="module", params=ENDINGS)
def student(request, trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / f"student{request.param}"
    assert extract(trained[0], path) == 0
    yield path
    path.unlink()


def test_evaluates_like_the_model_it_comes_from(trained, student):
    model, loaded = trained[1].eval(), small_model(seed=1).eval()
    load_weights(loaded, str(student))
    image = [make_input()]
    (expected,), (found,) = model(image), loaded(image)
    assert torch.equal(found["instances"].scores, expected["instances"].scores)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("roi_heads.")}
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, own[name]) if name in own else name.startswith("roi_heads.")
    model.train()


def test_fine_tuning_starts_from_it_with_a_new_t_head(trained, student):
    model = small_model(seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    MimicCheckpointer(model).load(str(student))
    own = trained[1].state_dict()
    for name, value in model.state_dict().items():
        source = before if name.startswith("roi_heads.") else own
        assert torch.equal(value, source[name]), name
    model([make_input()])["loss_student_cls"].backward()


def test_holds_the_student_alone_and_says_what_it_is(trained, student):
    metadata = read_student_metadata(str(student))
    assert metadata["class_names"] == ["a", "b", "c"]
    assert metadata["source_sha256"] == file_sha256(trained[0] / "model_final.pth")
    assert "FEATURE_DIM: 24" in metadata["config"]
    assert "model_final.pth" not in metadata["config"], "a path of the machine"
    others = student.parent / "others"
    others.touch()
    assert student.stat().st_mode == others.stat().st_mode, "as readable as any new file"
    if student.suffix == ".pth":
        content = torch.load(student, weights_only=True)
        assert set(content) == {"model", "mimicdet"}
        assert not [name for name in content["model"] if name.startswith("roi_heads.")]


def test_half_is_half_the_size_and_loads_in_full(trained, student, tmp_path):
    path = tmp_path / f"half{student.suffix}"
    config = ["--config-file", str(trained[0] / "config.yaml"), "--output", str(path), "--half"]
    assert main([*config, "MODEL.WEIGHTS", str(trained[0] / "model_final.pth")]) == 0
    assert path.stat().st_size < 0.55 * student.stat().st_size
    loaded = small_model(seed=1)
    load_weights(loaded, str(path))
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        if not name.startswith("roi_heads."):
            assert torch.equal(parameter, trained[1].state_dict()[name].half().float())


def test_the_data_are_not_needed_any_more(trained, student, tmp_path):
    gone = ["DATASETS.TRAIN", "('coco:gone.json',)", "MODEL.ROI_HEADS.NUM_CLASSES", "0"]
    config = str(trained[0] / "config.yaml")
    cfg, names = load_deployed_cfg(config, [*gone, "MODEL.WEIGHTS", str(student)])
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, names) == (3, ["a", "b", "c"])
    with pytest.raises(UserError, match="gone.json"):
        load_deployed_cfg(config, [*gone, "MODEL.WEIGHTS", str(trained[0] / "model_final.pth")])


def test_errors_are_one_line_and_leave_no_file(trained, tmp_path, capsys):
    folder, model = trained
    other = {k: v for k, v in model.state_dict().items() if not k.startswith("student_head.")}
    torch.save({"model": other}, tmp_path / "teacher.pth")
    nan = {**model.state_dict(), "student_head.box_deltas.bias": torch.full((4,), torch.nan)}
    torch.save({"model": nan}, tmp_path / "nan.pth")
    large = {**model.state_dict(), "student_head.box_deltas.bias": torch.full((4,), 1e5)}
    torch.save({"model": large}, tmp_path / "large.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    output = tmp_path / "out" / "student.pth"
    output.parent.mkdir()
    for weights, said in (
        (tmp_path / "teacher.pth", "teacher.pth holds no student"),
        (tmp_path / "nan.pth", "student_head.box_deltas.bias holds values that are not finite"),
        (tmp_path / "text.pth", "no checkpoint that can be read"),
        (tmp_path / "none.pth", "none.pth"),
    ):
        assert extract(folder, output, "MODEL.WEIGHTS", weights) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1
    config = ["--config-file", str(folder / "config.yaml"), "--output", str(output), "--half"]
    assert main([*config, "MODEL.WEIGHTS", str(tmp_path / "large.pth")]) == 2
    assert "not finite in float16" in capsys.readouterr().err
    assert extract(folder, tmp_path / "out" / "student.bin") == 2
    assert "student.bin" in capsys.readouterr().err
    assert not list(output.parent.iterdir())


def test_broken_safetensors_is_named(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken.safetensors is no checkpoint"):
        load_weights(small_model(), str(path))
