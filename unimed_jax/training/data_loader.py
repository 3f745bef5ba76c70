"""From a config to the stream of global batches, and the position that identifies it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import dataset, device_prefetch, record_reader, sampling_order
from input_pipeline.io.errors import ConfigError, CorpusError
from input_pipeline.io.files import AnyPath, under
from input_pipeline.stage_clock import StageClock
from unimed_jax import config as config_lib
from unimed_jax.distributed import process, sharding
from unimed_jax.training.task import Task


class DataLoader:
    """The training data of a run: any part of its stream, on this host's share of the mesh.

    Attributes:
      spec: the stream.
    """

    def __init__(self, config: ConfigDict, task: Task, root: AnyPath, mesh: Mesh) -> None:
        """Opens and verifies the sources of ``config.data``.

        Raises:
          CorpusError, ConfigError: see ``dataset.open_sources``.
        """
        self._data, self._task = config.data, task
        self._placement = sharding.batch_sharding(mesh)
        sources = [
            dataset.MixtureSource(
                name=name,
                directory=str(under(root, config.data.sources[name].path)),
                split=config.data.sources[name].split,
                weight=config.data.sources[name].weight,
            )
            for name in sorted(config.data.sources)
        ]
        manifests = dataset.open_sources(sources, config.data.verify_checksums, task.record_schema)
        self.spec = dataset.StreamSpec(
            sources,
            manifests,
            seed=config.seed,
            batch_size=config.batch_size,
            block_size=config.data.block_size,
        )
        # one process makes the indices that corpora of older versions lack
        if jax.process_index() == 0:
            self.spec.indices  # noqa: B018
        process.wait_for_all("the records are indexed")

    @property
    def num_samples(self) -> int:
        """Samples in one epoch: those of all sources."""
        return self.spec.num_samples

    def description(self) -> str:
        """The sources with their sizes, for a report."""
        return ", ".join(
            f"{source.name}: {content.splits[source.split].num_samples:,} samples of "
            f"{content.name} {source.split}"
            for source, content in zip(self.spec.sources, self.spec.manifests, strict=True)
        )

    def position(self, step: int) -> dict[str, Any]:
        """What decides the batches after ``step``; stored with a checkpoint."""
        return self.spec.position(step)

    def check_position(self, stored: Mapping[str, Any], step: int) -> None:
        """Raises ConfigError when a checkpoint was trained on another stream than this one."""
        if self._data.accept_new_order:
            return
        if stored.get("order") != sampling_order.VERSION:
            raise ConfigError(
                f"the checkpoint of step {step} was trained in an order of records of another "
                "version of unimed_jax; finish the run with that version, or pass "
                "--config.data.accept_new_order=True to continue in the new order, in which the "
                "records of the epoch that has begun are drawn anew"
            )
        before, now = (dict(config_lib.flatten(p)) for p in (stored, self.position(step)))
        changed = [
            f"{key}: {before.get(key, 'absent')!r} before, {now.get(key, 'absent')!r} now"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise ConfigError(
                f"the data has changed since step {step} ({'; '.join(changed)}); restore it, or "
                "pass --config.data.accept_new_order=True to continue in the new order"
            )

    @property
    def _rows(self) -> range:
        """The rows of the global batch that this host reads."""
        per_host = self.spec.batch_size // jax.process_count()
        first = jax.process_index() * per_host
        return range(first, first + per_host)

    def first_records(self, count: int = 200) -> Iterator[bytes]:
        """The first ``count`` serialized records of every source.

        A source ends at a damaged record here; training reports those that it reads.
        """
        for index in self.spec.indices:
            with contextlib.suppress(CorpusError):
                yield from record_reader.sequential(index, [(0, min(count, len(index.offsets)))])

    def read(
        self, start: int, stop: int, stages: StageClock | None = None
    ) -> Iterator[tuple[list[str], dict[str, jax.Array]]]:
        """(ids of this host's rows, global batch) of the steps ``start`` <= k < ``stop``.

        ``stages`` is told what a batch waits for.
        """
        stages = stages or StageClock()
        batches = dataset.train_batches(
            self.spec,
            self._task.decode,
            start,
            stop,
            rows=self._rows,
            num_threads=self._data.num_threads,
            reading=stages.reading,
        )
        for batch in dataset.replace_bad_rows(batches, self._data.on_bad_sample, self._rows.start):
            ids = [sample_id.decode() for sample_id in batch["id"]]
            collated = self._task.collate(batch)
            with stages.placing():
                placed = device_prefetch.to_global(collated, self._placement)
            yield ids, placed
