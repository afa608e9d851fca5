"""What a user gets wrong: exit code 2 and one message that names it, before the first iteration."""

import json

import cv2
import numpy as np
import pytest
import tiny_run
import torch
import torchvision
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from torch import multiprocessing

from mimicdet.commands import demo, train
from mimicdet.commands.train import main
from mimicdet.modeling.heads.student_head import StudentHead
from mimicdet.utils.errors import UserError


@pytest.fixture
def error_of(data, tmp_path, capfd):
    """Call main and return its message, having checked all that is common to errors."""

    def call(*arguments, config=data.config):
        output = tmp_path / "output"
        named = ["--config-file", str(config)] if config else []
        flags = [x for x in arguments if str(x).startswith("--")]
        opts = [x for x in arguments if not str(x).startswith("--")]
        code = main([*flags, *named, "OUTPUT_DIR", str(output), *map(str, opts)])
        captured = capfd.readouterr()
        assert code == 2, captured.err
        lines = captured.err.splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        assert len(starts) == 1, captured.err
        assert "Traceback" not in captured.err + captured.out
        assert "Starting training" not in captured.out
        logged = output / "metrics.json"
        assert not logged.exists() or not logged.read_text()
        return "\n".join(lines[starts[0] :])

    return call


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["MODEL.MIMICDET.STUDNET.SPARSE", "True"], ["MODEL.MIMICDET.STUDNET.SPARSE"]),
        (["SOLVER.MAX_ITER.X", "1"], ["override", "MAX_ITER.X"]),
        (["SOLVER.MAX_ITER"], ["SOLVER.MAX_ITER", "KEY VALUE"]),
        (["SOLVER.MAX_ITER", "many"], ["SOLVER.MAX_ITER", "many"]),
        (["MODEL.WEIGHTS", "none/such.pth"], ["MODEL.WEIGHTS", "none/such.pth"]),
        (["DATASETS.TRAIN", "('mimicdet_shapes_trian',)"], ["DATASETS.TRAIN", "shapes_train"]),
        (["DATASETS.TRAIN", "('coco:none/such.json',)"], ["none/such.json"]),
        (["DATASETS.TRAIN", "()"], ["DATASETS.TRAIN is empty"]),
        (
            ["DATASETS.TEST", "('coco_2017_val',)", "MODEL.ROI_HEADS.NUM_CLASSES", "80"],
            ["disagree"],
        ),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "5"], ["MODEL.ROI_HEADS.NUM_CLASSES", "5", "2", "disc"]),
        (
            ["MODEL.MIMICDET.STUDENT.FEATURE_DIM", "64"],
            ["MODEL.MIMICDET.STUDENT.FEATURE_DIM 64", "MODEL.ROI_BOX_HEAD.FC_DIM 32"],
        ),
        (
            ["MODEL.MIMICDET.TEACHER.ENABLED", "False"],
            ["MODEL.MIMICDET.MIMIC.ENABLED", "TEACHER.ENABLED"],
        ),
        (["MODEL.MIMICDET.STUDENT.ALIGNMENT", "bent"], ["STUDENT.ALIGNMENT", "'bent'", "guided"]),
        (["MODEL.MIMICDET.TEACHER.HEAD", "huge"], ["MODEL.MIMICDET.TEACHER.HEAD", "'huge'"]),
        (["MODEL.MIMICDET.EVAL_HEAD", "both"], ["MODEL.MIMICDET.EVAL_HEAD", "'both'"]),
        (["MODEL.RPN.IN_FEATURES", "['p3','p4']"], ["MODEL.RPN.IN_FEATURES", "ROI_HEADS"]),
        (["MODEL.BACKBONE.NAME", "build_nothing"], ["build_nothing"]),
        (["MODEL.META_ARCHITECTURE", "MimicDte"], ["MimicDte", "did you mean MimicDet"]),
        (["MODEL.ROI_HEADS.NAME", "NoHeads"], ["MODEL.ROI_HEADS.NAME", "NoHeads"]),
        (["SOLVER.LR_SCHEDULER_NAME", "Never"], ["SOLVER.LR_SCHEDULER_NAME", "'Never'"]),
        (["DATALOADER.SAMPLER_TRAIN", "Never"], ["DATALOADER.SAMPLER_TRAIN", "'Never'"]),
        (["MODEL.MIMICDET.OPTIMIZER", "adam"], ["MODEL.MIMICDET.OPTIMIZER", "'adam'", "adamw"]),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"], ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "'all'"]),
        (["SOLVER.IMS_PER_BATCH", "0"], ["SOLVER.IMS_PER_BATCH", "(0)"]),
        (["MODEL.DEVICE", "cqu"], ["MODEL.DEVICE", "'cqu'"]),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['p3','p4','p5','p6','p9']"], ["IN_FEATURES", "'p9'"]),
        (["MODEL.RESNETS.DEPTH", "19"], ["MODEL.RESNETS.DEPTH", "19"]),
        (["MODEL.RESNETS.RES2_OUT_CHANNELS", "256"], ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]),
    ],
)
def test_configs_that_cannot_be(error_of, opts, named):
    message = error_of(*opts)
    for name in named:
        assert name in message
    assert len(message) < 1500


def test_config_files(error_of, tmp_path):
    assert "none/such.yaml" in error_of(config="none/such.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("MODEL:\n  DEPTH: [1\n")
    assert str(path) in error_of(config=path)
    path.write_text("MODEL:\n  MIMICDET:\n    STUDENT:\n      SPRASE: True\n")
    message = error_of(config=path)
    assert str(path) in message and "MODEL.MIMICDET.STUDENT.SPRASE" in message
    path.write_text('_BASE_: "no_such_base.yaml"\n')
    assert "no_such_base.yaml" in error_of(config=path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(error_of):
    assert "MODEL.DEVICE cpu" in error_of("MODEL.DEVICE", "cuda")


def test_annotations_that_are_no_coco_json(error_of, tmp_path):
    path = tmp_path / "data.json"
    opts = ["DATASETS.TRAIN", f"('coco:{path}',)"]
    path.write_text("no json")
    assert f"{path} is not JSON" in error_of(*opts)
    path.write_text(json.dumps({"shapes": []}))
    assert f"{path} is no COCO detection file" in error_of(*opts)
    content = tiny_run.coco_content()
    content["annotations"][2]["image_id"] = 77
    path.write_text(json.dumps(content))
    message = error_of(*opts)
    assert str(path) in message and "annotations[2] (id 3): image_id 77" in message


def test_no_image_left_to_train_on(error_of, tmp_path):
    address = tiny_run.write_coco(tmp_path / "data", {**tiny_run.coco_content(), "annotations": []})
    message = error_of("DATASETS.TRAIN", f"('{address}',)", "DATASETS.TEST", f"('{address}',)")
    assert "no image to train on" in message and address in message


def test_faulty_records_of_a_registered_training_set(error_of):
    record = {"file_name": __file__, "image_id": 1, "width": 96, "height": 96}
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 9}
    DatasetCatalog.register("faulty_set", lambda: [{**record, "annotations": [box]}])
    MetadataCatalog.get("faulty_set").thing_classes = ["disc", "square"]
    message = error_of("DATASETS.TRAIN", "('faulty_set',)")
    assert "faulty_set" in message and "record 0 (image_id 1), annotation 0" in message


def test_a_missing_test_set_shows_before_training(error_of, monkeypatch, tmp_path):
    """Detectron2's own sets are looked for at the first evaluation otherwise."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    name, missing = "tiny_missing_val", str(tmp_path / "instances_val.json")
    register_coco_instances(name, {}, missing, str(tmp_path))
    try:
        assert missing in error_of("DATASETS.TEST", f"('{name}',)")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_an_output_folder_that_cannot_be_made(data, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "output"
    assert main(["--config-file", str(data.config), "OUTPUT_DIR", str(output)]) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("error: ")]
    assert str(output) in line


def broken(*_, **__):
    raise KeyError("p2")


def test_a_fault_of_the_program_keeps_its_traceback(data, tmp_path, monkeypatch):
    """Of whatever kind: a KeyError is not taken for the user's."""
    arguments = ["--config-file", str(data.config), "OUTPUT_DIR", str(tmp_path / "output")]
    monkeypatch.setattr(StudentHead, "__init__", broken)
    with pytest.raises(KeyError, match="p2"):
        main(arguments)
    with pytest.raises(KeyError, match="p2"):
        main(["--eval-only", *arguments, "MODEL.WEIGHTS", "none.pth"])
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((8, 8, 3), np.uint8))
    picture = ["--input", str(tmp_path / "image.png"), "--output", str(tmp_path / "drawn")]
    with pytest.raises(KeyError, match="p2"):
        demo.main([*arguments[:2], *picture, "--opts", "MODEL.WEIGHTS", "none.pth"])


def test_a_fault_in_several_processes_keeps_its_traceback(data, monkeypatch, capfd):
    """Also where a user's error came before it."""
    name = f"{UserError.__module__}.UserError"
    traceback = (
        f"Traceback (most recent call last):\n{name}: no\n\nTraceback (...):\nKeyError: 'p2'"
    )

    def launch(*_, **__):
        raise multiprocessing.ProcessRaisedException(traceback, 0, 1)

    monkeypatch.setattr(train, "launch", launch)
    with pytest.raises(multiprocessing.ProcessRaisedException, match="KeyError"):
        main(["--config-file", str(data.config)])


def test_more_processes_than_the_machine_can_run(data, monkeypatch, capfd):
    """Refused before one is started: a process takes seconds to start, many take minutes."""
    monkeypatch.setattr(train, "launch", broken)
    monkeypatch.setattr(train.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["--config-file", str(data.config), "--num-gpus"]
    assert main([*arguments, "3"]) == 2
    assert capfd.readouterr().err.startswith("error: --num-gpus is 3, but this machine has 2 CPUs")
    with pytest.raises(KeyError):  # started
        main([*arguments, "2"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main([*arguments, "2"]) == 2
    assert capfd.readouterr().err == "error: --num-gpus is 2, but this machine has 1 GPUs\n"
    with pytest.raises(KeyError):
        main([*arguments, "1"])


def test_files_that_are_no_checkpoint(error_of, tmp_path):
    for name, content in (
        ("text.pth", b"not a checkpoint"),
        ("empty.pth", b""),
        ("text.pkl", b"not a pickle"),
        ("half.pth", b"PK\x03\x04 cut off"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        message = error_of("MODEL.WEIGHTS", path)
        assert f"{path} is no checkpoint" in message
        assert "\n" not in message
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    assert "holds no state_dict" in error_of("MODEL.WEIGHTS", tmp_path / "list.pth")
    assert "MODEL.WEIGHTS" in error_of("MODEL.WEIGHTS", tmp_path)  # a folder


@pytest.mark.parametrize("flags", [[], ["--eval-only"]])
def test_checkpoint_of_another_architecture(error_of, tmp_path, flags):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    message = error_of(*flags, "MODEL.WEIGHTS", path)
    assert f"{path} is a checkpoint of another architecture" in message
    assert "backbone." in message and "bn1" in message


def test_eval_only_wants_a_checkpoint_that_fits(error_of, trained, tmp_path):
    weights = ["MODEL.WEIGHTS", trained.output / "model_final.pth"]
    content = tiny_run.coco_content()
    content["categories"].append({"id": 3, "name": "cross"})
    address = tiny_run.write_coco(tmp_path / "more", content)
    sets = ["DATASETS.TRAIN", "()", "DATASETS.TEST", f"('{address}',)"]
    message = error_of("--eval-only", *weights, *sets)
    assert "model_final.pth does not fit" in message and "student_head.class_logits" in message
    assert "(3, 32) in the file, (4, 32) in the model" in message
    assert "MODEL.WEIGHTS" in error_of("--eval-only")
    assert "--optimize goes with --eval-only" in error_of("--optimize=float32")
    assert "--compile goes with --optimize" in error_of("--eval-only", "--compile", *weights)
    assert "DATASETS.TEST is empty" in error_of("--eval-only", *weights, "DATASETS.TEST", "()")


def test_resume_of_another_model(data, trained, tmp_path, capfd):
    output = tiny_run.copy_until(trained.output, tmp_path / "output", "model_0000019.pth")
    opts = ["OUTPUT_DIR", str(output), "MODEL.MIMICDET.STUDENT.ALIGNMENT_DIM", "16"]
    assert main(["--config-file", str(data.config), "--resume", *opts]) == 2
    captured = capfd.readouterr()
    assert "error: " in captured.err and "model_0000019.pth does not fit" in captured.err
    assert "Traceback" not in captured.err
    tiny_run.remove(output)


def test_resume_of_a_run_that_trained_other_parameters(data, trained, tmp_path, capfd):
    output = tiny_run.copy_until(trained.output, tmp_path / "output", "model_0000019.pth")
    opts = ["MODEL.MIMICDET.TEACHER.ENABLED", "False", "MODEL.MIMICDET.MIMIC.ENABLED", "False"]
    arguments = ["--config-file", str(data.config), "--resume", "OUTPUT_DIR", str(output)]
    assert main([*arguments, *opts]) == 2
    assert "error: --resume: the run in OUTPUT_DIR trained other" in capfd.readouterr().err
    tiny_run.remove(output)


def test_the_script_hands_the_exit_code_on():
    code, output = tiny_run.finish(tiny_run.start("--config-file", "none/such.yaml"))
    assert code == 2
    assert output.count("error: ") == 1 and "none/such.yaml" in output
    assert "Traceback" not in output
