"""Every configuration key that MimicDet adds to Detectron2's."""

from detectron2.config import CfgNode as CN

from .detectors import add_detector_config
from .extensions import add_extensions
from .training import add_training_config


def add_mimicdet_config(cfg: CN) -> None:
    """
    Add MODEL.MIMICDET, DISTILLATION and the keys of `add_detector_config` and
    `add_training_config` to a Detectron2 config, in place. DISTILLATION is described in
    distillation/config.py and with its methods.

    Where Detectron2 has a key for something, that key is used and none is added here:

    =====================================  =====================================================
    MODEL.RPN.IN_FEATURES                  levels of the refinement module and the S-head
    MODEL.RPN.BBOX_REG_WEIGHTS             box parametrisation of the refinement module
    MODEL.RPN.CONV_DIMS                    channels of its 3x3 conv ([-1]: as its input)
    MODEL.RPN.NMS_THRESH                   NMS of the proposal set in training (4.1: 0.8)
    MODEL.RPN.PRE_NMS_TOPK_TRAIN           boxes an image that enter it; 0: all (4.1)
    MODEL.RPN.POST_NMS_TOPK_TRAIN          size of the proposal set (4.1: 2000)
    MODEL.RPN.POST_NMS_TOPK_TEST           boxes kept at inference, by objectness (4.2: 1000)
    MODEL.RPN.LOSS_WEIGHT, BBOX_REG_LOSS_WEIGHT  as in Detectron2's RPN
    MODEL.ROI_HEADS.NAME                   "MimicTeacherHeads"
    MODEL.ROI_HEADS.IN_FEATURES            levels of the T-head, paired one to one with
                                           MODEL.RPN.IN_FEATURES (3.1: p2..p6 with p3..p7)
    MODEL.ROI_HEADS.NUM_CLASSES            foreground classes; 0: taken from the training data
    MODEL.ROI_HEADS.IOU_THRESHOLDS, IOU_LABELS  labels of both heads (3.3: 0.6)
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, POSITIVE_FRACTION  T-head sampling (4.1: 128, 0.25)
    MODEL.ROI_HEADS.SCORE_THRESH_TEST, NMS_THRESH_TEST  inference of either head (4.2)
    MODEL.ROI_BOX_HEAD.POOLER_*, NUM_CONV, CONV_DIM, NUM_FC, FC_DIM  the T-head
    MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS, BBOX_REG_LOSS_WEIGHT  both heads
    TEST.DETECTIONS_PER_IMAGE              boxes an image in the end (4.2: 100)
    VIS_PERIOD                             pictures of proposals every so many iterations; 0: none
    =====================================  =====================================================
    """
    cfg.MODEL.MIMICDET = CN()
    _C = cfg.MODEL.MIMICDET

    # Which head evaluation runs: "student" (one-stage, the product) or "teacher" (Table 3).
    _C.EVAL_HEAD = "student"

    # "sgd" (4.1; Detectron2's), or "adamw": brings layers of small gradients along in short
    # trainings from scratch. SOLVER's rates, decays and gradient clipping hold for both.
    _C.OPTIMIZER = "sgd"

    # The 3x3 convolutions of stride 1 of pyramid and refinement module, each as a depthwise and a
    # 1x1 convolution: for light models. Not in the paper.
    _C.DEPTHWISE = False

    # ---------------------------------------------------------------- backbone (3.1)
    _C.FPN = CN()
    # Initialisation of the pyramid's convs: "he" (4.1) or "xavier" (Detectron2's FPN).
    _C.FPN.INIT = "he"
    # Levels of MODEL.FPN.IN_FEATURES without an output convolution: the sum of lateral and coarser
    # level as it is. ["p2"] makes STUDENT.IN_FEATURES with p2 cheap. Not in the paper.
    _C.FPN.PLAIN_LEVELS = []

    # ---------------------------------------------------------------- refinement module (3.2)
    _C.REFINEMENT = CN()
    # S_l in units of the level's stride; the paper's S_l = 4 * 2^l.
    _C.REFINEMENT.BASE_SCALE = 4.0
    # (eta1, eta2): level l is responsible for scales in [S_l * eta1, S_l * eta2].
    _C.REFINEMENT.SCALE_RANGE = [1.0, 2.0]
    # Positive area: the box shrunk to this fraction of its sides about its centre.
    _C.REFINEMENT.CENTER_RATIO = 0.3
    # Not in the paper: when no anchor centre of the responsible level lies in a box's positive
    # area, take the nearest one of that level, if it lies inside the box. Helps boxes that are
    # smaller than the paper's smallest scale.
    _C.REFINEMENT.MATCH_NEAREST = False
    # Sum of the objectness loss over all anchors divided by: "positives" (of the process's batch,
    # at least one an image; RetinaNet's way) or "anchors" (plain mean). Not in the paper.
    _C.REFINEMENT.CLS_NORMALIZER = "positives"
    # Probability that the objectness starts with. Not in the paper.
    _C.REFINEMENT.PRIOR_PROB = 0.01

    # ---------------------------------------------------------------- S-head, the student (3.3)
    _C.STUDENT = CN()
    # False: a two-stage detector (refinement module + T-head), Table 5's separate teacher.
    _C.STUDENT.ENABLED = True
    # Maps that its points read, one for each level of MODEL.RPN.IN_FEATURES, of the same stride or
    # finer; empty: these levels themselves. At inference the T-head's p2..p6 for p3..p7 cost the
    # convolutions of P2: the S-head reads maps at the proposals alone. Not in the paper.
    _C.STUDENT.IN_FEATURES = []
    # Alignment layer: "conv", "deform" (offsets from the features), "guided" (offsets from the
    # refinement module's deltas). Table 2's (a), (b), (c) and (d).
    _C.STUDENT.ALIGNMENT = "guided"
    # Its kernel on each level of MODEL.RPN.IN_FEATURES; levels of equal kernel share one layer.
    _C.STUDENT.KERNEL_SIZES = [3, 5, 5, 5, 5]
    _C.STUDENT.ALIGNMENT_DIM = 256
    # Hidden channels of the 1x1 convs that compute the guided offsets.
    _C.STUDENT.OFFSET_DIMS = [64, 128]
    # Width of the classification and the regression feature.
    _C.STUDENT.FEATURE_DIM = 1024
    # False: one feature feeds both outputs (Table 3's light and heavy rows).
    _C.STUDENT.DUAL_PATH = True
    # "gaussian" (4.1: sigma 0.01 everywhere) or "he" for every layer that a ReLU follows, those of
    # the micro-network too: three Gaussian layers in a row let offsets start at 1e-5 pixels and
    # give them next to no gradient. The last layer of the offsets and the outputs stay Gaussian.
    _C.STUDENT.INIT = "gaussian"
    # Where the guided offsets start: "random" (as INIT says: next to zero), or on a regular grid
    # over the adjusted anchor box, to first order: "box" in the centres of k x k equal parts,
    # "edges" with the outer points on the box's edges. Not in the paper.
    _C.STUDENT.OFFSET_INIT = "random"
    # False: the refinement deltas that guide the offsets carry gradients. Not in the paper.
    _C.STUDENT.DETACH_GUIDANCE = True
    # Compute the alignment layer at the locations that are used alone (exact, and much less work);
    # False: on whole maps, as the paper has it.
    _C.STUDENT.SPARSE = True
    # Boxes an image with the highest classification loss that train the classification (4.1).
    _C.STUDENT.HARD_MINING_TOPK = 128
    # Positives an image at most that train the regression (4.1).
    _C.STUDENT.MAX_REG_POSITIVES = 64
    # Sum of the regression loss divided by: "mined" (boxes that train the classification, as Fast
    # R-CNN divides by all sampled RoIs) or "positives". Not in the paper.
    _C.STUDENT.REG_NORMALIZER = "mined"
    _C.STUDENT.CLS_LOSS_WEIGHT = 1.0
    _C.STUDENT.REG_LOSS_WEIGHT = 1.0
    # Before this iteration both losses of the S-head are 0. Not in the paper.
    _C.STUDENT.START_ITER = 0

    # ---------------------------------------------------------------- T-head, the teacher (3.3)
    _C.TEACHER = CN()
    # False: Table 1's first row.
    _C.TEACHER.ENABLED = True
    # "dual_path", "light" or "heavy" (Table 3).
    _C.TEACHER.HEAD = "dual_path"
    # Initialisation of its two output layers: "he" as the rest of the T-head (4.1), or "gaussian"
    # (Fast R-CNN's 0.01 and 0.001), whose first losses are an order of magnitude smaller.
    _C.TEACHER.OUTPUT_INIT = "he"
    _C.TEACHER.CLS_LOSS_WEIGHT = 1.0
    _C.TEACHER.REG_LOSS_WEIGHT = 1.0

    # ---------------------------------------------------------------- head mimicking (3.4)
    _C.MIMIC = CN()
    # False: Table 1's second row.
    _C.MIMIC.ENABLED = True
    _C.MIMIC.LOSS_WEIGHT = 1.0
    # Above 0, in place of LOSS_WEIGHT: so many times the factor at which the gradient of the mimic
    # loss on P3 to P7 has the norm of that of all other losses, found anew in each step. It takes
    # two more backward passes through the heads. Not in the paper.
    _C.MIMIC.GRADIENT_RATIO = 0.0
    # True: no gradient of the mimic loss reaches the T-head. Not in the paper.
    _C.MIMIC.DETACH_TEACHER = True
    # Before START_ITER the mimic loss is 0; then its factor grows in a straight line from 0 over
    # WARMUP_ITERS iterations (0: it does not); from STOP_ITER on it is 0 (0: it stays to the end).
    # Not in the paper.
    _C.MIMIC.START_ITER = 0
    _C.MIMIC.WARMUP_ITERS = 0
    _C.MIMIC.STOP_ITER = 0
    # Above 0: the S-head imitates an exponential moving average of the T-head, which keeps this
    # share of itself in an iteration. Not in the paper.
    _C.MIMIC.TEACHER_EMA = 0.0
    # In iteration START_ITER the S-head's two output layers become copies of the T-head's; 0 pays
    # where MODEL.WEIGHTS hold a trained T-head. Not in the paper.
    _C.MIMIC.COPY_OUTPUTS = False
    # Then its alignment layers, class feature and class logits become the T-head's class branch,
    # whose bins are read from the layers' points: an S-head that classifies before it has learnt;
    # where the heads are not split, the T-head's light head, with its boxes. Not in the paper.
    _C.MIMIC.COPY_BRANCH = False
    # The two heads have the same output layers, which the losses of both train. Not in the paper.
    _C.MIMIC.SHARE_OUTPUTS = False
    # Factor of each term, loss_mimic_<term>; 0: without it. All are means over the same boxes.
    _C.MIMIC.TERMS = CN()
    # The paper's: the heads' logits and regression features; SHARED in place of both where the
    # heads are not split.
    _C.MIMIC.TERMS.CLS = 1.0
    _C.MIMIC.TERMS.LOC = 1.0
    _C.MIMIC.TERMS.SHARED = 1.0
    # Not in the paper: the feature that the logits are made of.
    _C.MIMIC.TERMS.CLASS_FEATURES = 0.0
    # Not in the paper: the T-head's class probabilities, and its boxes where there is an object.
    _C.MIMIC.TERMS.SCORES = 0.0
    _C.MIMIC.TERMS.BOXES = 0.0
    # The same of what the T-head's output layers make of the S-head's features (CrossKD).
    _C.MIMIC.TERMS.CROSS_SCORES = 0.0
    _C.MIMIC.TERMS.CROSS_BOXES = 0.0
    # As SCORES, of the IoU of the T-head's box with its object in place of its scores.
    _C.MIMIC.TERMS.QUALITY = 0.0
    # Boxes that are compared: "sampled" (for the T-head; the paper's), or "sampled_and_mined", with
    # those that the S-head's hard mining chose.
    _C.MIMIC.SAMPLES = "sampled"
    # How much each box counts; empty: all alike, as in the paper. "confidence": by the teacher's
    # probability of the box's own class; "balanced": every class has the same weight.
    _C.MIMIC.WEIGHTING = []
    # The background's share of all weights at most; 0: boxes with an object alone.
    _C.MIMIC.MAX_BACKGROUND = 1.0
    # Of CLS, LOC, SHARED and CLASS_FEATURES: "cosine" (the paper's), "standardized" (PKD: each
    # channel over the boxes), "l2" or "smooth_l1".
    _C.MIMIC.FEATURE_LOSS = "cosine"
    # A linear layer on the student's features before they are compared. It begins as the identity
    # where FEATURE_DIM is FC_DIM, and lets the two differ. It is in training checkpoints, not in
    # the model. Not in the paper.
    _C.MIMIC.PROJECTOR = False
    # Of SCORES: "softmax" (cross-entropy) or "binary" (class by class, BCKD), either one weighted
    # by the difference of the two heads' probabilities.
    _C.MIMIC.SCORE_LOSS = "softmax"
    # Of BOXES: "giou" (1 - GIoU) or "smooth_l1" (of the deltas).
    _C.MIMIC.BOX_LOSS = "giou"

    # ---------------------------------------------------------------- separate backbones (Table 5)
    _C.SEPARATE_TEACHER = CN()
    # Config and checkpoint of a trained two-stage teacher; empty: the T-head shares the backbone.
    _C.SEPARATE_TEACHER.CONFIG_FILE = ""
    _C.SEPARATE_TEACHER.WEIGHTS = ""

    add_detector_config(cfg)
    add_training_config(cfg)

    add_extensions(cfg)
