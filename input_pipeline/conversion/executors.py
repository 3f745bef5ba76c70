"""Where shards are written: in this process, in processes of this machine, or on Apache Beam.

An executor is called with a function and the names of shards, with their numbers of rows. It
applies the function to each name and yields it when its shard is complete, in any order. The
function does all the work and leaves its result in a file, so an executor decides nothing about
the bytes.
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
    """Applies a function to every shard name; yields the names that are done."""

    def __call__(
        self, function: Callable[[str], None], shards: Mapping[str, int]
    ) -> Iterator[str]: ...


@dataclass(frozen=True)
class Local:
    """Processes of this machine; one `worker` is this process itself.

    None: one per core, but no more than are worth their start.
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
    """A worker of a killed parent would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Beam:
    """An Apache Beam pipeline of one element per shard.

    `options` are those of Beam (`--runner=DataflowRunner`, ...); without any, Beam's own local
    runner. Workers need this package, and the raw data and the output directory under the same
    paths: in a bucket, or on a file system that they share.
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
                    | beam.Reshuffle()  # else a runner may fuse all shards into one bundle
                    | beam.Map(function)
                )
        except Exception as error:  # runners wrap what workers raise, each in its own way
            reason = str(error).strip().splitlines() or [repr(error)]
            raise CorpusError(f"the Beam pipeline failed: {reason[-1]}; {_AGAIN}") from error
        yield from shards
