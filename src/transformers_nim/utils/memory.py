# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Keep freed memory for the next training step (CPU)."""

import ctypes
import sys


# Parameters of mallopt(3) in glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory instead of returning it to the system.

    By default glibc returns every large block as soon as it is freed, and the system clears it page by page when the
    next step asks for it again. That can cost a third of a training step in float32. The setting cannot be undone, and
    the process never shrinks, so call it in programs (such as the scripts in examples/), not in libraries.

    Returns:
        Whether glibc accepted the setting; other C libraries have none like it. It has no effect where another
        allocator (jemalloc, tcmalloc) was preloaded.

    Source: mallopt(3) of the Linux manual.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Some versions limit M_MMAP_THRESHOLD to 32 MiB, so mmap is switched off instead.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
