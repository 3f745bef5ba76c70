"""Threads: an ordered parallel map that works ahead, and a call that is repeated."""

import collections
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

BUCKET_THREADS = 16  # for items that each cost a round trip to a bucket


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    threads: int | None = None,
    depth: int | None = None,
) -> Iterator[R]:
    """``map(function, items)``, in order, computed by threads ahead of the consumer.

    Items are taken in the calling thread. An exception is raised in place of the item's result.

    Args:
      function: called in the threads.
      items: any number of items.
      threads: number of threads; None: one per core. With one or none, nothing is computed ahead.
      depth: results that may be computed or awaited ahead of the consumer; None: twice the threads.
    """
    threads = (os.cpu_count() or 1) if threads is None else threads
    if threads <= 1 and depth is None:
        yield from map(function, items)
        return
    depth = 2 * threads - 1 if depth is None else depth
    pending: collections.deque[concurrent.futures.Future[R]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(max(threads, 1), "map_ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def repeated(call: Callable[[], object], seconds: float, name: str) -> Iterator[None]:
    """Calls a function in a thread, every so many seconds, until the block ends.

    Args:
      call: must not raise; the first call is after ``seconds``.
      seconds: between the calls.
      name: of the thread.
    """
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
