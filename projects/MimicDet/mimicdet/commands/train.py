"""The command line of train_net.py."""

import argparse
import errno
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.engine import DEFAULT_TIMEOUT, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import multiprocessing, nn

from ..checkpoint import MimicCheckpointer, has_checkpoint
from ..data import check_images, load_records
from ..engine.setup import setup_cfg
from ..engine.trainer import MimicTrainer
from ..export.optimize import PRECISIONS, optimize_for_inference
from ..utils.allocator import disable_glibc_trimming
from ..utils.errors import UserError, command, file_errors


def build_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments, and how to name custom data sets."""
    parser = default_argument_parser()
    add_resume_or_start(parser)
    parser.add_argument(
        "--no-strict",
        action="store_true",
        help="with --eval-only: evaluate also where MODEL.WEIGHTS lacks parameters or holds values "
        "that are not finite",
    )
    parser.add_argument(
        "--optimize",
        metavar="PRECISION",
        choices=list(PRECISIONS),
        help="with --eval-only: fold batch norms, lay maps channels last and compute in "
        f"{', '.join(PRECISIONS)}",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="with --optimize: give the backbone to torch.compile, which takes a minute or more at "
        "the first image",
    )
    parser.epilog = (parser.epilog or "") + _EPILOG
    return parser


_EPILOG = """
Custom data, without writing Python (classes are taken from the data):
    DATASETS.TRAIN "('coco:annotations/train.json:images',)"
    DATASETS.TEST "('voc:VOCdevkit/VOC2007:test',)" MODEL.ROI_HEADS.NUM_CLASSES 0
"""


def add_resume_or_start(parser: argparse.ArgumentParser) -> None:
    """Add what goes with a command's --resume; see wants_resume."""
    parser.add_argument(
        "--resume-or-start",
        action="store_true",
        help="as --resume where OUTPUT_DIR has a checkpoint, else a new run",
    )


def wants_resume(args: argparse.Namespace, folder: str) -> bool:
    """
    Whether to go on from a checkpoint in `folder`. UserError for --resume where there is none:
    it was lost, or the folder is another one.
    """
    if args.resume and not args.resume_or_start and not has_checkpoint(folder):
        raise UserError(
            f"--resume: there is no checkpoint in OUTPUT_DIR {folder}; --resume-or-start starts a "
            "new run in such a case"
        )
    return args.resume or args.resume_or_start


@contextmanager
def output_errors(folder: str) -> Iterator[None]:
    """Around a run: a disk that is full or cannot be written to is the user's to put right."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise UserError(f"OUTPUT_DIR {error.filename or folder}: {error.strerror}") from error


def run(args: argparse.Namespace) -> OrderedDict | None:
    """One process's work: evaluate (--eval-only) or train. Returns the results."""
    setup_logger(distributed_rank=comm.get_rank(), name="mimicdet")
    cfg = setup_cfg(args.config_file, args.opts)
    resume = wants_resume(args, cfg.OUTPUT_DIR)
    with file_errors():  # an OUTPUT_DIR that cannot be made
        default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="mimicdet", configure_stdout=False)
    if cfg.MODEL.DEVICE == "cpu":
        disable_glibc_trimming()
    check_test_sets(cfg)
    check_images(cfg)
    if args.eval_only:
        model = load_for_evaluation(cfg, resume=resume, strict=not args.no_strict)
        if args.optimize:
            model = optimize_for_inference(
                model, precision=args.optimize, compile_backbone=args.compile
            )
        return evaluate(cfg, model)
    trainer = MimicTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    with output_errors(cfg.OUTPUT_DIR):
        return trainer.train()


def check_test_sets(cfg) -> None:
    """Load every set of DATASETS.TEST, so that what is missing shows before training."""
    for name in cfg.DATASETS.TEST:
        load_records(name)
        MimicTrainer.build_evaluator(cfg, name)


def load_for_evaluation(cfg, resume: bool = False, strict: bool = True) -> nn.Module:
    """The model with MODEL.WEIGHTS, or with resume the last checkpoint of OUTPUT_DIR."""
    if not cfg.DATASETS.TEST:
        raise UserError("--eval-only: DATASETS.TEST is empty")
    model = MimicTrainer.build_model(cfg)
    checkpointer = MimicCheckpointer(model, cfg.OUTPUT_DIR, strict=strict)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise UserError("--eval-only needs MODEL.WEIGHTS path/to/checkpoint.pth")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return model


def evaluate(cfg, model: nn.Module) -> OrderedDict:
    """Evaluate on every set of DATASETS.TEST, also under TEST.AUG where that is on."""
    results = MimicTrainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(MimicTrainer.test_with_tta(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run train_net.py in as many processes as requested; returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.optimize and not args.eval_only:
        raise UserError("--optimize goes with --eval-only: an optimized model cannot train")
    if args.no_strict and not args.eval_only:
        raise UserError("--no-strict goes with --eval-only")
    if args.compile and not args.optimize:
        raise UserError("--compile goes with --optimize")
    if "WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ:
        _run_under_torchrun(args)
        return 0
    check_num_gpus(args.num_gpus)
    try:
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except multiprocessing.ProcessRaisedException as error:
        # A process hands its traceback on as text, which ends with the error's class and message.
        name = f"\n{UserError.__module__}.{UserError.__qualname__}: "
        _, is_users, message = str(error).rpartition(name)
        if not is_users or "\nTraceback " in message:
            raise
        raise UserError(message.strip()) from None
    except multiprocessing.ProcessExitedException as error:  # launch has ended the others
        raise UserError(f"{error}; --resume goes on from the last checkpoint") from error
    return 0


def check_num_gpus(num_gpus: int) -> None:
    """
    Raise UserError for more processes than the machine has GPUs or, without one, CPUs: that many
    would need minutes to start before one of them says what is wrong.
    """
    has_gpu = torch.cuda.is_available()
    available = torch.cuda.device_count() if has_gpu else os.cpu_count() or 1
    if num_gpus > available:
        what = "GPUs" if has_gpu else "CPUs, one for each process, and no GPU"
        raise UserError(f"--num-gpus is {num_gpus}, but this machine has {available} {what}")


def _run_under_torchrun(args: argparse.Namespace) -> None:
    """torchrun has set up the environment of this process already."""
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    has_gpu = torch.cuda.is_available()
    # As launch: long enough for what the first process does alone (evaluation, saving). Where a
    # process dies its connections close, and the others end at once.
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    comm.synchronize()
    try:
        run(args)
    except UserError as error:  # each process writes its own
        raise UserError(f"rank {comm.get_rank()}: {error}") from error
    finally:
        torch.distributed.destroy_process_group()
