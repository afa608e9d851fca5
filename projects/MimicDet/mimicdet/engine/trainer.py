"""Detectron2's DefaultTrainer with the distillation interface, checks and the best checkpoint."""

import logging
import os
import weakref
from collections import OrderedDict

import torch
from detectron2.data import MetadataCatalog
from detectron2.data.build import print_instances_class_histogram
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import DatasetEvaluators, PascalVOCDetectionEvaluator
from detectron2.modeling import build_model
from detectron2.solver.build import (
    GradientClipType,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
)
from detectron2.utils import comm

from ..checkpoint import MimicCheckpointer
from ..data import (
    MimicDatasetMapper,
    TrainLoader,
    build_test_loader,
    load_records,
    output_name,
)
from ..distillation import DistillationState, build_distiller, inherit_from_teacher
from ..evaluation import CocoEvaluator, KittiEvaluator, finite_predictions
from ..modeling.backbone.pyramid import bottom_up_prefix
from ..modeling.layers import channels_last_pays
from ..utils.errors import UserError, check_choice, file_errors
from .averaging import ModelAverage
from .guards import NonFiniteGuard
from .hooks import BestCheckpointer, EarlyStopping, StopTraining
from .initial import build_by_name
from .resume import ResumableState, user_errors_without_traceback
from .tta import MimicDetWithTTA

logger = logging.getLogger(__name__)

# Names that Detectron2 knows, and compares inside its functions.
LR_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
SAMPLERS = (
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "RandomSubsetTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)


class MimicTrainer(DefaultTrainer):
    """
    Trains MimicDet with its mimic loss in the loss dict, and any other Detectron2 model as it is.
    What trains is a Distiller around the model; what is saved, evaluated and exported is the model.
    """

    def __init__(self, cfg):
        """
        Args:
            cfg: see setup_cfg. Like DefaultTrainer's constructor, whose wiring it repeats because
                model, optimizer and checkpointer there are the same module.
        """
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        student = self.build_model(cfg)
        on_gpu = next(student.parameters()).is_cuda
        if channels_last_pays(cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED):
            student.to(memory_format=torch.channels_last)
        distiller = build_distiller(cfg, student)
        optimizer = self.build_optimizer(cfg, distiller)
        data_loader = self.build_train_loader(cfg)
        devices = {} if on_gpu else {"device_ids": None}  # Detectron2 assumes GPUs
        model = create_ddp_model(distiller, broadcast_buffers=False, **devices)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED and on_gpu else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer)
        self.guard = NonFiniteGuard(model)
        self._trainer.register_hooks([self.guard])
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        has_state = distiller.teachers or list(distiller.methods.parameters())
        extra = {"distillation": DistillationState(distiller)} if has_state else {}
        self.average = None
        if cfg.SOLVER.EMA.ENABLED:
            self.average = extra["average"] = ModelAverage(student, cfg.SOLVER.EMA.DECAY)
        self.checkpointer = MimicCheckpointer(
            self.average.average if self.average else student,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            **extra,
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg):
        """As Detectron2's; with MODEL.INIT_BY_NAME see build_by_name."""
        if not cfg.MODEL.INIT_BY_NAME:
            return super().build_model(cfg)
        if cfg.SEED < 0:
            raise UserError(f"MODEL.INIT_BY_NAME needs a SEED of at least 0, got {cfg.SEED}")
        model = build_by_name(lambda: build_model(cfg), cfg.SEED)
        logger.info(f"Model:\n{model}")
        return model

    def load_state_dict(self, state_dict):
        """
        As Detectron2's; UserError for the state of a run that trained other parameters or by
        another optimizer.
        """
        saved = state_dict["_trainer"]["optimizer"]["param_groups"]
        own = self._trainer.optimizer.param_groups
        if [len(x["params"]) for x in saved] != [len(x["params"]) for x in own]:
            raise UserError("--resume: the run in OUTPUT_DIR trained other parameters")
        before, now = ("adamw" if "betas" in groups[0] else "sgd" for groups in (saved, own))
        if before != now:
            raise UserError(
                f"--resume: the run in OUTPUT_DIR trained with MODEL.MIMICDET.OPTIMIZER {before}, "
                f"the config says {now}"
            )
        if isinstance(self._trainer, AMPTrainer):  # the run may have begun without AMP
            scaler = self._trainer.grad_scaler.state_dict()
            state_dict["_trainer"].setdefault("grad_scaler", scaler)
        super().load_state_dict(state_dict)

    def resume_or_load(self, resume=True):
        """As Detectron2's; a run that begins takes over what DISTILLATION.INHERIT says."""
        begins = not (resume and self.checkpointer.has_checkpoint())
        super().resume_or_load(resume)
        if begins and self.cfg.DISTILLATION.INHERIT:
            model = self._trainer.model
            distiller = getattr(model, "module", model)
            inherit_from_teacher(self.cfg, distiller, self.checkpointer.model)

    def run_step(self):
        """As Detectron2's; UserError where a loss or gradient is not finite, see NonFiniteGuard."""
        with self.guard.step():
            super().run_step()

    def after_train(self):
        """As Detectron2's, which would take an error in the last step for the end, and evaluate."""
        if self.iter < self.max_iter:
            self.max_iter = self.iter + 2
        super().after_train()

    def build_hooks(self):
        """
        Detectron2's hooks with what a resumed run needs, the evaluation of the average, the best
        checkpoint behind it and the end of training behind that.
        """
        built = [hook for hook in super().build_hooks() if hook is not None]
        period, patience = self.cfg.TEST.EVAL_PERIOD, self.cfg.TEST.PATIENCE
        place = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        built[place] = hooks.EvalHook(period, self._evaluate)
        saving = (hooks.PeriodicCheckpointer, hooks.EvalHook)
        place = next(i for i, hook in enumerate(built) if isinstance(hook, saving))
        built.insert(place, self._build_resumable_state())
        best = None
        if comm.is_main_process() and period > 0 and self.cfg.DATASETS.TEST:
            best = BestCheckpointer(period, self.checkpointer, _metric(self.cfg))
            built.insert(-1, best)  # before the writers
        if patience:
            built.append(EarlyStopping(period, patience, best))
        return [self.average, *built] if self.average else built

    def _build_resumable_state(self) -> ResumableState:
        model, loader = self._trainer.model, self._trainer.data_loader
        models = [getattr(model, "module", model)]
        if self.average:
            models.append(self.average.average)
        seed = loader.seed if isinstance(loader, TrainLoader) else _data_seed(self.cfg)
        periods = (self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.TEST.EVAL_PERIOD)
        return ResumableState(models, seed, periods)

    @property
    def evaluated_model(self) -> torch.nn.Module:
        """What is evaluated: the average of the weights where SOLVER.EMA is on."""
        return self.average.average if self.average else self.model

    def _evaluate(self) -> OrderedDict:
        self._last_eval_results = self.test(self.cfg, self.evaluated_model)
        return self._last_eval_results

    def train(self):
        """As Detectron2's; TEST.PATIENCE may end it before SOLVER.MAX_ITER."""
        try:
            with user_errors_without_traceback():
                return super().train()
        except StopTraining as reason:
            logger.info(str(reason))
            if comm.is_main_process():
                self.checkpointer.save("model_final", iteration=self.iter)
            return self._last_eval_results

    @classmethod
    def build_optimizer(cls, cfg, model):
        """
        SGD or AdamW (MODEL.MIMICDET.OPTIMIZER) on Detectron2's parameter groups, the backbone's
        rate times SOLVER.BACKBONE_LR_FACTOR.
        """
        check_choice("MODEL.MIMICDET.OPTIMIZER", cfg.MODEL.MIMICDET.OPTIMIZER, ("sgd", "adamw"))
        clip_types = [x.value for x in GradientClipType]
        clip_type = cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE
        check_choice("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip_type, clip_types)
        names = (name.removeprefix("student.") for name, _ in model.named_parameters())
        bottom_up = bottom_up_prefix(names)
        groups = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            lr_factor_func=lambda x: cfg.SOLVER.BACKBONE_LR_FACTOR if bottom_up in x else 1.0,
        )
        settings = {"lr": cfg.SOLVER.BASE_LR, "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
        if cfg.MODEL.MIMICDET.OPTIMIZER == "adamw":
            return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(groups, **settings)
        momentum = {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV}
        sgd = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
        return sgd(groups, **settings, **momentum, foreach=True)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        """Detectron2's."""
        check_choice("SOLVER.LR_SCHEDULER_NAME", cfg.SOLVER.LR_SCHEDULER_NAME, LR_SCHEDULERS)
        return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        """A TrainLoader of DATASETS.TRAIN; the mapper keeps the boxes of crowds."""
        if not cfg.DATASETS.TRAIN:
            raise UserError("DATASETS.TRAIN is empty: there is nothing to train on")
        check_choice("DATALOADER.SAMPLER_TRAIN", cfg.DATALOADER.SAMPLER_TRAIN, SAMPLERS)
        batch_size, num_processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
        if batch_size < 1 or batch_size % num_processes:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH: the batch size ({batch_size}) must be a multiple of the "
                f"number of processes ({num_processes})"
            )
        records = [record for name in cfg.DATASETS.TRAIN for record in load_records(name)]
        number = len(records)
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            records = [x for x in records if _has_object(x)]
            logger.info(f"{number - len(records)} of {number} images are left out: no object")
        if not records:
            raise UserError(f"DATASETS.TRAIN: no image to train on in {cfg.DATASETS.TRAIN}")
        if classes := MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", None):
            print_instances_class_histogram(records, classes)
        mapper = MimicDatasetMapper(cfg, is_train=True)
        return TrainLoader(cfg, records, mapper, _data_seed(cfg))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """Detectron2's loader with MimicDatasetMapper."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        """COCO's, Pascal VOC's or KITTI's metric, as the data set's metadata say."""
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:  # each would write coco_instances_results.json
            output_folder = os.path.join(output_folder, output_name(dataset_name))
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
        if evaluator_type == "coco":
            with file_errors():  # it reads the annotations
                return CocoEvaluator(dataset_name, ("bbox",), output_dir=output_folder)
        if evaluator_type == "pascal_voc":
            return DatasetEvaluators([PascalVOCDetectionEvaluator(dataset_name)])
        if evaluator_type == "kitti":
            return DatasetEvaluators([KittiEvaluator(dataset_name)])
        raise UserError(
            f"DATASETS.TEST: {dataset_name} asks for the evaluator {evaluator_type!r}; MimicDet "
            "detects boxes and evaluates coco, pascal_voc and kitti"
        )

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """As Detectron2's; UserError that names an image whose predictions are not finite."""
        with finite_predictions(model) as watched:
            return super().test(cfg, watched, evaluators)

    @classmethod
    def test_with_tta(cls, cfg, model):
        """Evaluate under TEST.AUG; the results' keys end in _TTA."""
        logger.info("Evaluating with test-time augmentation")
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, MimicDetWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())


def _has_object(record) -> bool:
    return any(not x.get("iscrowd", 0) for x in record.get("annotations", ()))


def _data_seed(cfg) -> int:
    """SEED, or one that the processes of this run share."""
    return cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed())


def _metric(cfg) -> str:
    """What the best checkpoint is judged by: AP of boxes on the first test set."""
    name = cfg.DATASETS.TEST[0]
    return "bbox/AP" if len(cfg.DATASETS.TEST) == 1 else f"{name}/bbox/AP"
