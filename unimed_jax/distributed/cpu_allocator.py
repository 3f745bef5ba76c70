"""Memory of programs that run on CPUs."""

import ctypes
import importlib.util
import mmap

import jax
import psutil

# parameters of glibc's mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep() -> bool:
    """Lets the process keep the memory that it has had, in huge pages where Linux has them.

    XLA's CPU client allocates all temporaries of a program at every call and frees them after it.
    glibc gives such large blocks back to the kernel, which then maps and clears them anew, page by
    page: a quarter of a million pages for every GiB, in every step (docs/log/performance.md).

    To be called before JAX looks for devices: threads that exist have arenas of their own by then.

    Returns:
      Whether it does; not without glibc, nor where programs will run on accelerators.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not _on_cpus():
        return False
    for parameter, value in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)
    # the heap is grown once, while nothing of it is in use, for the advice to hold for all of it
    size = psutil.virtual_memory().available // 2
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free.argtypes = [ctypes.c_void_p]
    block = libc.malloc(size)
    if block:
        start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(start, block + size - start, mmap.MADV_HUGEPAGE)
        libc.free(block)
    return True


def _on_cpus() -> bool:
    """Whether JAX will run on CPUs, as far as can be told before it has looked for devices."""
    asked_for = jax.config.jax_platforms
    if asked_for:
        return asked_for.split(",")[0] == "cpu"
    return not any(map(importlib.util.find_spec, ("libtpu", "jax_plugins")))
