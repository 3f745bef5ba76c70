"""The embeddings of a corpus, computed once per set of parameters for all evaluators."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from input_pipeline import device_prefetch, manifest, record_index, record_reader, records
from input_pipeline.io.files import AnyPath, under
from unimed_jax.distributed import process, sharding
from unimed_jax.inference import embedding_cache
from unimed_jax.inference.embedding_engine import EmbeddingEngine, require_tower
from unimed_jax.models import text_buckets
from unimed_jax.models.dual_encoder import DualEncoder
from unimed_jax.models.functional import Params

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class SampleMetadata:
    """A sample without its pixels; ``captions`` are the original ones, then the generated ones."""

    id: str
    modality: str
    source: str
    labels: tuple[str, ...]
    group: str
    captions: tuple[str, ...]
    num_original_captions: int

    @property
    def group_key(self) -> str:
        """Equal for samples of one patient or study; the sample's id if its group is unknown."""
        return f"{self.source}\0{self.group}" if self.group else self.id


@dataclass(frozen=True)
class CorpusSplit:
    """One split of a corpus directory, with all of its shards."""

    directory: AnyPath
    manifest: manifest.Manifest
    name: str

    def samples(self) -> Iterator[records.Sample]:
        """Every sample, in file order."""
        index = record_index.load(self.directory, self.manifest, self.name)
        yield from map(records.decode, record_reader.sequential(index))


@dataclass(frozen=True)
class Embeddings:
    """The samples of a split whose image decodes, in file order, and their unit vectors.

    Attributes:
      samples: N samples.
      vectors: float32 (N, E).
      left_out: the samples whose image does not decode.
    """

    samples: tuple[SampleMetadata, ...]
    vectors: np.ndarray
    left_out: tuple[SampleMetadata, ...] = ()


class CorpusEmbedder:
    """Embeds splits and texts over all devices of a mesh, and caches the embeddings.

    They stay in memory as long as the parameters are the same object, and, with a ``cache``, in
    files named by a digest of the tower and of the corpus. Every device gets ``batch_size`` rows at
    a time, so that the embedding of a row does not depend on the number of devices; the rows that
    pad the last batch are dropped.
    """

    def __init__(
        self,
        model: DualEncoder,
        tokenize: Callable[[Sequence[str]], np.ndarray],
        root: AnyPath,
        mesh: Mesh,
        cache: AnyPath | None = None,
    ) -> None:
        """
        Args:
          model: the dual encoder that the parameters belong to.
          tokenize: texts -> ids, int32 (N, T).
          root: directory that the paths of corpora are relative to.
          mesh: over the devices of all processes.
          cache: folder of the files; None: no file is read or written.
        """
        self._config, self._tokenize = model.config, tokenize
        self._root, self._cache = root, cache
        self._mesh, self._engine = mesh, EmbeddingEngine(model, mesh)
        self._params: Params | None = None
        self._cached: dict[Any, Any] = {}
        self._digests: dict[str, str] = {}
        self._metadata: dict[tuple[str, str, str], tuple[SampleMetadata, ...]] = {}

    def split(self, path: str, name: str) -> CorpusSplit:
        """A split of the corpus at ``path``.

        Raises:
          CorpusError: there is no such corpus or split, or one of its shards is incomplete.
        """
        directory = under(self._root, path)
        content = manifest.load(directory)
        manifest.verify(directory, content, name)
        return CorpusSplit(directory, content, name)

    def metadata(self, split: CorpusSplit) -> tuple[SampleMetadata, ...]:
        """The samples of a split without their pixels, in file order; read once."""
        key = (str(split.directory), split.name, split.manifest.fingerprint)
        if key not in self._metadata:
            self._metadata[key] = tuple(map(_metadata, split.samples()))
        return self._metadata[key]

    def images(self, params: Params, split: CorpusSplit, batch_size: int) -> Embeddings:
        """The split's samples with their embeddings. An image that does not decode is left out.

        Args:
          params: parameters of the model; at least its image tower.
          split: a split of a corpus.
          batch_size: rows per device and step.
        """
        corpus = f"{split.name}; {split.manifest.fingerprint}"
        cache_key = f"{embedding_cache.TENSORFLOW_PREPROCESSING}; {corpus}"

        def embed() -> Embeddings:
            metadata = {sample.id: sample for sample in self.metadata(split)}
            name = f"{split.manifest.name}-{split.name}-{split.manifest.fingerprint[:12]}"
            ids, vectors = self._from_file(
                params,
                "visual",
                name,
                cache_key,
                lambda: self._embed_images(params, split, list(metadata), batch_size),
            )
            left_out = tuple(metadata[i] for i in metadata.keys() - set(ids))
            return Embeddings(tuple(metadata[i] for i in ids), vectors, left_out)

        return self._once(params, (str(split.directory), cache_key), embed)

    def texts(self, params: Params, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Unit vectors (len(texts), E), float32."""

        def embed() -> np.ndarray:
            require_tower(params, "text")
            ids = self._tokenize(texts)
            cache_key = hashlib.sha256(np.ascontiguousarray(ids).data).hexdigest()
            name = f"texts-{cache_key[:12]}"
            return self._from_file(
                params,
                "text",
                name,
                cache_key,
                lambda: ((), self._embed_texts(params, ids, batch_size)),
            )[1]

        return self._once(params, tuple(texts), embed)

    def logit_scale(self, params: Params) -> float:
        """The factor of cosines, exp(logit_scale); 1 if the parameters have no logit scale."""
        if "logit_scale" not in params:
            return 1.0
        return float(np.exp(jax.device_get(params["logit_scale"])))

    # --- the cache --------------------------------------------------------------------------------

    def _once(self, params: Params, key: Any, compute: Callable[[], Any]) -> Any:
        if params is not self._params:
            self._params, self._cached, self._digests = params, {}, {}
        if key not in self._cached:
            self._cached[key] = compute()
        return self._cached[key]

    def _from_file(
        self,
        params: Params,
        tower: str,
        name: str,
        cache_key: str,
        compute: Callable[[], tuple[tuple[str, ...], np.ndarray]],
    ) -> tuple[tuple[str, ...], np.ndarray]:
        require_tower(params, tower)
        if self._cache is None:
            return compute()
        if tower not in self._digests:
            self._digests[tower] = embedding_cache.tower_digest(self._config, params, tower)
        path = self._cache / self._digests[tower][:16] / f"{name}.npz"
        if cached := embedding_cache.load(path, cache_key):
            return tuple(cached["ids"].tolist()), cached["embeddings"]
        ids, embeddings = compute()
        embedding_cache.save(path, cache_key, ids=np.array(ids, str), embeddings=embeddings)
        return ids, embeddings

    # --- the passes -------------------------------------------------------------------------------

    def _embed_images(
        self, params: Params, split: CorpusSplit, ids: Sequence[str], batch_size: int
    ) -> tuple[tuple[str, ...], np.ndarray]:
        from input_pipeline import dataset

        batches = dataset.evaluation_batches(
            str(split.directory),
            split.manifest,
            split.name,
            self._decode,
            batch_size=self._global_batch_size(batch_size),
            host=jax.process_index(),
            num_hosts=jax.process_count(),
        )
        valid: list[jax.Array] = []

        def images() -> Iterator[jax.Array]:
            for batch in device_prefetch.prefetch(batches):
                valid.append(self._engine.place(batch["valid"]))
                yield self._engine.place(batch["image"])

        embeddings = np.concatenate(list(self._engine.embed("visual", params, images())))
        embeddings = embeddings[: len(ids)]
        gathered = [multihost_utils.process_allgather(rows, tiled=True) for rows in valid]
        keep = np.concatenate(gathered)[: len(ids)]
        for index in np.flatnonzero(~keep):
            process.log(f"sample {ids[int(index)]!r} cannot be decoded: left out")
        return tuple(name for name, k in zip(ids, keep, strict=True) if k), embeddings[keep]

    def _decode(
        self, serialized: tf.Tensor, seeds: tf.Tensor, sources: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        from input_pipeline import transforms

        del seeds, sources
        samples = records.parse(serialized)
        size = self._config.visual.image_size
        return {
            "id": samples["id"],
            "image": transforms.resize_and_center_crops(samples["image"], size),
        }

    def _embed_texts(self, params: Params, ids: np.ndarray, batch_size: int) -> np.ndarray:
        size = self._global_batch_size(batch_size)
        ids = text_buckets.cut(ids, self._config.text)
        padded = np.concatenate([ids, np.repeat(ids[-1:], -len(ids) % size, axis=0)])
        rows = size // jax.process_count()
        begin = jax.process_index() * rows
        batches = (
            self._engine.place(batch[begin : begin + rows])
            for batch in padded.reshape(-1, size, ids.shape[1])
        )
        return np.concatenate(list(self._engine.embed("text", params, batches)))[: len(ids)]

    def _global_batch_size(self, batch_size: int) -> int:
        return sharding.check_batch_size(
            "evals.*.batch_size", batch_size, self._mesh, per_device=True
        )


def _metadata(sample: records.Sample) -> SampleMetadata:
    return SampleMetadata(
        id=sample.id,
        modality=sample.modality,
        source=sample.source,
        labels=sample.labels,
        group=sample.group,
        captions=sample.captions,
        num_original_captions=sample.num_original_captions,
    )
