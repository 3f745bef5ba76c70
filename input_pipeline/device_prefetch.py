"""Host batches -> global device arrays, prepared ahead of the step in background threads."""

import queue
import threading
from collections.abc import Generator, Iterable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Sharding

T = TypeVar("T")


def to_global(batch: Mapping[str, np.ndarray], sharding: Sharding) -> dict[str, jax.Array]:
    """This host's rows -> arrays of the global batch, in which the hosts' rows follow in order."""
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }


def prefetch(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """Iterates in a thread, ``depth`` items ahead.

    An exception raised by ``items`` is raised to the consumer. Closing or dropping the generator
    stops the thread.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()
    end = object()

    def put(kind: object, value: object) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(None, item):
                    return
            put(end, None)
        except BaseException as error:
            put(end, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind is end:
                if value is not None:
                    raise value
                return
            yield value
    finally:
        stop.set()
        thread.join()
