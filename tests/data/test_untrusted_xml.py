"""XML whose entities grow to gigabytes or name files of the machine: an error at once."""

import resource
import time

import pytest

from mimicdet.config import load_config
from mimicdet.data import register_datasets
from mimicdet.utils.errors import UserError
from tests.engine import tiny_run

LAUGHS = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
BOMBS = {
    "exponential": (f'<!ENTITY a0 "lol">{LAUGHS}', "&a9;"),
    "quadratic": (f'<!ENTITY a "{"x" * 100_000}">', "&a;" * 5000),
    "a file": ('<!ENTITY a SYSTEM "file:///etc/passwd">', "&a;"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_entities(kind, tmp_path, clean_catalogs):
    address, (entities, text) = tiny_run.write_voc(tmp_path / "VOC2007"), BOMBS[kind]
    bomb = f"<!DOCTYPE annotation [{entities}]><annotation><folder>{text}</folder></annotation>"
    (tmp_path / "VOC2007" / "Annotations" / "1.xml").write_text(bomb)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    sets = ["DATASETS.TRAIN", f"('{address}',)", "DATASETS.TEST", "()"]
    with pytest.raises(UserError, match=r"broken XML.*1\.xml"):
        register_datasets(load_config("", sets))
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
