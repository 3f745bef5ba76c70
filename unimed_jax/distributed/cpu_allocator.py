"""The allocator of programs that run on CPUs."""

import ctypes
import glob
import importlib.util
import mmap

import jax
import psutil

# Plugin of JAX -> files of the devices that it runs on.
_DEVICES = {
    "libtpu": ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),
    "jax_plugins": ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd"),  # dxg: NVIDIA's in WSL
}

# parameters of glibc's mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def tune_malloc() -> bool:
    """Stops malloc from returning freed memory to the kernel, and requests huge pages for it.

    XLA's CPU client allocates all temporaries of a program at every call and frees them afterwards.
    By default, glibc returns such large blocks to the kernel, which maps and clears them again,
    page by page: a quarter of a million pages per GiB, in every step (docs/log/performance.md).

    To be called before JAX looks for devices: threads that already run have their arenas by then.

    Returns:
      Whether malloc was tuned; not without glibc, nor where programs will run on accelerators.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not _on_cpus():
        return False
    for parameter, value in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)
    # grow the heap once, while none of it is in use, so that the advice covers all of it
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
    """Whether JAX will run on CPUs, as far as this is known before it has looked for devices."""
    requested = jax.config.jax_platforms  # type: ignore[attr-defined]  # defined at run time
    if requested:
        return requested.split(",")[0] == "cpu"
    # the plugin alone says little: the compile report for TPUs needs libtpu on a laptop
    return not any(
        importlib.util.find_spec(plugin) and any(map(glob.glob, devices))
        for plugin, devices in _DEVICES.items()
    )
