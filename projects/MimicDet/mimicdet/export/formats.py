"""One writer and one reader for each format."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.student import METADATA_KEY
from ..modeling.meta_arch.mimicdet import MimicDet
from ..utils.errors import UserError
from .detector import INPUT_NAMES, OUTPUT_NAMES, ExportableDetector
from .metadata import METADATA_FILE
from .nms import kept_by_nms_op, onnx_translation
from .resize import ResizingDetector, add_resize
from .simplify import simplify

FORMATS = ("onnx", "torchscript", "pt2")
DEFAULT_OPSET = 18  # ONNX Runtime reads it since 1.14
# torch.export takes sizes of 1 for constants, so its example must have none: P7 is 2 x 2 from here.
MIN_CANVAS = 129

Runner = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


def write_onnx(model: MimicDet, path: Path, metadata: dict[str, Any]) -> None:
    """
    Write the ONNX file; metadata: see metadata.export_metadata, which says how to.

    Raises:
        UserError: an opset that cannot be written.
    """
    import onnx
    import onnxscript

    opset = metadata["opset"]
    module = getattr(onnxscript, f"opset{opset}", None)
    if opset < DEFAULT_OPSET or module is None:
        raise UserError(f"--opset {opset}: this graph can be written from opset 18 on")
    detector = ExportableDetector(model, kept_by_nms_op, metadata["precision"])
    with _quiet():
        program = torch.onnx.export(
            _exported_program(detector, metadata["fixed_size"]),
            input_names=list(INPUT_NAMES),
            output_names=list(OUTPUT_NAMES),
            opset_version=opset,
            dynamo=True,
            verbose=False,
            custom_translation_table={
                torch.ops.mimicdet.kept_by_nms.default: onnx_translation(module)
            },
        )
    simplify(program.model, int8=metadata["precision"] == "int8")
    proto = program.model_proto
    if metadata["includes_resize"]:
        proto = add_resize(proto, metadata["resize"]["min_size"], metadata["resize"]["max_size"])
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(metadata)})
    for item in (proto.graph, *proto.graph.node, *proto.graph.value_info):
        item.ClearField("metadata_props")  # PyTorch's traces, with paths of this machine
    proto.producer_name, proto.producer_version = "mimicdet", metadata["mimicdet_version"]
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))


def write_torchscript(model: MimicDet, path: Path, metadata: dict[str, Any]) -> None:
    """Write a traced TorchScript file."""
    detector = ExportableDetector(model, precision=metadata["precision"])
    with _quiet():
        module = torch.jit.trace(detector, _example(), check_trace=False).eval()
        if metadata["includes_resize"]:
            resize = metadata["resize"]
            module = ResizingDetector(module, resize["min_size"], resize["max_size"])
            module = torch.jit.script(module.eval())
        module.save(str(path), _extra_files={METADATA_FILE: json.dumps(metadata)})


def write_pt2(model: MimicDet, path: Path, metadata: dict[str, Any]) -> None:
    """Write torch.export's format. UserError for a resize: sizes that depend on data."""
    if metadata["includes_resize"]:
        raise UserError("--include-resize: the format pt2 cannot hold it; onnx and torchscript can")
    with _quiet():
        program = _exported_program(ExportableDetector(model, precision=metadata["precision"]))
        torch.export.save(program, str(path), extra_files={METADATA_FILE: json.dumps(metadata)})


WRITERS = {"onnx": write_onnx, "torchscript": write_torchscript, "pt2": write_pt2}


def load_exported(path: str | Path, file_format: str) -> Runner:
    """
    A written file as a function of (images, image_sizes) NumPy arrays to the four output arrays.

    Runs on the CPU: ONNX in ONNX Runtime, the others in PyTorch. pt2 takes canvases from
    MIN_CANVAS a side on.
    """
    if file_format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        return lambda *inputs: session.run(list(OUTPUT_NAMES), dict(zip(INPUT_NAMES, inputs)))
    if file_format == "torchscript":
        module = torch.jit.load(str(path), map_location="cpu")
    else:
        module = torch.export.load(str(path)).module()

    def run(images: np.ndarray, image_sizes: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            outputs = module(torch.from_numpy(images), torch.from_numpy(image_sizes))
        return [x.numpy() for x in outputs]

    return run


def _example() -> tuple[Tensor, Tensor]:
    """Inputs to trace with: no two sizes of the network's maps are alike by chance."""
    sizes = torch.tensor([[300, 380], [250, 420]])
    pixels = torch.rand(2, 3, 300, 420, generator=torch.Generator().manual_seed(0)) * 255
    return pixels, sizes


def _exported_program(
    detector: ExportableDetector, fixed_size: Sequence[int] | None = None
) -> torch.export.ExportedProgram:
    """fixed_size: (height, width) of the canvas of one image; None: any number of any size."""
    batch = torch.export.Dim("batch", min=1)
    height, width = (torch.export.Dim(x, min=MIN_CANVAS) for x in ("height", "width"))
    example = _example()
    shapes = {"images": {0: batch, 2: height, 3: width}, "image_sizes": {0: batch}}
    if fixed_size:
        example, shapes = (torch.zeros(1, 3, *fixed_size), torch.tensor([fixed_size])), None
    with torch.no_grad():  # else switching gradients off becomes a part of the graph
        return torch.export.export(detector, example, dynamic_shapes=shapes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own inner workings, on stderr and by logging."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
