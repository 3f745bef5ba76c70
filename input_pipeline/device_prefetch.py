"""Host batches -> global device arrays, prepared ahead of the step in background threads."""

import collections
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Sharding

S = TypeVar("S")
T = TypeVar("T")


def to_global(batch: Mapping[str, np.ndarray], sharding: Sharding) -> dict[str, jax.Array]:
    """This host's rows -> arrays of the global batch, in which hosts follow each other in order."""
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Iterates in a thread, ``depth`` items ahead.

    An exception of the source is raised to the consumer. Closing the generator, or dropping it,
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


def in_threads(function: Callable[[S], T], items: Iterable[S], depth: int) -> Iterator[T]:
    """As ``map``, in a thread per core and up to ``depth`` items ahead.

    Items are taken in the calling thread. An exception is raised in place of the item's result.
    """
    pending: collections.deque[Future[T]] = collections.deque()
    with ThreadPoolExecutor(os.cpu_count(), "in_threads") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
