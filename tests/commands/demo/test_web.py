"""demo/web.py: a checkpoint behind the page, with what it samples."""

import numpy as np
import pytest

from mimicdet.commands import web
from mimicdet_runtime.server import PageServer


@pytest.fixture
def arguments(run_folder):
    weights = str(run_folder / "model_final.pth")
    return ["--config-file", str(run_folder / "config.yaml"), "--weights", weights]


def test_the_sampling_of_a_detection_lies_around_it(arguments):
    models = web.make_models(web.build_parser().parse_args(arguments))
    (listed,) = models.describe()
    assert listed["name"] == "model_final.pth" and listed["has_sampling"]
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    with PageServer(models, port=0) as page:
        model = models.get(listed["id"])
        out = page.detect(model, image)
        assert out["detections"]
        box = out["detections"][0]["box"]
        answer = page.sampling(model, image, box)
    assert len(answer["points"]) in (9, 25), "3 x 3 on P3, 5 x 5 above"
    x0, y0, x1, y1 = answer["anchor"]
    left, top = max(x0, box[0]), max(y0, box[1])
    right, bottom = min(x1, box[2]), min(y1, box[3])
    assert left < right and top < bottom, "the adjusted anchor box overlaps the detection"


@pytest.mark.parametrize(
    "change, message",
    [
        (["--weights", "none.pth"], "none.pth"),
        (["none.onnx"], "none.onnx: no such file"),
        (["--port", "99999"], "cannot listen"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, capsys, change, message):
    assert web.main([*arguments, *change]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line
