"""What each process of test_ddp.py runs; in a module of its own, since spawning imports it."""

from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from mimicdet.data.catalog import set_num_classes
from mimicdet.distillation import build_distiller
from mimicdet.engine import load_config

BOXES = torch.tensor([[8.0, 8.0, 52.0, 52.0], [40.0, 30.0, 90.0, 78.0]])


def batch(rank: int) -> list[dict]:
    """Two images; those of rank 1 hold no object."""
    generator = torch.Generator().manual_seed(rank)
    inputs = []
    for height in (96, 80):
        instances = Instances((height, 96))
        count = 0 if rank == 1 else len(BOXES)
        instances.gt_boxes = Boxes(BOXES[:count].clone())
        instances.gt_classes = torch.arange(count)
        pixels = torch.randint(0, 256, (3, height, 96), generator=generator, dtype=torch.uint8)
        inputs.append({"image": pixels, "instances": instances, "height": height, "width": 96})
    return inputs


def gradients(model: torch.nn.Module, rank: int) -> tuple[dict, list[str]]:
    """({parameter: gradient}, loss keys) of the rank's own batch, seeded by rank."""
    model.zero_grad()
    torch.manual_seed(100 + rank)
    plain = getattr(model, "module", model)
    # RetinaNet's running mean of positives, which would make the same step another one.
    vars(plain.student).pop("loss_normalizer", None)
    with EventStorage():
        losses = model(batch(rank))
    sum(losses.values()).backward()
    return {
        name: p.grad.clone() for name, p in plain.named_parameters() if p.requires_grad
    }, sorted(losses)


def work(rank: int, config: str, opts: list[str], port: int, folder: str) -> None:
    """Save the gradients of a rank alone and those under DDP, at the same parameters."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank
    )
    cfg = load_config(config, opts)
    set_num_classes(cfg, 2)
    torch.manual_seed(0)
    distiller = build_distiller(cfg, build_model(cfg)).train()
    alone, keys = gradients(distiller, rank)
    ddp = DistributedDataParallel(distiller, broadcast_buffers=False)
    # Twice: a parameter that took no part in the first step is an error of the second.
    for _ in range(2):
        shared, ddp_keys = gradients(ddp, rank)
    state = {"alone": alone, "shared": shared, "keys": keys, "ddp_keys": ddp_keys}
    torch.save(state, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
