"""Configuration keys of the dense detectors and of the backbones that Detectron2 lacks."""

from detectron2.config import CfgNode as CN


def add_detector_config(cfg: CN) -> None:
    """
    Add MODEL.ATSS, GFL, FCOS and those of the backbones to a config, in place.

    What Detectron2's RetinaNet has a key for is read from there by ATSS, GFL and FCOS too:
    MODEL.RETINANET.NUM_CLASSES, IN_FEATURES, NUM_CONVS, NORM (of both towers), PRIOR_PROB,
    BBOX_REG_WEIGHTS (ATSS), FOCAL_LOSS_ALPHA and FOCAL_LOSS_GAMMA (ATSS, FCOS), SCORE_THRESH_TEST,
    TOPK_CANDIDATES_TEST and NMS_THRESH_TEST. Anchors are MODEL.ANCHOR_GENERATOR's.

    MultiClassRPN reads MODEL.RPN.IN_FEATURES, BBOX_REG_WEIGHTS, BBOX_REG_LOSS_WEIGHT,
    IOU_THRESHOLDS, IOU_LABELS, BATCH_SIZE_PER_IMAGE, POSITIVE_FRACTION and PRE_NMS_TOPK_TEST, and
    MODEL.ROI_HEADS.NUM_CLASSES, SCORE_THRESH_TEST and NMS_THRESH_TEST.
    """
    # ---------------------------------------------------------------- ATSS
    cfg.MODEL.ATSS = CN()
    # Anchors a level that are candidates for an object, nearest centres first. GFL reads it too.
    cfg.MODEL.ATSS.TOPK = 9
    cfg.MODEL.ATSS.BOX_LOSS_WEIGHT = 2.0
    cfg.MODEL.ATSS.CENTERNESS_LOSS_WEIGHT = 1.0

    # ---------------------------------------------------------------- GFL
    cfg.MODEL.GFL = CN()
    # A side of a box is a distribution over the distances 0, 1, ..., REG_MAX strides.
    cfg.MODEL.GFL.REG_MAX = 16
    # beta of the quality focal loss.
    cfg.MODEL.GFL.QUALITY_FOCAL_BETA = 2.0
    cfg.MODEL.GFL.BOX_LOSS_WEIGHT = 2.0
    # Of the distribution focal loss.
    cfg.MODEL.GFL.DISTRIBUTION_LOSS_WEIGHT = 0.25

    # ---------------------------------------------------------------- FCOS
    cfg.MODEL.FCOS = CN()
    # In strides: points this near to an object's centre are its positives.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5

    # ---------------------------------------------------------------- backbones
    cfg.MODEL.PYRAMID = CN()
    # What build_pyramid_backbone and build_staggered_fpn_backbone put MODEL.FPN on: a name of
    # Detectron2's backbone registry.
    cfg.MODEL.PYRAMID.BOTTOM_UP = "build_resnet_backbone"
    # Levels above P5: "none", "maxpool" (P6 of Faster R-CNN), or P6 and P7 by 3x3 convs of
    # stride 2 on the backbone's last map ("conv_on_c5": RetinaNet) or on P5 ("conv_on_p5": FCOS).
    cfg.MODEL.PYRAMID.EXTRA_LEVELS = "conv_on_p5"

    # build_timm_backbone. MODEL.WEIGHTS "package://..." or "timm://NAME" brings its weights;
    # load_config takes MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT from timm unless set.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"  # of timm.list_models()
    # Of timm's network: ["drop_path_rate", 0.1, "output_stride", 16, ...]
    cfg.MODEL.TIMM.OPTIONS = []
    # "BN": batch norms as timm has them; "FrozenBN" or "SyncBN": in their place.
    cfg.MODEL.TIMM.NORM = "BN"
    # Blocks to leave out, by name in timm's network (["blocks.5.3", "blocks.6.0"]): each gives its
    # input on. For lighter backbones that keep the weights of all other blocks.
    cfg.MODEL.TIMM.OMIT = []
    # By stride as in Detectron2's ResNets: res2 is 4, res5 is 32.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]

    # Backbones that timm's have replaced; configs of earlier runs hold the keys.
    cfg.register_deprecated_key("MODEL.MOBILENET_V2")
    cfg.register_deprecated_key("MODEL.VGG")

    cfg.MODEL.SHUFFLENET = CN()
    # Factor on the channels of all blocks: 1.0, 0.5 or 0.25 (FGFI, 4.2).
    cfg.MODEL.SHUFFLENET.WIDTH = 1.0
    # Channels of the first conv (FGFI, 4.1).
    cfg.MODEL.SHUFFLENET.STEM_CHANNELS = 16
    cfg.MODEL.SHUFFLENET.NORM = "BN"
