"""The embeddings of a set's images, computed on all devices of all hosts and cached in parts.

Of each part, every host embeds an equal run of images on its local devices. They always run the
same program on the same shape, so that embeddings are bit-identical for any number of devices and
hosts. Only the first host reads and writes the cache, so that the hosts share only the images.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils

from input_pipeline.io import images as image_files
from input_pipeline.io.errors import CorpusError, UserError
from input_pipeline.io.files import AnyPath
from input_pipeline.io.image_size import check_aspect_ratio
from input_pipeline.io.threads import map_ahead
from unimed_jax.evals.benchmark.images import LabelledImages
from unimed_jax.inference import embedding_cache
from unimed_jax.inference.dual_encoder import Model, preprocess, resize_and_crop

PART_SIZE = 2048  # images; an interruption loses at most one part
_DECODE_AHEAD = 64  # images


@dataclass(frozen=True)
class SetEmbeddings:
    """The embeddings of the N images of a set.

    Attributes:
      vectors: (N, E) float32, of unit length; zero where an image cannot be decoded.
      digests: (N, 32) uint8, SHA-256 of the files.
      problems: index of an image -> why it cannot be decoded.
      num_cached: number of images whose embeddings were cached.
    """

    vectors: np.ndarray
    digests: np.ndarray
    problems: dict[int, str]
    num_cached: int

    def select(self, rows: np.ndarray) -> "SetEmbeddings":
        """Those of some images, by their indices."""
        problems = {
            i: self.problems[int(row)] for i, row in enumerate(rows) if int(row) in self.problems
        }
        return SetEmbeddings(self.vectors[rows], self.digests[rows], problems, self.num_cached)


def embed(
    model: Model, images: LabelledImages, folder: AnyPath, *, as_published: bool = False
) -> SetEmbeddings:
    """Embeds the images that are not cached in `folder`. All hosts call it and get the same result.

    Cached embeddings are valid as long as the bytes of the images, read each time, are the same.

    Args:
      model: a model with an image tower.
      images: the images of a set.
      folder: the cache.
      as_published: see `published_pixels`.

    Raises:
      CorpusError: an image file cannot be read.
      UserError: a file in `folder` does not hold embeddings.
    """
    kind = np.dtype(
        [
            ("vector", np.float32, (model.config.embed_dim,)),
            ("sha256", np.uint8, (32,)),
            ("problem", "S240"),  # UTF-8, cut off there
        ]
    )
    how = (
        embedding_cache.PUBLISHED_PREPROCESSING
        if as_published
        else embedding_cache.PILLOW_PREPROCESSING
    )
    parts, num_cached = [], 0
    for begin in range(0, len(images.ids), PART_SIZE):
        end = min(begin + PART_SIZE, len(images.ids))
        path = folder / f"{begin:08d}.npz"
        names = "\0".join((how, str(kind), *images.ids[begin:end]))
        key = hashlib.sha256(names.encode()).hexdigest()
        cached = embedding_cache.load(path, key)
        rows = cached["rows"] if cached else None
        if rows is not None and _is_of(rows, images, begin, end):
            num_cached += len(rows)
        else:
            rows = _compute(model, images, kind, begin, end, as_published)
            rows = _from_all_hosts(rows, end - begin)
            embedding_cache.save(path, key, rows=rows)
        parts.append(rows)
    rows = np.concatenate(parts)
    return SetEmbeddings(
        vectors=rows["vector"],
        digests=rows["sha256"],
        problems={
            int(i): rows["problem"][i].decode("utf-8", "replace")
            for i in np.flatnonzero(rows["problem"] != b"")
        },
        num_cached=num_cached,
    )


def _share(begin: int, end: int) -> tuple[int, int, int]:
    """(first, last, length): the images of this host, and the largest number per host."""
    length = -(-(end - begin) // jax.process_count())
    first = min(begin + jax.process_index() * length, end)
    return first, min(first + length, end), length


def _compute(
    model: Model,
    images: LabelledImages,
    kind: np.dtype,
    begin: int,
    end: int,
    as_published: bool,
) -> np.ndarray:
    """The rows of this host, padded to the length of a share."""
    first, last, length = _share(begin, end)
    rows = np.zeros(length, kind)
    size = model.config.visual.image_size
    prepared = map_ahead(
        lambda data: _prepare(data, size, as_published),
        _contents(images, first, last),
        depth=_DECODE_AHEAD,
    )

    def pixels() -> Iterator[np.ndarray]:
        for row, (digest, problem, image) in zip(rows[: last - first], prepared, strict=True):
            row["sha256"], row["problem"] = digest, problem
            yield image

    vectors = model.encode_pixels(pixels(), whole_batches=True)
    rows["vector"][: last - first] = vectors
    rows["vector"][rows["problem"] != b""] = 0
    return rows


def published_pixels(data: bytes, size: int) -> np.ndarray:
    """An image file as the published code shows it to the image tower: uint8 (size, size, 3).

    Resized and cropped in the file's own mode and then converted to RGB, which differs for
    palettes, single bits and alpha; of several frames the first, and never turned. What has more
    than 8 bits is scaled as everywhere here: the published code would clip it to white.

    Raises ValueError for a file that does not decode, UserError for a missing package.
    """
    image = image_files.decode_as_stored(data)
    check_aspect_ratio(*image.size)
    return np.asarray(resize_and_crop(image, size).convert("RGB"))


def _prepare(data: bytes, size: int, as_published: bool) -> tuple[np.ndarray, bytes, np.ndarray]:
    """(SHA-256, problem or b"", pixels (size, size, 3)) of an image file."""
    digest = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    try:
        if as_published:
            return digest, b"", published_pixels(data, size)
        image = image_files.decode(data)[0]
        check_aspect_ratio(*image.size)
        return digest, b"", preprocess(image, size)
    except UserError:  # a missing package, not a property of the image
        raise
    except ValueError as error:
        problem = str(error).encode()[:240] or b"unknown"
        return digest, problem, np.zeros((size, size, 3), np.uint8)


def _contents(images: LabelledImages, begin: int, end: int) -> Iterator[bytes]:
    try:
        yield from images.read(begin, end)
    except OSError as error:
        file = error.filename or images.source
        raise CorpusError(f"cannot read {file}: {error.strerror}") from error


def _is_of(rows: np.ndarray, images: LabelledImages, begin: int, end: int) -> bool:
    """Whether the files of the rows have unchanged bytes."""
    first, last, _ = _share(begin, end)
    digests = (hashlib.sha256(data).digest() for data in _contents(images, first, last))
    expected = rows["sha256"][first - begin : last - begin]
    same = all(d == e.tobytes() for d, e in zip(digests, expected, strict=True))
    return bool(multihost_utils.process_allgather(np.array([same]), tiled=True).all())


def _from_all_hosts(rows: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows of a part, gathered from all hosts."""
    width = rows.dtype.itemsize
    gathered = multihost_utils.process_allgather(
        rows.view(np.uint8).reshape(len(rows), width), tiled=True
    )
    return np.ascontiguousarray(gathered).view(rows.dtype).reshape(-1)[:count]
