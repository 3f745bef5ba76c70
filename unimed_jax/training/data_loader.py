"""From a config to the stream of global batches, and the position that identifies it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import dataset, device_prefetch
from input_pipeline.io.errors import ConfigError
from input_pipeline.io.files import AnyPath, under
from unimed_jax import config as config_lib
from unimed_jax.distributed import sharding
from unimed_jax.training.task import Task

if TYPE_CHECKING:
    import tensorflow as tf


class Batches:
    """The training data of a run: any part of its stream, on this host's share of the mesh."""

    def __init__(self, config: ConfigDict, task: Task, root: AnyPath, mesh: Mesh) -> None:
        """Opens and verifies the sources of ``config.data``.

        Raises:
          CorpusError, ConfigError: see ``dataset.open_sources``.
        """
        self._config, self._task = config, task
        self._placement = sharding.batch_sharding(mesh)
        self._sources = [
            dataset.Source(
                name=name,
                directory=str(under(root, config.data.sources[name].path)),
                split=config.data.sources[name].split,
                weight=config.data.sources[name].weight,
            )
            for name in sorted(config.data.sources)
        ]
        self._manifests = dataset.open_sources(
            self._sources,
            config.data.num_streams,
            config.data.verify_checksums,
            task.record_schema,
        )

    @property
    def num_samples(self) -> int:
        """Samples in one epoch: those of all sources."""
        return sum(
            manifest.splits[source.split].num_samples
            for source, manifest in zip(self._sources, self._manifests, strict=True)
        )

    def position(self, step: int) -> dict[str, Any]:
        """Everything that decides which batches follow ``step``; stored with a checkpoint."""
        return dataset.position(
            self._sources,
            self._manifests,
            seed=self._config.seed,
            batch_size=self._config.batch_size,
            num_streams=self._config.data.num_streams,
            block_size=self._config.data.shuffle_block,
            step=step,
        )

    def check_position(self, stored: Mapping[str, Any], step: int) -> None:
        """Raises ConfigError when a checkpoint was trained on another stream than this one."""
        if self._config.data.accept_new_order:
            return
        before, now = (dict(config_lib.flatten(p)) for p in (stored, self.position(step)))
        changed = [
            f"{key}: {before.get(key, 'absent')!r} before, {now.get(key, 'absent')!r} now"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise ConfigError(
                f"the data has changed since step {step} ({'; '.join(changed)}); restore it, or "
                "pass --config.data.accept_new_order=True to go on with the new order"
            )

    def read(self, start: int, stop: int) -> Iterator[tuple[list[str], dict[str, jax.Array]]]:
        """(ids of this host's rows, global batch) of the steps ``start`` <= k < ``stop``."""
        config = self._config
        per_host = config.data.num_streams // jax.process_count()
        first = jax.process_index() * per_host

        def make(start: int, stop: int, tolerant: bool) -> tf.data.Dataset:
            return dataset.train_dataset(
                self._sources,
                self._manifests,
                self._task.decode,
                batch_size=config.batch_size,
                num_streams=config.data.num_streams,
                streams=range(first, first + per_host),
                seed=config.seed,
                block_size=config.data.shuffle_block,
                start_step=start,
                stop_step=stop,
                num_threads=config.data.num_threads,
                tolerant=tolerant,
            )

        corpora = {
            source.directory: manifest
            for source, manifest in zip(self._sources, self._manifests, strict=True)
        }
        for batch in dataset.replace_bad_rows(
            dataset.train_batches(make, start, stop, corpora),
            config.data.on_bad_sample,
            rows_per_stream=config.batch_size // config.data.num_streams,
        ):
            ids = [sample_id.decode() for sample_id in batch["id"]]
            yield ids, device_prefetch.to_global(self._task.collate(batch), self._placement)
