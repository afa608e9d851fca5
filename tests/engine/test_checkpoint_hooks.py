"""The best checkpoint over a resume, and what MimicCheckpointer accepts."""

import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from mimicdet.engine import BestCheckpointer, MimicCheckpointer, load_weights


def evaluate(folder, values, start_iter=0, metric="bbox/AP"):
    """Run the hook over evaluations at iterations 0, 1, ...; return the model's saved numbers."""
    model = nn.Linear(1, 1, bias=False)
    checkpointer = MimicCheckpointer(model, str(folder))
    hook = BestCheckpointer(1, checkpointer, metric)
    hook.trainer = SimpleNamespace(start_iter=start_iter, max_iter=1000, iter=start_iter)
    hook.before_train()
    with EventStorage(start_iter) as storage:
        hook.trainer.storage = storage
        for step, value in enumerate(values, start_iter):
            hook.trainer.iter = storage.iter = step
            nn.init.constant_(model.weight, step)
            storage.put_scalar(metric, value, smoothing_hint=False)
            hook.after_step()
    return hook


def saved(folder):
    return torch.load(folder / "model_best.pth")["model"]["weight"].item()


def test_the_best_value_is_kept(tmp_path):
    hook = evaluate(tmp_path, [10.0, 30.0, 20.0, float("nan")])
    assert (hook.best_metric, hook.best_iter) == (30.0, 1)
    assert saved(tmp_path) == 1
    record = json.loads((tmp_path / "model_best.json").read_text())
    assert record == {"metric": "bbox/AP", "value": 30.0, "iteration": 1}


def test_it_is_remembered_over_a_resume(tmp_path):
    evaluate(tmp_path, [10.0, 30.0])
    evaluate(tmp_path, [20.0, 25.0], start_iter=2)
    assert saved(tmp_path) == 1
    hook = evaluate(tmp_path, [29.0, 31.0], start_iter=4)
    assert saved(tmp_path) == 5 and hook.best_metric == 31.0


def test_a_new_run_in_the_same_folder_starts_without_it(tmp_path):
    evaluate(tmp_path, [30.0])
    evaluate(tmp_path, [])  # stopped before its first evaluation
    assert not (tmp_path / "model_best.json").exists()
    evaluate(tmp_path, [5.0], start_iter=7)
    assert saved(tmp_path) == 7


def test_the_value_of_another_metric_is_not_compared(tmp_path):
    evaluate(tmp_path, [90.0], metric="bbox/AP50")
    evaluate(tmp_path, [40.0], start_iter=3)
    assert saved(tmp_path) == 3


def test_resume_goes_on_from_the_last_checkpoint_not_from_the_best(tmp_path):
    MimicCheckpointer(nn.Linear(1, 1, bias=False), str(tmp_path)).save("model_0000000")
    evaluate(tmp_path, [30.0])
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"


class TwoHeads(nn.Module):
    """Parameters named as MimicDet's are."""

    def __init__(self, eval_head="student"):
        super().__init__()
        self.student_head, self.roi_heads = nn.Linear(2, 2), nn.Linear(2, 2)
        self.eval_head = eval_head


def write(folder, drop=(), **changes):
    state = {key: x for key, x in TwoHeads().state_dict().items() if not key.startswith(drop)}
    torch.save({"model": {**state, **changes}, "iteration": 3}, folder / "x.pth")
    return str(folder / "x.pth")


def test_strict_asks_for_what_inference_uses(tmp_path):
    path = write(tmp_path, drop=("roi_heads.",))
    load_weights(TwoHeads(), path)  # a student alone
    with pytest.raises(ValueError, match=r"x\.pth does not fit.*Missing: roi_heads\.weight"):
        load_weights(TwoHeads("teacher"), path)
    path = write(tmp_path, drop=("student_head.weight",))
    with pytest.raises(ValueError, match=r"Missing: student_head\.weight"):
        load_weights(TwoHeads(), path)
    MimicCheckpointer(TwoHeads()).load(path)  # fine-tuning takes what there is


def test_strict_names_shapes(tmp_path):
    path = write(tmp_path, **{"student_head.bias": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"student_head\.bias: \(5,\) in the file, \(2,\) in"):
        load_weights(TwoHeads(), path)


def test_nothing_in_common(tmp_path):
    torch.save({"layer1.weight": torch.zeros(2)}, tmp_path / "y.pth")
    with pytest.raises(ValueError, match="another architecture.*layer1.weight.*roi_heads.bias"):
        MimicCheckpointer(TwoHeads()).load(str(tmp_path / "y.pth"))


def test_resuming_is_strict_and_starting_is_not(tmp_path):
    path = write(tmp_path, drop=("student_head.weight",))
    checkpointer = MimicCheckpointer(TwoHeads(), str(tmp_path))
    checkpointer.resume_or_load(path, resume=True)  # no last checkpoint yet: a start
    (tmp_path / "last_checkpoint").write_text("x.pth")
    with pytest.raises(ValueError, match="does not fit"):
        checkpointer.resume_or_load("", resume=True)
    assert not checkpointer.strict


def test_no_weights_is_a_start_from_scratch():
    model = TwoHeads()
    before = model.student_head.weight.clone()
    assert MimicCheckpointer(model).load("") == {}
    assert torch.equal(model.student_head.weight, before)
