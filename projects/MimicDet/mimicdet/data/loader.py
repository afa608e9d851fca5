"""
Loaders through whose workers a UserError passes as it is, and, in training, that can go on at any
batch: what is drawn for the n-th image of a process is a function of (seed, rank, n) alone.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..utils.errors import UserError
from .mapper import MimicDatasetMapper

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any]]

# What random numbers are for: the last number of a key, and never 0, which SeedSequence pads with.
FOR_ORDER, FOR_IMAGE, FOR_STEP, FOR_WEIGHTS = 1, 2, 3, 4


def seed_generators(*key: int) -> int:
    """
    Seed Python's, NumPy's and PyTorch's CPU generator with a hash of whole numbers >= 0; returns
    the seed that PyTorch got, for the generators of other devices.
    """
    for_python, for_numpy, for_torch = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)
    # Not torch.manual_seed, which also asks for CUDA.
    torch.default_generator.manual_seed(for_torch)
    return for_torch


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """seed_generators inside the context; afterwards they go on as if nothing had been drawn."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_generators(*key)
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)


class MappedRecords(Dataset):
    """Records as the mapper returns them; a UserError is a value, since an exception would leave a
    worker as the text of its traceback."""

    def __init__(self, records: Sequence[dict[str, Any]], mapper: Mapper):
        self.records, self.mapper = records, mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        try:
            return self.mapper(self.records[index])
        except UserError as error:
            return error


class SeededRecords(MappedRecords):
    """MappedRecords by (number in the process's stream of images, index of the record)."""

    def __init__(self, records: Sequence[dict[str, Any]], mapper: Mapper, seed: int, rank: int):
        super().__init__(records, mapper)
        self.seed, self.rank = seed, rank

    def __getitem__(self, key):
        number, index = key
        with seeded(self.seed, self.rank, number, FOR_IMAGE):
            return super().__getitem__(index)


class CheckedLoader(DataLoader):
    """A DataLoader of lists; raises the UserError that MappedRecords returned."""

    def __init__(self, dataset: MappedRecords, **kwargs):
        # A generator of its own: the seed of the workers is drawn at the first batch.
        super().__init__(dataset, collate_fn=list, generator=torch.Generator(), **kwargs)

    def __iter__(self):
        for batch in super().__iter__():
            for item in batch:
                if isinstance(item, UserError):
                    raise item
            yield batch


def numbered_batches(
    indices: Iterable[int], groups: Sequence[int], batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """
    Batches of (number in the stream, index), each from one group; groups[index] is a record's.
    A batch comes when its last index does, as from Detectron2's AspectRatioGroupedDataset.
    """
    waiting: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, index in enumerate(indices):
        batch = waiting[groups[index]]
        batch.append((number, index))
        if len(batch) == batch_size:
            del waiting[groups[index]]
            yield batch


class TrainLoader:
    """
    Endless batches of training, as lists of the mapper's dicts. Batch k of a process depends on the
    seed, its rank and k; not on the number of workers, nor on which batch was the first.
    """

    def __init__(self, cfg: CfgNode, records: list[dict[str, Any]], mapper: Mapper, seed: int):
        """
        Args:
            cfg: DATALOADER, SOLVER.IMS_PER_BATCH and what the samplers read.
            records: in Detectron2's format; those without a size are batched apart.
            seed: >= 0, the same in all processes.
        """
        self.cfg, self.mapper = cfg, mapper
        self.batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        self.groups = bytes(map(_aspect_group, records)) if grouped else bytes(len(records))
        if 2 in self.groups:
            logger.warning(
                f"{self.groups.count(2)} records say no width and height: "
                "DATALOADER.ASPECT_RATIO_GROUPING takes them for one group"
            )
        self.records = DatasetFromList(records, copy=False)
        self.seed, self.start, self.sampler = seed, 0, self._build_sampler(seed)

    def restart(self, seed: int, start: int) -> None:
        """Let the next iteration begin with batch `start` of `seed`; no image is read for it."""
        if seed != self.seed:
            self.sampler = self._build_sampler(seed)
        self.seed, self.start = seed, start

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batches = numbered_batches(self.sampler, self.groups, self.batch_size)
        # Workers read single images, so that no more of them wait than with Detectron2's loader.
        loader = CheckedLoader(
            SeededRecords(self.records, self.mapper, self.seed, comm.get_rank()),
            sampler=chain.from_iterable(islice(batches, self.start, None)),
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )
        items = chain.from_iterable(loader)
        while True:
            yield list(islice(items, self.batch_size))

    def _build_sampler(self, seed: int) -> Sampler:
        """Detectron2's DATALOADER.SAMPLER_TRAIN, which draws from SEED or NumPy's generator."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.SEED = seed
        with seeded(seed, FOR_ORDER):
            parts = build_detection_train_loader.from_config(
                cfg, mapper=self.mapper, dataset=self.records
            )
        return parts["sampler"]


def _aspect_group(record: dict[str, Any]) -> int:
    if "width" not in record or "height" not in record:
        return 2
    return int(record["width"] > record["height"])


def build_test_loader(cfg: CfgNode, dataset_name: str) -> CheckedLoader:
    """Detectron2's test loader: lists of one image, every image in one of the processes."""
    mapper = MimicDatasetMapper(cfg, is_train=False)
    parts = build_detection_test_loader.from_config(cfg, dataset_name, mapper=mapper)
    records = MappedRecords(DatasetFromList(parts["dataset"], copy=False), mapper)
    return CheckedLoader(records, sampler=parts["sampler"], num_workers=parts["num_workers"])
