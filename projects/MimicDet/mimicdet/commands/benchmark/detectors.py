"""What is compared: how every detector is built, and where its output layers are."""

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import RetinaNet
from torch import Tensor, nn

from ... import model_zoo
from ...export.formats import DEFAULT_OPSET, write_onnx
from ...export.optimize import optimize_for_inference
from ...modeling.meta_arch.mimicdet import MimicDet
from ...utils.errors import check_choice

# Detectron2's anchor generators call torch.meshgrid in a way that PyTorch warns of.
warnings.filterwarnings("ignore", message="torch.meshgrid")

BACKBONES = {"R-18": 18, "R-50": 50, "R-101": 101}


@dataclass(frozen=True)
class ModelSettings:
    """What all models of a comparison have in common."""

    backbone: str  # a name of BACKBONES
    num_classes: int
    device: str  # "cpu" or "cuda"


@dataclass(frozen=True)
class Detector:
    """
    A kind of detector: a builder of randomly initialised models, and their output layers in the
    order in which they are computed, each with the mean and spread that calibration gives it.
    classifier is the path of the layer of class logits, "" for a model that detects nothing;
    softmax says that its last channel is the background's. score_thresh reads a model's
    SCORE_THRESH_TEST.
    """

    build: Callable[[ModelSettings], nn.Module]
    outputs: tuple[tuple[str, float, float], ...] = ()
    classifier: str = ""
    softmax: bool = False
    score_thresh: Callable[[nn.Module], float | None] = lambda model: None


@dataclass(frozen=True)
class Case:
    """A row of the tables: a detector in one of FORMS."""

    detector: str
    form: str = "plain"
    num_classes: int | None = None  # None: those of the group

    def settings(self, of_group: ModelSettings) -> ModelSettings:
        """Of this case's model."""
        return replace(of_group, num_classes=self.num_classes or of_group.num_classes)

    def prepare(self, model: nn.Module) -> nn.Module:
        """The detector's model in this form."""
        return FORMS[self.form](model)

    @property
    def trains(self) -> bool:
        """Whether a training step can be measured."""
        return self.form in ("plain", "channels-last")


class BackboneOnly(nn.Module):
    """A RetinaNet without its head, P3 to P7: the limit of a detector's speed."""

    def __init__(self, retinanet: RetinaNet):
        super().__init__()
        del retinanet.head
        self.detector = retinanet

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The maps by name; in training a number that every one of their values takes part in."""
        images = self.detector.preprocess_image(batched_inputs)
        maps = self.detector.backbone(images.tensor)
        return {"loss": sum(x.mean() for x in maps.values())} if self.training else maps


class OnnxModel(nn.Module):
    """The exported student of a model on the CPU, with as many threads as PyTorch has."""

    def __init__(self, model: MimicDet):
        super().__init__()
        self._session = open_session(onnx_bytes(model), torch.get_num_threads())

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[np.ndarray]:
        """The four outputs of export.OUTPUT_NAMES for images of Detectron2's dicts."""
        images = [x["image"].numpy() for x in batched_inputs]
        sizes = np.array([x.shape[1:] for x in images], dtype=np.int64)
        height, width = sizes.max(axis=0)
        canvas = np.zeros((len(images), 3, height, width), dtype=np.float32)
        for target, image in zip(canvas, images):
            target[:, : image.shape[1], : image.shape[2]] = image
        return self._session.run(None, {"images": canvas, "image_sizes": sizes})


def onnx_bytes(model: MimicDet, fixed_size: tuple[int, int] | None = None) -> bytes:
    """What the exported file of a model's student would hold."""
    metadata = {"opset": DEFAULT_OPSET, "precision": "float32", "includes_resize": False}
    metadata |= {"fixed_size": fixed_size, "mimicdet_version": "benchmark"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(model, path, metadata)
        return path.read_bytes()


def open_session(model: str | bytes, threads: int):
    """
    ONNX Runtime on the CPU, with the path of a file or its content.

    Its threads sleep between two runs: by default they keep a core busy for a while after one, and
    whatever is measured next would pay for it.
    """
    import onnxruntime  # an extra, which other measurements do without

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def random_model(cfg: CfgNode, num_classes: int, device: str) -> nn.Module:
    """The model of a config with random weights and another class count."""
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = device
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    return build_model(cfg)


def _from_yaml(settings: ModelSettings, cfg: CfgNode) -> nn.Module:
    """The model of a config in yaml, with another ResNet and class count."""
    cfg.MODEL.RESNETS.DEPTH = BACKBONES[settings.backbone]
    if cfg.MODEL.RESNETS.DEPTH < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return random_model(cfg, settings.num_classes, settings.device)


def _mimicdet(settings: ModelSettings, sparse: bool) -> nn.Module:
    cfg = model_zoo.get_config("COCO-Detection/mimicdet_R_50_FPN_1x.yaml")
    cfg.MODEL.MIMICDET.STUDENT.SPARSE = sparse
    return _from_yaml(settings, cfg)


def _faster_rcnn(settings: ModelSettings) -> nn.Module:
    name = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    return _from_yaml(settings, detectron2_zoo.get_config(name))


def _one_stage(name: str, settings: ModelSettings) -> nn.Module:
    """The model of one of Detectron2's Python configs, with another ResNet and class count."""
    model = detectron2_zoo.get_config(f"COCO-Detection/{name}_R_50_FPN_1x.py").model
    model.num_classes = settings.num_classes
    stages = model.backbone.bottom_up.stages
    stages.depth = BACKBONES[settings.backbone]
    if stages.depth < 50:
        del stages.stride_in_1x1  # their blocks have no 1x1 convolution
        if model.backbone.top_block.get("in_feature", "res5") == "res5":
            model.backbone.top_block.in_channels = 512
    return instantiate(model).to(settings.device)


# Box deltas of a fifth of a box's side, logits that differ between classes and places: what
# trained detectors give, and what random weights do not.
_DELTA_STD = 0.2
_LOGIT_STD = 3.0

_MIMICDET_LAYERS = {
    "outputs": (
        ("proposal_generator.objectness_logits", 0.0, 1.0),
        ("proposal_generator.anchor_deltas", 0.0, _DELTA_STD),
        ("student_head.class_logits", 0.0, _LOGIT_STD),
        ("student_head.box_deltas", 0.0, 10 * _DELTA_STD),  # BBOX_REG_WEIGHTS of 10
    ),
    "classifier": "student_head.class_logits",
    "softmax": True,
    "score_thresh": lambda model: model.student_head.settings.test_thresholds[0],
}

FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "channels-last": lambda model: copy.deepcopy(model).to(memory_format=torch.channels_last),
    "optimized": optimize_for_inference,
    "bfloat16": partial(optimize_for_inference, precision="bfloat16"),
    "float16": partial(optimize_for_inference, precision="float16"),
    "compiled": partial(optimize_for_inference, compile_backbone=True),
    "onnx": OnnxModel,  # exported, and run by ONNX Runtime on the CPU
}

DETECTORS: dict[str, Detector] = {
    "mimicdet": Detector(lambda s: _mimicdet(s, sparse=True), **_MIMICDET_LAYERS),
    "mimicdet-dense": Detector(lambda s: _mimicdet(s, sparse=False), **_MIMICDET_LAYERS),
    "retinanet": Detector(
        lambda s: _one_stage("retinanet", s),
        (("head.cls_score", 0.0, _LOGIT_STD), ("head.bbox_pred", 0.0, _DELTA_STD)),
        classifier="head.cls_score",
        score_thresh=lambda model: model.test_score_thresh,
    ),
    "fcos": Detector(
        lambda s: _one_stage("fcos", s),
        (
            ("head.cls_score", 0.0, _LOGIT_STD),
            # Distances to the four sides in strides: boxes of 4 strides, RetinaNet's smallest.
            ("head.bbox_pred", 2.0, 2 * _DELTA_STD),
            ("head.ctrness", 0.0, 1.0),
        ),
        classifier="head.cls_score",
        score_thresh=lambda model: model.test_score_thresh,
    ),
    "faster-rcnn": Detector(
        _faster_rcnn,
        (
            ("proposal_generator.rpn_head.objectness_logits", 0.0, 1.0),
            ("proposal_generator.rpn_head.anchor_deltas", 0.0, _DELTA_STD),
            ("roi_heads.box_predictor.cls_score", 0.0, _LOGIT_STD),
            ("roi_heads.box_predictor.bbox_pred", 0.0, 10 * _DELTA_STD),
        ),
        classifier="roi_heads.box_predictor.cls_score",
        softmax=True,
        score_thresh=lambda model: model.roi_heads.box_predictor.test_score_thresh,
    ),
    "backbone": Detector(lambda s: BackboneOnly(_one_stage("retinanet", s))),
}

CASES: dict[str, Case] = {
    **{name: Case(name) for name in DETECTORS},
    **{
        f"{name}-optimized": Case(name, "optimized")
        for name in ("mimicdet", "mimicdet-dense", "retinanet", "backbone")
    },
    **{
        f"mimicdet-{form}": Case("mimicdet", form)
        for form in ("onnx", "channels-last", "bfloat16", "float16", "compiled")
    },
    # Class counts side by side: between two groups the machine itself may change by more.
    **{
        f"mimicdet{suffix}-{count}-classes": Case("mimicdet", form, count)
        for suffix, form in (("", "plain"), ("-optimized", "optimized"))
        for count in (3, 1203)
    },
}
# What is compared unless other cases are requested.
DEFAULT_CASES = [
    name
    for name, case in CASES.items()
    if case.form in ("plain", "optimized") and case.num_classes is None
]


def build_detector(name: str, settings: ModelSettings) -> nn.Module:
    """A model of DETECTORS in evaluation mode, from one seed; UserError for an unknown name."""
    check_choice("detector", name, DETECTORS)
    check_choice("backbone", settings.backbone, BACKBONES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DETECTORS[name].build(settings).eval()
