"""Embeddings of batches by the towers of a dual encoder, on the devices of a mesh.

One engine serves the Python API (``dual_encoder.Model``, on the devices of this process) and the
evaluators (``evals.embeddings``, on the devices of all processes).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline import device_prefetch
from input_pipeline.io.errors import UserError
from unimed_jax.distributed import sharding, xla_options
from unimed_jax.losses import contrastive
from unimed_jax.models import dual_encoder
from unimed_jax.models.functional import Params

TOWERS = ("visual", "text")


class EmbeddingEngine:
    """Jitted towers, whose batches are divided over the devices of a mesh.

    Attributes:
      num_shards: devices that the rows of a batch are divided over.
    """

    def __init__(self, model: dual_encoder.DualEncoder, mesh: Mesh) -> None:
        """``mesh``: the devices of this process, or of all processes, which then act together."""
        self.num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_sharding = sharding.batch_sharding(mesh)
        self._encode = {
            "visual": _jitted(model.encode_image, mesh),
            "text": _jitted(model.encode_text, mesh),
        }

    def place(self, rows: np.ndarray) -> jax.Array:
        """The rows of this process -> an array on the mesh, whose processes follow in order."""
        if self._batch_sharding.is_fully_addressable:
            return jax.device_put(rows, self._batch_sharding)
        return device_prefetch.to_global({"rows": rows}, self._batch_sharding)["rows"]

    def embed(
        self,
        tower: str,
        params: Params,
        batches: Iterable[jax.Array],
        *,
        normalize: bool = True,
    ) -> Iterator[np.ndarray]:
        """Embeddings of one batch after the other, float32 (rows, E), on every process.

        The devices work on a batch while the next one is taken from ``batches``.

        Args:
          tower: "visual" or "text".
          params: parameters of the model; at least those of the tower.
          batches: from ``place``: uint8 images (rows, S, S, 3), or int32 token ids (rows, T).
          normalize: scale embeddings to unit length.

        Raises:
          UserError: ``params`` lack the tower.
        """
        require_tower(params, tower)
        tower_params = {tower: params[tower]}
        running: jax.Array | None = None
        for batch in batches:
            if running is not None:
                yield np.asarray(running)
            running = self._encode[tower](tower_params, batch, normalize)
        if running is not None:
            yield np.asarray(running)


def require_tower(params: Params, tower: str) -> None:
    """Raises UserError if the parameters lack a tower."""
    if tower not in params:
        raise UserError(f"the weights have no {tower} tower, which this evaluator needs")


def _jitted(
    encode: Callable[[Any, jax.Array], jax.Array], mesh: Mesh
) -> Callable[[Any, jax.Array, bool], jax.Array]:
    """(parameters, rows, normalize) -> embeddings, replicated over the mesh.

    Embeddings are normalized inside the jitted function: outside, the last digit would depend on
    the number of rows.
    """

    def embed(params: Params, rows: jax.Array, normalize: bool) -> jax.Array:
        embeddings = encode(params, rows)
        return contrastive.normalize(embeddings) if normalize else embeddings

    return jax.jit(
        embed,
        static_argnums=2,
        out_shardings=sharding.replicated(mesh),
        compiler_options=xla_options.options(mesh),
    )
