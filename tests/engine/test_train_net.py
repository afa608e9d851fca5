"""train_net.py from end to end on four small images."""

import json
import math

import pytest
import tiny_run
import torch

from mimicdet.commands.train import build_parser, main, run
from mimicdet.config import add_mimicdet_config
from mimicdet.engine import MimicTrainer, setup_cfg
from mimicdet.modeling.meta_arch.mimicdet import MimicDet

LOSSES = [
    *("loss_refine_cls", "loss_refine_loc", "loss_student_cls", "loss_student_loc"),
    *("loss_teacher_cls", "loss_teacher_loc", "loss_mimic_cls", "loss_mimic_loc"),
]


def results(*arguments):
    """What a run in this process returns."""
    return run(build_parser().parse_args([str(x) for x in arguments]))


def test_training_writes_what_a_user_looks_for(trained):
    assert "Traceback" not in trained.log
    for name in ("config.yaml", "log.txt", "model_0000019.pth", "model_final.pth"):
        assert (trained.output / name).is_file(), name
    # Evaluated at TEST.EVAL_PERIOD and at the end, and no more.
    assert trained.log.count("Evaluation results for bbox") == 2
    lines = {x["iteration"]: x for x in tiny_run.metrics(trained.output)}
    assert {19, 39} <= set(lines)
    total = sum(lines[39][key] for key in LOSSES)
    assert math.isclose(lines[39]["total_loss"], total, rel_tol=0.2)  # medians of 20 steps
    assert lines[39]["total_loss"] < lines[19]["total_loss"] / 2
    assert lines[40]["bbox/AP50"] > 60 > lines[19]["bbox/AP50"]
    # The learning rate's drop at SOLVER.STEPS.
    assert lines[19]["lr"] == 0.003 and math.isclose(lines[39]["lr"], 0.0003)


def test_the_written_config_is_complete(trained):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_mimicdet_config(cfg)
    cfg.merge_from_file(str(trained.output / "config.yaml"))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2  # from the data
    assert cfg.MODEL.MIMICDET.STUDENT.FEATURE_DIM == 32


def test_the_best_checkpoint_is_kept_and_is_not_the_last(trained):
    record = json.loads((trained.output / "model_best.json").read_text())
    values = {
        x["iteration"]: x["bbox/AP"] for x in tiny_run.metrics(trained.output) if "bbox/AP" in x
    }
    assert (
        record["value"] == max(values.values()) and values[record["iteration"]] == record["value"]
    )
    best = tiny_run.state(trained.output / "model_best.pth")
    assert best["iteration"] == record["iteration"]
    # --resume goes on from this one, with the iteration that it finished.
    assert (trained.output / "last_checkpoint").read_text() == "model_final.pth"
    assert tiny_run.state(trained.output / "model_final.pth")["iteration"] == 39


@pytest.fixture(scope="module")
def resumed(data, trained, tmp_path_factory):
    """The second half of the run again, from the checkpoint in the middle."""
    output = tiny_run.copy_until(
        trained.output, tmp_path_factory.mktemp("resumed") / "output", "model_0000019.pth"
    )
    with tiny_run.loggers_restored():
        code = main(["--config-file", str(data.config), "--resume", "OUTPUT_DIR", str(output)])
    assert code == 0
    yield output
    tiny_run.remove(output)


def test_resume_goes_on_where_the_checkpoint_was_written(trained, resumed):
    log = (resumed / "log.txt").read_text()
    assert "Starting training from iteration 20" in log
    assert tiny_run.state(resumed / "model_final.pth")["iteration"] == 39
    first, second = (
        {x["iteration"]: x for x in tiny_run.metrics(folder)}
        for folder in (trained.output, resumed)
    )
    assert min(second) == 39  # the writers run every 20 iterations
    assert second[39]["lr"] == first[39]["lr"]
    assert second[39]["total_loss"] < first[19]["total_loss"] / 2


def test_resume_restores_optimizer_and_schedule(data, trained, tmp_path):
    output = tiny_run.copy_until(trained.output, tmp_path / "output", "model_0000019.pth")
    cfg = setup_cfg(str(data.config), ["OUTPUT_DIR", str(output)])
    trainer = MimicTrainer(cfg)
    trainer.resume_or_load(resume=True)
    saved = tiny_run.state(output / "model_0000019.pth")["trainer"]
    assert trainer.start_iter == 20
    momenta = trainer.optimizer.state_dict()["state"]
    theirs = saved["_trainer"]["optimizer"]["state"]
    assert momenta.keys() == theirs.keys() and len(momenta) > 100
    for key, state in momenta.items():
        assert torch.equal(state["momentum_buffer"], theirs[key]["momentum_buffer"])
    assert any(state["momentum_buffer"].abs().max() > 0 for state in momenta.values())
    assert trainer.optimizer.param_groups[0]["lr"] == 0.003
    assert trainer.scheduler.last_epoch == 20
    # On a CPU; what the checkpoint's weights lie like does not matter.
    weight = trainer.checkpointer.model.backbone.bottom_up.res2[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    tiny_run.remove(output)


def test_without_resume_an_old_output_folder_is_started_anew(data, trained, tmp_path):
    output = tiny_run.copy_until(trained.output, tmp_path / "output", "model_0000019.pth")
    assert (
        main(["--config-file", str(data.config), "OUTPUT_DIR", str(output), *tiny_run.SHORT]) == 0
    )
    assert "Starting training from iteration 0" in (output / "log.txt").read_text()
    assert tiny_run.state(output / "model_final.pth")["iteration"] == 1
    tiny_run.remove(output)


def test_resume_after_the_end_trains_on_without_a_gap(data, trained, tmp_path):
    output = tiny_run.copy_until(trained.output, tmp_path / "output", "model_final.pth")
    opts = ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "41", "TEST.EVAL_PERIOD", "0"]
    assert main(["--config-file", str(data.config), "--resume", *opts]) == 0
    assert "Starting training from iteration 40" in (output / "log.txt").read_text()
    tiny_run.remove(output)


def test_eval_only_repeats_the_ap_of_training(data, trained, tmp_path):
    weights = trained.output / "model_final.pth"
    opts = ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path]
    found = results("--config-file", data.config, "--eval-only", *opts)["bbox"]
    last = tiny_run.metrics(trained.output)[-1]
    for key in ("AP", "AP50", "AP75", "AP-disc", "AP-square"):
        assert math.isclose(found[key], last[f"bbox/{key}"], abs_tol=1e-4), key
    # With its own config.yaml alone, and the checkpoint found by --resume.
    opts = ["--eval-only", "--resume", "OUTPUT_DIR", trained.output]
    again = results("--config-file", trained.output / "config.yaml", *opts)["bbox"]
    assert again["AP"] == found["AP"]


@pytest.mark.parametrize("precision, tolerance", [("float32", 0.01), ("bfloat16", 5)])
def test_eval_only_of_the_optimized_model(data, trained, tmp_path, precision, tolerance):
    opts = ["MODEL.WEIGHTS", trained.output / "model_final.pth", "OUTPUT_DIR", tmp_path]
    flags = ["--eval-only", "--optimize", precision]
    found = results("--config-file", data.config, *flags, *opts)["bbox"]
    expected = tiny_run.metrics(trained.output)[-1]["bbox/AP"]
    assert found["AP"] == pytest.approx(expected, abs=tolerance)


def test_eval_only_of_the_compiled_model(data, trained, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self)))
    opts = ["MODEL.WEIGHTS", trained.output / "model_final.pth", "OUTPUT_DIR", tmp_path]
    flags = ["--config-file", data.config, "--eval-only", "--optimize", "float32"]
    results(*flags, *opts)
    assert not compiled
    results(*flags, "--compile", *opts)
    assert compiled


def test_eval_only_of_the_teacher(data, trained, tmp_path, monkeypatch):
    heads = []
    detect = MimicDet.inference

    def counted(self, *args, **kwargs):
        heads.append((self.eval_head, "p2" in self.backbone.eval_out_features))
        return detect(self, *args, **kwargs)

    monkeypatch.setattr(MimicDet, "inference", counted)
    opts = ["MODEL.WEIGHTS", trained.output / "model_final.pth", "OUTPUT_DIR", tmp_path]
    arguments = ["--config-file", data.config, "--eval-only", *opts]
    student = results(*arguments)["bbox"]
    teacher = results(*arguments, "MODEL.MIMICDET.EVAL_HEAD", "teacher")["bbox"]
    assert heads == [("student", False)] * 4 + [("teacher", True)] * 4
    assert 0 < teacher["AP"] != student["AP"] > 0


def test_several_test_sets_keep_their_detections_apart(data, trained, tmp_path):
    other = tiny_run.write_coco(tmp_path / "other")
    opts = ["MODEL.WEIGHTS", trained.output / "model_final.pth", "OUTPUT_DIR", tmp_path / "output"]
    sets = ["DATASETS.TEST", f"('{data.address}','{other}')"]
    found = results("--config-file", data.config, "--eval-only", *opts, *sets)
    assert len(found) == 2
    files = (tmp_path / "output" / "inference").glob("*/coco_instances_results.json")
    assert len(list(files)) == 2


def test_eval_only_with_tta(data, trained, tmp_path):
    opts = ["MODEL.WEIGHTS", trained.output / "model_final.pth", "OUTPUT_DIR", tmp_path]
    tta = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(96,128)", "TEST.AUG.MAX_SIZE", "320"]
    found = results("--config-file", data.config, "--eval-only", *opts, *tta)
    assert set(found) == {"bbox", "bbox_TTA"}
    assert found["bbox_TTA"]["AP50"] > 0
    assert found["bbox_TTA"]["AP"] != found["bbox"]["AP"]


def test_pascal_voc_folder_trains_and_evaluates(data, trained, tmp_path):
    address = tiny_run.write_voc(tmp_path / "VOC2007")
    sets = ["DATASETS.TRAIN", f"('{address}',)", "DATASETS.TEST", f"('{address}',)"]
    arguments = ["--config-file", data.config, "OUTPUT_DIR", tmp_path / "output"]
    weights = ["MODEL.WEIGHTS", trained.output / "model_final.pth"]
    found = results("--eval-only", *arguments, *sets, *weights)["bbox"]
    # The same pictures and objects as the COCO file has.
    assert found["AP50"] > 60 and found["AP"] > 20
    assert main(list(map(str, [*arguments, *sets, *tiny_run.SHORT]))) == 0
    last = tiny_run.metrics(tmp_path / "output")[-1]
    assert "bbox/AP50" in last
    tiny_run.remove(tmp_path / "output")


def test_fine_tuning_starts_from_the_weights_alone(data, trained, tmp_path):
    """Other classes: everything is taken over but the layers of another shape."""
    content = tiny_run.coco_content()
    content["categories"].append({"id": 3, "name": "cross"})
    address = tiny_run.write_coco(tmp_path / "more", content)
    sets = ["DATASETS.TRAIN", f"('{address}',)", "DATASETS.TEST", f"('{address}',)"]
    cfg = setup_cfg(
        str(data.config),
        [*sets, "MODEL.WEIGHTS", str(trained.output / "model_final.pth")]
        + ["OUTPUT_DIR", str(tmp_path / "output")],
    )
    trainer = MimicTrainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.start_iter == 0 and not trainer.optimizer.state_dict()["state"]
    own, theirs = (
        trainer.checkpointer.model.state_dict(),
        tiny_run.state(cfg.MODEL.WEIGHTS)["model"],
    )
    different = {key for key in own if own[key].shape != theirs[key].shape}
    assert {key.rsplit(".", 1)[0] for key in different} == {
        "student_head.class_logits",
        "roi_heads.class_logits",
    }
    assert all(torch.equal(own[key], theirs[key]) for key in own if key not in different)


@pytest.mark.parametrize("native", [True, False])
def test_mixed_precision_on_a_cpu(data, tmp_path, monkeypatch, native):
    """A CPU that has no bfloat16 trains in float32."""
    monkeypatch.setattr("mimicdet.modeling.layers.precision.cpu_has_bfloat16", lambda: native)
    dtypes = set()
    forward = torch.nn.Conv2d.forward

    def seen(self, x):
        out = forward(self, x)
        dtypes.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Conv2d, "forward", seen)
    opts = ["OUTPUT_DIR", str(tmp_path), "SOLVER.AMP.ENABLED", "True", *tiny_run.SHORT]
    assert main(["--config-file", str(data.config), *opts, "DATASETS.TEST", "()"]) == 0
    assert (torch.bfloat16 in dtypes) is native
    state = tiny_run.state(tmp_path / "model_final.pth")["model"]
    assert all(x.dtype == torch.float32 for x in state.values() if x.is_floating_point())


@pytest.mark.parametrize("kind", ["empty", "crowd"])
def test_images_without_objects_train_on(data, tmp_path, kind):
    content = tiny_run.coco_content()
    if kind == "empty":
        content["annotations"] = []
    else:
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1
    address = tiny_run.write_coco(tmp_path / "data", content)
    sets = ["DATASETS.TRAIN", f"('{address}',)", "DATASETS.TEST", "()"]
    opts = ["OUTPUT_DIR", str(tmp_path), "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"]
    opts += [*sets, *tiny_run.SHORT]
    assert main(["--config-file", str(data.config), *opts]) == 0
    last = tiny_run.metrics(tmp_path)[-1]
    assert last["iteration"] == 1
    assert {*LOSSES} <= last.keys() and all(math.isfinite(last[key]) for key in LOSSES)
    assert last["teacher/num_foreground"] == last["student/num_foreground"] == 0
    assert last["loss_teacher_loc"] == last["loss_student_loc"] == last["loss_refine_loc"] == 0
    state = tiny_run.state(tmp_path / "model_final.pth")["model"]
    assert all(x.isfinite().all() for x in state.values())
