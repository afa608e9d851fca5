"""Sampling points: hand-computed places, and the places that the alignment layer really reads."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou

from mimicdet.modeling.layers import ALIGNMENTS
from mimicdet.modeling.layers.readers import RowReader
from mimicdet.modeling.layers.sparse_conv import RowLayout, pyramid_rows
from mimicdet.visualization import draw_sampling, sampling_points
from mimicdet.visualization.sampling import ADJUSTED, DETECTION, POINT, TRUTH
from tests.helpers import NUM_CLASSES, P3_BOX, P4_BOX, make_input, randomise_refinement, small_model

NAMES = [f"name {index}" for index in range(NUM_CLASSES)]
INIT = "MODEL.MIMICDET.STUDENT.OFFSET_INIT"
ALIGNMENT = "MODEL.MIMICDET.STUDENT.ALIGNMENT"


def model_of(*opts):
    """A model in evaluation mode that proposes every anchor as it is."""
    every = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RPN.POST_NMS_TOPK_TEST", 1000]
    model = small_model(*every, *opts).eval()
    model.proposal_generator.anchor_deltas.weight.data.zero_()
    return model


def without_offsets(model):
    for layer in model.student_head.alignments.values():
        for parameter in layer.offset.parameters():
            torch.nn.init.zeros_(parameter)
    return model


def grid(center, step, k):
    """(k * k, 2) of (x, y), row-major."""
    steps = (np.arange(k) - k // 2) * step
    y, x = np.meshgrid(center[1] + steps, center[0] + steps, indexing="ij")
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def test_without_offsets_the_points_are_the_kernel_on_the_map():
    """P3: 3 x 3 points 8 pixels apart around (28, 28); P4: 5 x 5, 16 pixels around (40, 24)."""
    record = sampling_points(
        without_offsets(model_of()), make_input(), reference_boxes=np.array([P3_BOX, P4_BOX])
    )
    assert record.levels == ["p3", "p4"] and record.strides == [8, 16]
    np.testing.assert_allclose(record.points[0], grid((28, 28), 8, 3))
    np.testing.assert_allclose(record.points[1], grid((40, 24), 16, 5))
    np.testing.assert_allclose(record.proposals, [P3_BOX, P4_BOX])
    np.testing.assert_allclose(record.anchors, [P3_BOX, [8, -8, 72, 56]])


def test_offsets_that_start_at_the_box_lie_on_a_grid_over_the_adjusted_box():
    """An anchor of 32 pixels: bins of 32 / 3; one of 64 pixels: bins of 64 / 5."""
    record = sampling_points(
        model_of(INIT, "box"), make_input(), reference_boxes=np.array([P3_BOX, P4_BOX])
    )
    np.testing.assert_allclose(record.points[0], grid((28, 28), 32 / 3, 3), atol=1e-4)
    np.testing.assert_allclose(record.points[1], grid((40, 24), 64 / 5, 5), atol=1e-4)


def test_places_are_told_in_pixels_of_the_original_image():
    model, inputs = model_of(INIT, "box"), make_input()
    plain = sampling_points(model, inputs, reference_boxes=np.array([P3_BOX]))
    scale = np.array([3.0, 2.0])  # of x, y
    inputs |= {"width": 96 * 3, "height": 64 * 2}
    scaled = sampling_points(model, inputs, reference_boxes=np.array([P3_BOX]) * np.tile(scale, 2))
    assert scaled.image_size == (128, 288)
    np.testing.assert_allclose(scaled.points[0], plain.points[0] * scale)
    for name in ("proposals", "anchors", "boxes"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(plain, name) * np.tile(scale, 2))
    assert scaled.scores == plain.scores


@pytest.mark.parametrize("scale, own", [(1, []), (2, ["p2", "p3", "p4", "p5", "p6"])])
@pytest.mark.parametrize("alignment", sorted(ALIGNMENTS))
def test_the_layer_reads_the_maps_at_these_points_and_nowhere_else(alignment, scale, own):
    """
    The gradient of the aligned features by the maps marks the cells that were read: the
    neighbours of the points, which bilinear interpolation weighs.
    """
    model = model_of(ALIGNMENT, alignment, "MODEL.MIMICDET.STUDENT.IN_FEATURES", own)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.student_head.alignments.named_parameters():
        if name.endswith("bias"):  # maps of an untrained backbone are huge: weights stay small
            parameter.data = torch.randn(parameter.shape, generator=generator)
        elif "offset" in name:
            parameter.data *= 1.0 if alignment == "guided" else 1e-3
    inputs, box = make_input(size=(128, 160)), np.array([[60.0, 44.0, 92.0, 76.0]])
    record = sampling_points(model, inputs, reference_boxes=box)
    level = model.proposal_generator.in_features.index(record.levels[0])
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([inputs]).tensor)
        maps = [features[name] for name in model.proposal_generator.in_features]
        refined = model.proposal_generator.predict(maps)
        proposals = model.proposal_generator.propose(refined, [(128, 160)])[0]
    chosen = pairwise_iou(Boxes(torch.tensor(box).float()), proposals.proposal_boxes).argmax()
    layer = model.student_head.layers[level]
    read_maps = [features[name] for name in model.student_head.in_features]
    rows = pyramid_rows([read_maps[level]])
    sizes, map_sizes = (tuple(tuple(m.shape[-2:]) for m in x) for x in (maps, read_maps))
    layout = RowLayout.of(sizes, (level,), rows.device, map_sizes, 5 * (scale,))
    places = layout.locate(proposals.locations[chosen][None], torch.tensor([0]))
    place = (0, slice(None), places.y[0], places.x[0])
    guidance = refined.delta_maps[level][place][None]
    offsets = layer.offsets(RowReader(rows, guidance, places))  # fixed: these read maps as well
    layer.offsets = lambda *_: offsets
    rows.requires_grad_()
    layer.conv.weight.data.fill_(1.0)
    layer(RowReader(rows, guidance, places)).sum().backward()
    read = rows.grad[:, 0].view(map_sizes[level]) / layer.conv.out_channels
    expected = torch.zeros_like(read)
    for px, py in record.points[0] / (record.strides[0] / scale) - 0.5:
        for row in (int(np.floor(py)), int(np.floor(py)) + 1):
            for column in (int(np.floor(px)), int(np.floor(px)) + 1):
                if 0 <= row < read.shape[0] and 0 <= column < read.shape[1]:
                    expected[row, column] += (1 - abs(py - row)) * (1 - abs(px - column))
    assert float(expected.sum()) > 4
    torch.testing.assert_close(read, expected, atol=1e-3, rtol=1e-3)


def test_by_score_the_objects_are_the_models_own_detections():
    model, inputs = small_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval(), make_input()
    randomise_refinement(model)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.student_head.class_logits.weight, std=3.0)
    torch.nn.init.normal_(model.student_head.box_deltas.weight, std=0.3)
    found = model([inputs])[0]["instances"]
    found = found[found.scores.argsort(descending=True, stable=True)]
    record = sampling_points(model, inputs, num_objects=4)
    np.testing.assert_allclose(record.boxes, found.pred_boxes.tensor[:4].numpy(), atol=1e-4)
    assert record.classes.tolist() == found.pred_classes[:4].tolist()
    np.testing.assert_allclose(record.scores, found.scores[:4].detach().numpy(), atol=1e-6)
    threshold = float(found.scores[1])
    assert len(sampling_points(model, inputs, score_threshold=threshold - 1e-6).levels) == 2


def test_no_object_is_a_record_of_nothing_and_all_records_are_json():
    model, inputs = model_of(), make_input()
    empty = sampling_points(model, inputs, score_threshold=1.1)
    assert empty.points == [] and empty.proposals.shape == (0, 4)
    none = sampling_points(model, inputs, reference_boxes=np.zeros((0, 4)))
    assert none.levels == []
    for record in (empty, none):
        assert json.loads(json.dumps(record.to_json()))["points"] == []
        assert draw_sampling(np.zeros((64, 96, 3), np.uint8), record, NAMES).ndim == 3
    record = sampling_points(model, inputs, reference_boxes=np.array([P3_BOX]))
    content = json.loads(json.dumps(record.to_json()))
    assert content["proposals"] == [P3_BOX] and len(content["points"][0]) == 9


def test_a_model_in_training_mode_or_without_student_is_refused():
    with pytest.raises(ValueError, match="evaluation mode"):
        sampling_points(model_of().train(), make_input())


def test_the_picture_holds_dots_at_the_points_and_the_boxes_asked_for():
    record = sampling_points(
        without_offsets(model_of()), make_input(), reference_boxes=np.array([P3_BOX])
    )
    image = np.full((64, 96, 3), 128, np.uint8)
    truth = np.array([[60.0, 10.0, 90.0, 50.0]])

    def count(picture, color):
        return int((picture == np.array(color, np.uint8)).all(-1).sum())

    plain = draw_sampling(image, record, NAMES, width=960, show_detections=False)
    top = plain.shape[0] - 640
    picture = plain[top:]
    for x, y in record.points[0] * 10:
        assert tuple(picture[round(y), round(x)]) == POINT
    assert tuple(picture[280, 330]) == (128, 128, 128)
    assert count(picture, ADJUSTED) and not count(picture, DETECTION) and not count(picture, TRUTH)
    full = draw_sampling(image, record, NAMES, width=960, gt_boxes=truth, title="a")[-640:]
    assert count(full, DETECTION) and count(full, TRUTH) and tuple(full[300, 899]) == TRUTH
