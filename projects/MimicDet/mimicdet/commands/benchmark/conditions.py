"""What holds for a whole process that measures."""

from dataclasses import dataclass

import torch

from ...utils.allocator import keep_freed_memory
from ...utils.errors import UserError


@dataclass(frozen=True)
class Conditions:
    """Under which everything in one file of results was measured; its keys in the JSON."""

    device: str  # "cpu" or "cuda"
    threads: int  # of the CPU
    keeps_freed_memory: bool = False  # see allocator.keep_freed_memory

    def apply(self) -> None:
        """Change this process. Raises UserError where freed memory cannot be kept."""
        torch.set_num_threads(self.threads)
        if self.keeps_freed_memory and not keep_freed_memory():
            raise UserError(
                "--keep-freed-memory needs glibc, and no variable of the environment that sets its "
                "allocator (MALLOC_..., GLIBC_TUNABLES, LD_PRELOAD)"
            )
