"""Configuration keys of training that hold for every detector: small data sets need them most."""

from detectron2.config import CfgNode as CN


def add_training_config(cfg: CN) -> None:
    """Add the keys to a Detectron2 config, in place."""
    # True: what a parameter starts with is a function of SEED and its name, shape and distribution
    # alone, so that two configs of one SEED give what they share the same initial weights, as pairs
    # of runs need it. False: it depends on the layers built before. MODEL.WEIGHTS comes on top.
    cfg.MODEL.INIT_BY_NAME = False

    # Learning rate of the bottom-up backbone as a share of SOLVER.BASE_LR: pretrained layers need
    # less than new ones.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0

    # Exponential moving average of the weights. It is what is evaluated, saved as the model and
    # exported; the checkpoint also keeps the weights that train, for --resume.
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    # Share of the average that an iteration keeps, once it has seen some: iteration n keeps at
    # most (1 + n) / (10 + n).
    cfg.SOLVER.EMA.DECAY = 0.999

    # End training after so many evaluations in a row without a better AP on the first test set;
    # 0: never. model_final is then the last, model_best the best one.
    cfg.TEST.PATIENCE = 0

    # Read every image of DATASETS.TRAIN and TEST before training, to find the broken ones at once;
    # without it each is named when it is read. tools/validate_dataset.py --images does the same.
    cfg.DATALOADER.CHECK_IMAGES = False

    # Brightness, contrast and saturation each change by a factor in [1 - x, 1 + x].
    cfg.INPUT.COLOR_JITTER = 0.0
    # (least, most): both training sizes are multiplied by a factor from this range, then what is
    # larger than MAX_SIZE_TRAIN on a side is cropped at random. Empty: no change. For crops before
    # the resize, and sizes from a list, Detectron2 has INPUT.CROP and MIN_SIZE_TRAIN.
    cfg.INPUT.SCALE_JITTER = []

    # (data set, factor) pairs of the weighted samplers, which read this key; Detectron2 names it in
    # no default.
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []
