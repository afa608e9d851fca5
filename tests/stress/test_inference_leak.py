"""Ten thousand inferences hold no more memory than five hundred."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.mock_model import write_mock

ROOT = Path(__file__).resolve().parents[2]

# A process of its own, whose memory is that of the runtime alone. Images of a few sizes in turn.
_RUN = """
import sys
from pathlib import Path
import numpy as np
from mimicdet_runtime import Detector

def resident():
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in status if x.startswith("VmRSS")).split()[1]) / 1024

detector = Detector(sys.argv[1], threads=1)
images = [np.full((60 + 7 * i, 80 + 5 * i, 3), 100, np.uint8) for i in range(5)]
for number in range(1, 10_001):
    assert len(detector(images[number % 5])) == 2
    if number == 500:
        first = resident()
print(first, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_after_the_first_inferences(tmp_path):
    model = write_mock(tmp_path / "mock.onnx")
    result = subprocess.run(
        [sys.executable, "-c", _RUN, str(model)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "projects" / "MimicDetRuntime")},
    )
    first, last = map(float, result.stdout.split())
    print(f"10,000 inferences: RSS {first:.1f} MiB after 500, {last:.1f} MiB at the end")
    assert last - first < 20
