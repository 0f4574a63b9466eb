# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Memory on CPUs: what a step frees is kept for the next one."""

import ctypes
import sys


# Parameters of mallopt(3) in glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets the C library keep freed memory instead of giving it back to the system.

    Left alone, glibc returns every large block as soon as it is freed, and the system clears it page by page when the
    next step asks for it again, which can cost a third of the time of a training step in float32. For programs of
    their own, such as the scripts in examples/: the process stays as large as it ever was, and there is no way back.

    Returns:
        Whether glibc took the setting; other C libraries have none like it. It changes nothing where another
        allocator (jemalloc, tcmalloc) was preloaded.

    Source: mallopt(3) of the Linux manual.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Not M_MMAP_THRESHOLD, which some versions limit to 32 MiB.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
