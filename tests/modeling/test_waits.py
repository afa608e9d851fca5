"""How often an image's detection makes the CPU wait for a GPU, counted by operators on a CPU."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import make_input, randomise_refinement, small_model

# What they return, or how long it is, is known when the device is done.
_WAITING = {
    "aten._local_scalar_dense",
    "aten.is_nonzero",
    "aten.equal",
    "aten.nonzero",
    "aten.masked_select",
    "aten._unique2",
    "aten.unique_dim",
    "aten.unique_consecutive",
    "torchvision.nms",
}
_INDEXING = {"aten.index", "aten.index_put", "aten.index_put_"}


class Waits(TorchDispatchMode):
    """Counts operators by name; an index of bools is one of `nonzero`."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        by_mask = name in _INDEXING and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        unknown_length = name == "aten.repeat_interleave" and not (kwargs or {}).get("output_size")
        if name in _WAITING or by_mask or unknown_length:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_images", [1, 2, 5])
@pytest.mark.parametrize("num_classes", [2, 30])
def test_detection_waits_a_few_times_for_an_image(num_images, num_classes):
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", num_classes, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0]
    model = small_model(*opts).eval()  # where no box goes, NMS over the best 200 is enough
    randomise_refinement(model, std=0.05)
    inputs = [make_input((64, 96), seed=i) for i in range(num_images)]
    model(inputs)  # anchors of this size are kept
    with Waits() as waits:
        actual = model(inputs)
    assert all(len(x["instances"]) for x in actual)
    # Padding's sizes, which Detectron2 reads from tensors of the CPU.
    assert waits.counts.pop("aten._local_scalar_dense") <= 2
    # The S-head's locations by kernel; of each image what passes the threshold, NMS, and what is
    # left in the image's own size.
    assert waits.counts == {"aten.nonzero": 2 + 2 * num_images, "torchvision.nms": num_images}
