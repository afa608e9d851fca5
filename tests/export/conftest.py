"""A small student with opinions of its own: random heads, whose scores and boxes all differ."""

import json
from types import SimpleNamespace

import pytest
import torch

from mimicdet.checkpoint.student import METADATA_KEY
from mimicdet.export.verify import to_batch
from tests.helpers import randomise_refinement, small_cfg, small_model

# Above 1 / (K + 1), the score of a box that the head has no opinion of.
SETTINGS = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3, "TEST.DETECTIONS_PER_IMAGE", 40)
SETTINGS += ("MODEL.MIMICDET.STUDENT.INIT", "he")
SIZES = ("INPUT.MIN_SIZE_TEST", 132, "INPUT.MAX_SIZE_TEST", 200)
CLASS_NAMES = ["disc", "square", "ring"]


def decided_model(*opts, seed=0):
    model = small_model(*SETTINGS, *SIZES, *opts, seed=seed).eval()
    randomise_refinement(model, seed)
    head = model.student_head
    actual = []
    hook = head.register_forward_hook(lambda module, inputs, output: actual.append(output))
    eager(model, [noise(96, 96, seed)])
    hook.remove()
    for layer, output, std in (
        (head.class_logits, actual[0].pred_class_logits, 2.0),
        (head.box_deltas, actual[0].pred_box_deltas, 0.5),
    ):
        layer.weight.data *= std / output.std()
    return model


def noise(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), generator=generator).byte().numpy()


def eager(model, images):
    inputs = [{"image": torch.from_numpy(x.copy()).permute(2, 0, 1).float()} for x in images]
    return [x["instances"] for x in model(inputs)]


def assert_same(outputs, expected):
    """Detections of (boxes, scores, classes, num_detections) against Instances."""
    for boxes, scores, classes, count, instances in zip(*map(torch.as_tensor, outputs), expected):
        assert count == len(instances)
        torch.testing.assert_close(
            boxes[:count], instances.pred_boxes.tensor, rtol=0, atol=1e-2, check_dtype=True
        )
        torch.testing.assert_close(scores[:count], instances.scores, rtol=0, atol=1e-4)
        assert torch.equal(classes[:count], instances.pred_classes)
        assert not boxes[count:].any() and not scores[count:].any() and not classes[count:].any()


def assert_runs_alike(run, model, images):
    assert_same(run(*to_batch(images)), eager(model, images))


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    """The model, its config file, and a checkpoint that knows its classes."""
    folder = tmp_path_factory.mktemp("student")
    model = decided_model()
    config = folder / "small.yaml"
    config.write_text(small_cfg(*SETTINGS, *SIZES).dump())
    weights = folder / "student.pth"
    metadata = {"format_version": 1, "class_names": CLASS_NAMES}
    torch.save({"model": model.state_dict(), METADATA_KEY: metadata}, weights)
    yield SimpleNamespace(model=model, config=config, weights=weights)
    weights.unlink()


@pytest.fixture(scope="session")
def exported(student, tmp_path_factory):
    """A function that exports once with the tool's arguments; returns (path, printed metadata)."""
    from mimicdet.commands.export_model import main

    done = {}

    def export(*arguments, capture):
        if arguments not in done:
            path = tmp_path_factory.mktemp("exported") / f"model.{arguments[0]}"
            capture.readouterr()
            code = main(
                ["--config-file", str(student.config), "--format", *arguments]
                + ["--output", str(path), "MODEL.WEIGHTS", str(student.weights)]
            )
            captured = capture.readouterr()
            assert code == 0, captured.err
            done[arguments] = path, json.loads(captured.out[captured.out.index("{\n") :])
        return done[arguments]

    return export
