"""The layout of an image with its mask in a `tf.train.Example`: slices, images and volumes.

===============  ============  =====================================================================
feature          type          meaning
===============  ============  =====================================================================
``id``           bytes         stable name of the sample, unique in its corpus
``image``        bytes         an encoded JPEG or PNG; or, with a ``dtype``, a compressed array
``dtype``        bytes         of the array: uint8, int16 or float32; empty for a JPEG or PNG
``mask``         bytes         compressed uint8 array: 0 is background, k the k-th of ``classes``
``shape``        int64 list    of the mask, row-major: (H, W) or (D, H, W); an array has it as well
``spacing``      float list    mm between neighbours along each axis of ``shape``, of a slice of a
                               volume that between slices before them; empty: unknown
``classes``      bytes list    names of the label values 1, 2, ...; the background has none
``labels``       bytes list    those of them that occur in this mask
``modality``     bytes         mri, ct, fundus, ...
``source``       bytes         the domain: a camera, a sequence, a site
``group``        bytes         patient; empty where unknown
===============  ============  =====================================================================

Arrays are little-endian, row-major and compressed with zlib. TensorFlow is imported inside the
functions, as in `input_pipeline/records.py`.
"""

from __future__ import annotations

import dataclasses
import io
import math
import zlib
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from input_pipeline.io.errors import CorpusError
from input_pipeline.records import Schema, serialize

if TYPE_CHECKING:
    import tensorflow as tf

VERSION = 1
DTYPES = ("uint8", "int16", "float32")

_TEXT_KEYS = ("id", "dtype", "modality", "source", "group")
_TEXT_LIST_KEYS = ("classes", "labels")


@dataclasses.dataclass(frozen=True)
class SegmentationSample:
    """One image or volume with the class of every pixel; fields as in the module docstring.

    `image` and `mask` are the bytes of the record; `from_encoded` and `from_array` create them.

    Raises ValueError if the id or image is empty, the dtype is neither in `DTYPES` nor "", or the
    spacing does not have one number per axis, or one more.
    """

    captions: ClassVar[tuple[str, ...]] = ()  # conversion counts those of every schema
    num_original_captions: ClassVar[int] = 0

    id: str
    image: bytes
    dtype: str
    mask: bytes
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    labels: tuple[str, ...]
    modality: str
    source: str
    group: str = ""
    spacing: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.id or not self.image:
            raise ValueError(f"sample {self.id!r} needs an id and image bytes")
        if self.dtype not in ("", *DTYPES):
            raise ValueError(f"sample {self.id!r}: dtype {self.dtype!r} is none of {DTYPES}")
        if self.spacing and len(self.spacing) - len(self.shape) not in (0, 1):
            raise ValueError(f"sample {self.id!r}: spacing {self.spacing} for shape {self.shape}")

    @classmethod
    def from_encoded(cls, encoded: bytes, mask: np.ndarray, **fields: Any) -> SegmentationSample:
        """From the bytes of a JPEG or PNG and the label values (H, W) of its pixels."""
        return cls(image=encoded, dtype="", **_mask_fields(mask, fields["classes"]), **fields)

    @classmethod
    def from_array(cls, image: np.ndarray, mask: np.ndarray, **fields: Any) -> SegmentationSample:
        """From an array of any of `DTYPES` and label values of the same shape.

        Raises ValueError if the shapes differ or a value is not finite.
        """
        if image.shape != mask.shape:
            raise ValueError(f"the image is {image.shape}, its mask {mask.shape}")
        if not np.isfinite(image).all():
            raise ValueError("the image has values that are no numbers (NaN or infinite)")
        return cls(
            image=_compress(image),
            dtype=image.dtype.name,
            **_mask_fields(mask, fields["classes"]),
            **fields,
        )

    def pixels(self) -> np.ndarray:
        """The image: uint8 (H, W, 3) of a JPEG or PNG, or the array."""
        if not self.dtype:
            return np.asarray(Image.open(io.BytesIO(self.image)).convert("RGB"))
        return _expand(self.image, self.dtype, self.shape)

    def label_map(self) -> np.ndarray:
        """The mask, uint8."""
        return _expand(self.mask, "uint8", self.shape)


def _mask_fields(mask: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    if mask.dtype.kind not in "iu":
        raise ValueError(f"label values are integers, not {mask.dtype}")
    values = np.unique(mask)
    if values.min() < 0 or values.max() > len(classes):
        raise ValueError(
            f"the mask has the label values {values.tolist()}, but the classes are "
            f"{dict(enumerate(classes, 1))}"
        )
    labels = tuple(classes[value - 1] for value in values.tolist() if value)
    return {"mask": _compress(mask.astype(np.uint8)), "shape": mask.shape, "labels": labels}


def _compress(array: np.ndarray) -> bytes:
    little = array.astype(array.dtype.newbyteorder("<"), order="C")
    return zlib.compress(little.tobytes(), 6)


def _expand(data: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(data), np.dtype(dtype).newbyteorder("<")).reshape(shape)


def encode(sample: SegmentationSample) -> bytes:
    """Serializes a sample; equal samples give equal bytes."""
    texts = {key: [getattr(sample, key).encode()] for key in _TEXT_KEYS}
    texts |= {key: [text.encode() for text in getattr(sample, key)] for key in _TEXT_LIST_KEYS}
    texts |= {"image": [sample.image], "mask": [sample.mask]}
    return serialize(texts, {"shape": sample.shape}, {"spacing": sample.spacing})


def decode(serialized: bytes) -> SegmentationSample:
    """Inverse of `encode`. Raises CorpusError for bytes that are not a sample of this schema."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        features = tf.train.Example.FromString(serialized).features.feature
    except DecodeError as error:
        raise CorpusError(f"record is not a tf.train.Example: {error}") from error
    needed = {*_TEXT_KEYS, *_TEXT_LIST_KEYS, "image", "mask", "shape", "spacing"}
    if absent := sorted(needed - features.keys()):
        raise CorpusError(f"not a segmentation record: it lacks {', '.join(absent)}")

    def single(key: str) -> bytes:
        return features[key].bytes_list.value[0]

    def texts(key: str) -> tuple[str, ...]:
        return tuple(text.decode() for text in features[key].bytes_list.value)

    try:
        sample = SegmentationSample(
            id=single("id").decode(),
            dtype=single("dtype").decode(),
            modality=single("modality").decode(),
            source=single("source").decode(),
            group=single("group").decode(),
            classes=texts("classes"),
            labels=texts("labels"),
            image=single("image"),
            mask=single("mask"),
            shape=tuple(features["shape"].int64_list.value),
            spacing=tuple(features["spacing"].float_list.value),
        )
        if len(zlib.decompress(sample.mask)) != math.prod(sample.shape):
            raise ValueError(f"the mask of {sample.id!r} does not have the shape {sample.shape}")
    except (ValueError, IndexError, zlib.error) as error:
        raise CorpusError(f"record breaks the schema: {error}") from error
    return sample


def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """In-graph inverse of `encode`, with the pixels decoded.

    Args:
      serialized: string (), one serialized Example.

    Returns:
      id, source, group: string (); image: float32, (H, W, 3) of a JPEG or PNG, or the array
      with a last axis of one channel, uint8 values divided by 255; mask: uint8 (H, W) or
      (D, H, W); spacing: float32 (n,), empty where unknown.
    """
    import tensorflow as tf

    def many(dtype: tf.DType) -> tf.io.FixedLenSequenceFeature:
        return tf.io.FixedLenSequenceFeature((), dtype, allow_missing=True)

    keys = (*_TEXT_KEYS, "image", "mask")
    spec: dict[str, Any] = {key: tf.io.FixedLenFeature((), tf.string) for key in keys}
    spec |= {"shape": many(tf.int64), "spacing": many(tf.float32)}
    features = tf.io.parse_single_example(serialized, spec)

    def encoded() -> tf.Tensor:
        from input_pipeline.io.training_decoder import decode_image

        return tf.cast(decode_image(features["image"]), tf.float32) / 255.0

    def array(dtype: str) -> tf.Tensor:
        raw = tf.io.decode_raw(tf.io.decode_compressed(features["image"], "ZLIB"), dtype)
        values = tf.reshape(raw, tf.concat([features["shape"], [1]], axis=0))
        return tf.cast(values, tf.float32) / (255.0 if dtype == "uint8" else 1.0)

    image = tf.case(
        [(tf.equal(features["dtype"], d), lambda d=d: array(d)) for d in DTYPES], default=encoded
    )
    mask = tf.io.decode_raw(tf.io.decode_compressed(features["mask"], "ZLIB"), tf.uint8)
    return {
        **{key: features[key] for key in ("id", "source", "group", "spacing")},
        "image": image,
        "mask": tf.reshape(mask, features["shape"]),
    }


def tfds_features() -> dict[str, Any]:
    """The features of a record as TFDS describes them; compressed arrays are plain bytes."""
    import numpy as np
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    return {
        **dict.fromkeys(_TEXT_KEYS, text),
        **dict.fromkeys(_TEXT_LIST_KEYS, tfds.features.Sequence(text)),
        "image": text,
        "mask": text,
        "shape": tfds.features.Sequence(np.int64),
        "spacing": tfds.features.Sequence(np.float32),
    }


SCHEMA = Schema("segmentation", VERSION, encode, tfds_features)
