"""Executors: shards are written in this process, in local processes, or on Apache Beam.

An executor takes a function and the names of shards with their numbers of rows. It applies the
function to each name and yields the name when its shard is complete, in any order. The function
writes the result to a file, so the bytes do not depend on the executor.
"""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from input_pipeline.io.errors import CorpusError, UserError

# A worker takes seconds to start (it imports TensorFlow), in which another reads so many images.
_MIN_ROWS_PER_WORKER = 4000
_AGAIN = "run the same command again to continue"


class Executor(Protocol):
    """Applies a function to every shard name; yields the completed names."""

    def __call__(
        self, function: Callable[[str], None], shards: Mapping[str, int]
    ) -> Iterator[str]: ...


@dataclass(frozen=True)
class Local:
    """Processes of this machine; with one worker, this process itself.

    `workers`: None means one per core, but no more than are worth starting.
    """

    workers: int | None = None

    def __call__(self, function: Callable[[str], None], shards: Mapping[str, int]) -> Iterator[str]:
        workers = self.workers
        if workers is None:
            workers = min(os.cpu_count() or 1, sum(shards.values()) // _MIN_ROWS_PER_WORKER)
        workers = min(workers, len(shards))
        if workers <= 1:
            for name in shards:
                function(name)
                yield name
            return
        # Not fork: TensorFlow's threads do not survive it.
        with concurrent.futures.ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_die_with_parent,
        ) as pool:
            futures = {pool.submit(function, name): name for name in shards}
            try:
                for future in concurrent.futures.as_completed(futures):
                    future.result()
                    yield futures[future]
            except concurrent.futures.process.BrokenProcessPool as error:
                raise CorpusError(
                    f"a conversion worker was killed (out of memory?); {_AGAIN}, with fewer "
                    "--workers"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """Otherwise, a worker of a killed parent would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("_die_with_parent runs in worker processes only")
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Beam:
    """An Apache Beam pipeline of one element per shard.

    `options` are those of Beam (`--runner=DataflowRunner`, ...); by default, Beam runs locally.
    Workers need this package, and the raw data and output directory under the same paths: in a
    bucket, or on a shared file system.
    """

    options: tuple[str, ...] = ()

    def __call__(self, function: Callable[[str], None], shards: Mapping[str, int]) -> Iterator[str]:
        try:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise UserError("there is no Apache Beam: pip install 'unimed_jax[beam]'") from error
        if not shards:
            return
        try:
            with beam.Pipeline(options=PipelineOptions(list(self.options))) as pipeline:
                _ = (
                    pipeline
                    | beam.Create(list(shards))
                    | beam.Reshuffle()  # otherwise a runner may fuse all shards into one bundle
                    | beam.Map(function)
                )
        except Exception as error:  # runners wrap what workers raise, each in its own way
            reason = str(error).strip().splitlines() or [repr(error)]
            raise CorpusError(f"the Beam pipeline failed: {reason[-1]}; {_AGAIN}") from error
        yield from shards
