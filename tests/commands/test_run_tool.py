import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from mimicdet.commands import run_tool

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "COCO-Detection" / "mimicdet_R_50_FPN_1x.yaml"

# What Detectron2's tools do with a config, and nothing else.
TOOL = """
import sys
from detectron2.config import get_cfg

cfg = get_cfg()
cfg.merge_from_file(sys.argv[1])
cfg.merge_from_list(sys.argv[2:])
cfg.freeze()
if __name__ == "__main__":
    print("eval head:", cfg.MODEL.MIMICDET.EVAL_HEAD, cfg.is_frozen())
"""


@pytest.fixture
def tool(tmp_path):
    path = tmp_path / "tool.py"
    path.write_text(TOOL)
    return path


def test_importing_mimicdet_leaves_detectron2s_config_alone():
    code = (
        "import detectron2.config as c; before = c.get_cfg, c.CfgNode.freeze;"
        "import mimicdet, mimicdet.commands.run_tool;"
        "assert (c.get_cfg, c.CfgNode.freeze) == before;"
        "assert 'MIMICDET' not in c.get_cfg().MODEL"
    )
    path = str(ROOT / "projects" / "MimicDet")
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_a_tool_reads_a_mimicdet_config(tool, capsys):
    opts = ["MODEL.MIMICDET.EVAL_HEAD", "teacher"]
    assert run_tool.main([str(tool), str(CONFIG), *opts]) == 0
    assert "eval head: teacher True" in capsys.readouterr().out


def test_everything_is_put_back_after_the_tool_and_after_its_error(tool):
    import detectron2.config

    argv, path = list(sys.argv), list(sys.path)
    freeze = CfgNode.freeze
    run_tool.main([str(tool), str(CONFIG)])
    tool.write_text("raise RuntimeError('the tool failed')")
    with pytest.raises(RuntimeError, match="the tool failed"):
        run_tool.main([str(tool)])
    assert detectron2.config.get_cfg is get_cfg
    assert CfgNode.freeze is freeze and "freeze" not in vars(CfgNode)
    assert "MIMICDET" not in get_cfg().MODEL
    assert (sys.argv, sys.path) == (argv, path)


def test_freezing_registers_the_data_sets_once(monkeypatch):
    seen = []
    monkeypatch.setattr(run_tool, "register_datasets", lambda cfg: seen.append(cfg))
    with run_tool.mimicdet_config_known():
        from detectron2.config import get_cfg as inside

        cfg = inside()
        cfg.freeze()
        cfg.freeze()
        CfgNode({"SOMETHING": 1}).freeze()
    assert len(seen) == 1 and seen[0] is cfg and cfg.is_frozen()


def test_data_named_by_address_and_missing_are_one_clear_line(tool, capsys):
    opts = ["DATASETS.TRAIN", "('coco:no_such_annotations.json',)"]
    assert run_tool.main([str(tool), str(CONFIG), *opts]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "no_such_annotations.json" in error


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, ""),
        (["none/such_tool.py"], 2, "none/such_tool.py"),
        ([__file__, "--num-gpus", "2"], 2, "--num-gpus 2"),
        ([__file__, "--num-machines=4"], 2, "--num-machines 4"),
    ],
)
def test_a_command_line_that_cannot_work(arguments, status, message, capsys):
    assert run_tool.main(arguments) == status
    assert message in capsys.readouterr().err


def test_help_says_how(capsys):
    assert run_tool.main(["--help"]) == 0
    assert "TOOL.py" in capsys.readouterr().out
