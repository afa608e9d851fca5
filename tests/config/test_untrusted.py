"""Config files that come from anywhere run nothing; all of ours are plain YAML."""

from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode

from mimicdet.checkpoint.student import load_deployed_cfg
from mimicdet.commands import demo, export_model, quickstart, run_tool, train
from mimicdet.commands.compare_runs.plan import plan_of_flags, plan_runs
from mimicdet.config import load_config
from mimicdet.distillation.teacher import load_teacher_config
from mimicdet.engine import setup_cfg
from mimicdet.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def payloads(marker):
    """Name -> YAML that makes the file `marker` where it is read by yaml.unsafe_load."""
    touch, tag = f"touch {marker}", "!!python/object"
    values = {
        "apply os.system": f"{tag}/apply:os.system ['{touch}']",
        "apply subprocess": f"{tag}/apply:subprocess.call [[touch, '{marker}']]",
        "apply eval": f"{tag}/apply:eval [\"open('{marker}', 'w')\"]",
        "apply exec": f"{tag}/apply:exec [\"open('{marker}', 'w')\"]",
        "apply with keywords": f"{tag}/apply:open {{kwds: {{file: '{marker}', mode: w}}}}",
        "new": f"{tag}/new:os.system ['{touch}']",
        "whole tag": f"!<tag:yaml.org,2002:python/object/apply:os.system> ['{touch}']",
        "in a list": f"[1, [{tag}/apply:os.system ['{touch}']]]",
        "in a mapping": f"{{A: {{B: {tag}/apply:os.system ['{touch}']}}}}",
        "as a key": f"{{? {tag}/apply:os.system ['{touch}'] : 1}}",
        "behind an anchor": f"[&x {tag}/apply:os.system ['{touch}'], *x]",
        "in a tuple": f"!!python/tuple [{tag}/apply:os.system ['{touch}']]",
    }
    files = {name: f"MODEL:\n  WEIGHTS: {value}\n" for name, value in values.items()}
    apply = values["apply os.system"]
    files |= {
        "whole file": f"{apply}\n",
        "base that is a call": f"_BASE_: {apply}\n",
        "tag directive": f"%TAG !p! tag:yaml.org,2002:python/\n---\nA: !p!object/apply:os.system\n"
        f"- {touch}\n",
    }
    return files


NAMES = sorted(payloads("x"))
HARMLESS = [
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:argparse.Namespace {}",
]


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_is_one(name, marker):
    """That the tests below would see it run."""
    yaml.unsafe_load(payloads(marker)[name])
    assert marker.exists()


def child(path, base):
    path.write_text(f"_BASE_: {base}\nMODEL: {{MASK_ON: False}}\n")
    return str(path)


def teacher(path):
    weights = path.with_name("x.pth")
    weights.touch()
    node = CfgNode({"CONFIG_FILE": path.as_posix(), "WEIGHTS": str(weights)})
    return load_teacher_config(load_config(""), node, "KEY")


WAYS = {
    "file": lambda path: load_config(str(path)),
    "base": lambda path: load_config(child(path.with_name("a.yaml"), path.name)),
    "bases": lambda path: load_config(child(path.with_name("a.yaml"), f"[{path}]")),
    "base of a base": lambda path: load_config(
        child(path.with_name("b.yaml"), child(path.with_name("a.yaml"), path.name))
    ),
    "training": lambda path: setup_cfg(str(path), []),
    "export, demo": lambda path: load_deployed_cfg(str(path), []),
    "teacher": teacher,
    "comparison": lambda path: plan_runs(plan_of_flags([str(path)], [1]), path.parent),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_runs_and_file_and_line_are_named(way, marker, tmp_path):
    path = tmp_path / "strange.yaml"
    files = payloads(marker) | {x: f"MODEL:\n  WEIGHTS: {x}\n" for x in HARMLESS}
    for name, text in files.items():
        path.write_text(text)
        with pytest.raises(UserError) as found:
            WAYS[way](path)
        assert not marker.exists()
        message = str(found.value)
        assert "tag:yaml.org,2002:python/" in message, name
        assert str(path) in message and "line " in message
    assert len(files) >= 18


@pytest.mark.parametrize("command", [train, export_model, quickstart, demo])
def test_nothing_runs_in_the_commands(command, marker, tmp_path, capsys):
    path, output = tmp_path / "strange.yaml", str(tmp_path / "output")
    path.write_text(payloads(marker)["apply os.system"])
    arguments = {
        train: ["OUTPUT_DIR", output],
        demo: ["--input", str(path), "--output", output],
    }.get(command, ["--output", output])
    assert command.main(["--config-file", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert f"error: {path}: " in error and "python/object/apply:os.system" in error
    assert not marker.exists()


def test_nothing_runs_in_detectron2s_tools(marker, tmp_path):
    path = tmp_path / "strange.yaml"
    path.write_text(payloads(marker)["apply os.system"])
    with run_tool.mimicdet_config_known(), pytest.raises(yaml.YAMLError):
        load_config("").merge_from_file(str(path))
    assert not marker.exists()
    path.write_text("MODEL: {WEIGHTS: x.pth}")
    with run_tool.mimicdet_config_known():
        load_config("").merge_from_file(str(path))


def test_an_override_is_text(marker):
    for text in payloads(marker).values():
        assert load_config("", ["MODEL.WEIGHTS", text]).MODEL.WEIGHTS == text
    code = f"__import__('os').system('touch {marker}')"
    assert load_config("", ["MODEL.WEIGHTS", code]).MODEL.WEIGHTS == code
    assert not marker.exists()


def test_several_documents(tmp_path):
    (tmp_path / "x.yaml").write_text("MODEL: {MASK_ON: False}\n---\nMODEL: {}\n")
    with pytest.raises(UserError, match=r"x\.yaml"):
        load_config(str(tmp_path / "x.yaml"))


def test_proposals_are_not_read(tmp_path):
    """They are pickles, and the tests' loader of Detectron2 reads them."""
    with pytest.raises(UserError, match="MODEL.LOAD_PROPOSALS must be False, got True"):
        load_config("", ["MODEL.LOAD_PROPOSALS", "True"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda x: x.name)
def test_every_config_is_plain_yaml(path):
    assert yaml.safe_load(path.read_text())
    assert load_config(str(path)).VERSION == 2
