"""Keep freed memory for the next tensor instead of giving it back to the kernel."""

from __future__ import annotations

import ctypes
import sys

# parameters of glibc's mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
GIBIBYTE = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc to hold on to freed memory; for the command line's own process, never on import.

    A training step allocates and frees the same large tensors over and over. By default glibc maps each anew, and the
    kernel clears its pages one by one: on virtual machines that can take longer than the arithmetic.

    Returns
    -------
    Whether the C library understood; others than glibc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2 * GIBIBYTE - 1), (M_TOP_PAD, 64 * 2**20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
