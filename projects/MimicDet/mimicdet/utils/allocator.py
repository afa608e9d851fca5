"""The C library's memory allocator, told what a detector's feature maps need of it."""

import ctypes
import os

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_MAX_INT = 2**31 - 1
_TOP_PAD_BYTES = 256 * 1024**2
# What a user says in the environment stands.
_OWN_SETTINGS = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)


def disable_glibc_trimming() -> bool:
    """
    Let glibc reuse the memory of freed tensors instead of giving it back to the system.

    It gives every buffer above 32 MiB back, so that each map of an image's first stages is made of
    pages that have to be mapped and cleared again, which can take longer than the arithmetic. The
    setting holds for the whole process: a program calls this when it starts, a library does not.

    Returns:
        whether it was done; not where the C library is another one, or where the environment says
        how memory is to be allocated (MALLOC_..., GLIBC_TUNABLES, LD_PRELOAD).
    """
    if any(name in os.environ for name in _OWN_SETTINGS):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (AttributeError: not glibc)
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _MAX_INT), (_TOP_PAD, _TOP_PAD_BYTES))
    return all([mallopt(*setting) == 1 for setting in settings])
