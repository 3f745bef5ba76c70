"""Host batches -> global device arrays, prepared ahead of the step in background threads."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Sharding

from input_pipeline.stage_clock import StageClock

T = TypeVar("T")


def to_global(batch: Mapping[str, np.ndarray], sharding: Sharding) -> dict[str, jax.Array]:
    """This host's rows -> arrays of the global batch, in which the hosts' rows follow in order."""
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }


def prefetch(
    items: Iterable[T], depth: int = 2, stages: StageClock | None = None
) -> Generator[T, None, None]:
    """Iterates in a thread, ``depth`` items ahead.

    An exception raised by ``items`` is raised to the consumer. Closing or dropping the generator
    stops the thread.

    Args:
      items: are made one after the other.
      depth: items that wait for the consumer at most.
      stages: counts the time in which the thread makes items; None: nothing does.
    """
    making = stages.making if stages else contextlib.nullcontext
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
            iterator = iter(items)
            while True:
                with making():
                    item = next(iterator, end)
                if item is end:
                    put(end, None)
                    return
                if not put(None, item):
                    return
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
