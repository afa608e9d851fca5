"""
Run one of Detectron2's own tools, unchanged, on a MimicDet config:

    python -m mimicdet.commands.run_tool PATH/TO/detectron2/tools/analyze_model.py \
        --config-file configs/COCO-Detection/mimicdet_R_50_FPN_1x.yaml --tasks parameter

Detectron2's tools start from `get_cfg()`, whose config knows no MODEL.MIMICDET and would refuse
such a file. Importing mimicdet must not change Detectron2's config, so this runner does it, in its
own process and only while the tool runs: `detectron2.config.get_cfg` returns a config with
MimicDet's keys, and `CfgNode.freeze`, the call by which a tool says that its config is complete,
first registers the data sets that the config names by address ("coco:...", "voc:..."), fills in
what is taken from them and checks MimicDet's keys. Config files are read as plain YAML,
without tags that run code. Nothing else is touched.
"""

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from unittest.mock import patch

import detectron2.config
from detectron2.config import CfgNode

from ..config import add_mimicdet_config, check_config
from ..data import register_datasets
from ..utils.errors import UserError, command

_USAGE = "usage: python -m mimicdet.commands.run_tool TOOL.py [the tool's own arguments]"


@contextmanager
def mimicdet_config_known() -> Iterator[None]:
    """
    Let code that calls Detectron2's `get_cfg` work with MimicDet configs inside the context.

    What was changed is put back at the end, also after an error.
    """
    original_get_cfg = detectron2.config.get_cfg
    inherited_freeze = CfgNode.freeze

    def get_cfg() -> CfgNode:
        cfg = original_get_cfg()
        add_mimicdet_config(cfg)
        return cfg

    def freeze(cfg: CfgNode) -> None:
        is_root = "DATASETS" in cfg and "MODEL" in cfg and "MIMICDET" in cfg.MODEL
        if is_root and not cfg.is_frozen():
            register_datasets(cfg)
            check_config(cfg)
        inherited_freeze(cfg)

    read_safely = partialmethod(CfgNode.merge_from_file, allow_unsafe=False)
    with patch.object(detectron2.config, "get_cfg", get_cfg):
        with patch.multiple(CfgNode, freeze=freeze, merge_from_file=read_safely):
            yield


def _check_command_line(tool: str, arguments: Sequence[str]) -> None:
    """Refuse a missing tool, and several processes: they would load it without this runner."""
    if not Path(tool).is_file():
        raise UserError(f"tool '{tool}' does not exist")
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name not in ("--num-gpus", "--num-machines"):
            continue
        if not value and index + 1 < len(arguments):
            value = arguments[index + 1]
        if value not in ("0", "1"):
            raise UserError(
                f"{name} {value}: run_tool runs a tool in one process; "
                "train_net.py trains on several GPUs"
            )


def run_tool(tool: str, arguments: Sequence[str]) -> None:
    """
    Run the script `tool` as `__main__` with MimicDet's components and keys known.

    Args:
        tool: path of a Python script, as a rule one of Detectron2's tools/*.py.
        arguments: its own command line.

    Raises:
        UserError: there is no such script, or the command line asks for several processes.
    """
    _check_command_line(tool, arguments)
    argv, path = sys.argv, list(sys.path)
    sys.argv = [tool, *arguments]
    # Not the tool's own folder first, as `python TOOL.py` would do: Detectron2's clone must not
    # stand before the installed package.
    sys.path.append(str(Path(tool).resolve().parent))
    try:
        with mimicdet_config_known():
            runpy.run_path(tool, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, path


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool that the command line names."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip() + "\n\n" + _USAGE)
        return 0 if arguments else 2
    run_tool(arguments[0], arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
