"""The layout of a sample in a `tf.train.Example`; no other module knows it.

========================  ==========  ==============================================================
feature                   type        meaning
========================  ==========  ==============================================================
``id``                    bytes       stable name of the sample, unique in its corpus
``image``                 bytes       encoded JPEG or PNG
``captions``              bytes list  at least one; original texts first, then generated ones
``num_original_captions`` int64       number of ``captions`` that people wrote for this very image
``provenance``            bytes list  distinct origins of captions, JSON (`Provenance.as_json`)
``provenance_index``      int64 list  per caption, its index in ``provenance``; -1: none
``labels``                bytes list  class names; may be empty
``modality``              bytes       xray, ct, mri, ultrasound, pathology, fundus, ...
``source``                bytes       the collection that the image is from
``group``                 bytes       patient or study; empty where unknown
========================  ==========  ==============================================================

Text is UTF-8. Records of version 1, which had no provenance, can be read.
TensorFlow is imported inside the functions, so that commands that only describe or check samples
start quickly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from input_pipeline.io.errors import CorpusError

if TYPE_CHECKING:
    import tensorflow as tf

SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Schema:
    """The layout of the samples of a corpus in its records.

    Samples of every schema have `id`, `source`, `modality`, `labels`, `captions` and
    `num_original_captions`, which the conversion counts.

    Attributes:
      name: name in the manifest; a task reads corpora of one schema.
      version: version of the layout.
      encode: a sample -> a serialized `tf.train.Example`; equal samples give equal bytes.
      tfds_features: the features of a record as TFDS describes them.
    """

    name: str
    version: int
    encode: Callable[[Any], bytes]
    tfds_features: Callable[[], dict[str, Any]]


_TEXT_KEYS = ("id", "modality", "source", "group")
_TEXT_LIST_KEYS = ("captions", "labels")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image with its captions and metadata.

    `caption_provenance` has the origin of every caption: a JSON object, or "" where it is unknown,
    as for texts that people wrote. By default, it is "" for all.

    Raises ValueError if the id or image is empty, a caption is blank, `num_original_captions` is
    not in 0..len(captions), or provenance and captions differ in number.
    """

    id: str
    image: bytes
    captions: tuple[str, ...]
    num_original_captions: int
    labels: tuple[str, ...]
    modality: str
    source: str
    group: str = ""
    caption_provenance: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.caption_provenance:
            object.__setattr__(self, "caption_provenance", ("",) * len(self.captions))
        if not self.id or not self.image:
            raise ValueError(f"sample {self.id!r} needs an id and image bytes")
        if any(not caption.strip() for caption in self.captions):
            raise ValueError(f"sample {self.id!r} has an empty caption")
        if not 0 <= self.num_original_captions <= len(self.captions):
            raise ValueError(
                f"sample {self.id!r}: num_original_captions is {self.num_original_captions}, "
                f"but there are {len(self.captions)} captions"
            )
        if len(self.caption_provenance) != len(self.captions):
            raise ValueError(
                f"sample {self.id!r}: provenance of {len(self.caption_provenance)} captions, "
                f"but there are {len(self.captions)}"
            )


def encode(sample: Sample) -> bytes:
    """Serializes a sample; equal samples give equal bytes."""
    features: dict[str, list[bytes]] = {key: [getattr(sample, key).encode()] for key in _TEXT_KEYS}
    for key in _TEXT_LIST_KEYS:
        features[key] = [text.encode() for text in getattr(sample, key)]
    features["image"] = [sample.image]
    # Captions of one run share their provenance: each distinct one is stored once.
    distinct = list(dict.fromkeys(filter(None, sample.caption_provenance)))
    indices = {"": -1} | {text: index for index, text in enumerate(distinct)}
    features["provenance"] = [text.encode() for text in distinct]
    integers = {"provenance_index": [indices[t] for t in sample.caption_provenance]}
    integers["num_original_captions"] = [sample.num_original_captions]
    return serialize(features, integers)


def serialize(
    texts: Mapping[str, Sequence[bytes]],
    integers: Mapping[str, Sequence[int]],
    numbers: Mapping[str, Sequence[float]] = {},
) -> bytes:
    """A serialized `tf.train.Example` of bytes, int64 and float32 lists by feature name."""
    import tensorflow as tf

    features = {
        **{k: tf.train.Feature(bytes_list=tf.train.BytesList(value=v)) for k, v in texts.items()},
        **{
            k: tf.train.Feature(int64_list=tf.train.Int64List(value=v)) for k, v in integers.items()
        },
        **{k: tf.train.Feature(float_list=tf.train.FloatList(value=v)) for k, v in numbers.items()},
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    # Maps are unordered: without this flag, checksums would differ between runs.
    return example.SerializeToString(deterministic=True)


def decode(serialized: bytes) -> Sample:
    """Inverse of `encode`. Raises CorpusError for bytes that are not a sample of this schema."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        features = tf.train.Example.FromString(serialized).features.feature
    except DecodeError as error:
        raise CorpusError(f"record is not a tf.train.Example: {error}") from error

    def values(key: str, kind: str = "bytes_list") -> list:
        if key not in features:
            raise CorpusError(f"record lacks feature {key!r}; found {sorted(features)}")
        return list(getattr(features[key], kind).value)

    def single(key: str, kind: str = "bytes_list") -> Any:  # bytes or int
        entries = values(key, kind)
        if len(entries) != 1:
            raise CorpusError(f"record feature {key!r} holds {len(entries)} values instead of one")
        return entries[0]

    def texts(key: str) -> tuple[str, ...]:
        return tuple(text.decode() for text in values(key))

    def provenance() -> tuple[str, ...]:
        if "provenance_index" not in features:  # version 1
            return ()
        distinct = [text.decode() for text in values("provenance")]
        indices = values("provenance_index", "int64_list")
        if any(not -1 <= index < len(distinct) for index in indices):
            raise CorpusError(f"record feature 'provenance_index' is out of range: {indices}")
        return tuple("" if index < 0 else distinct[index] for index in indices)

    try:
        return Sample(
            image=single("image"),
            caption_provenance=provenance(),
            num_original_captions=single("num_original_captions", "int64_list"),
            id=single("id").decode(),
            modality=single("modality").decode(),
            source=single("source").decode(),
            group=single("group").decode(),
            captions=texts("captions"),
            labels=texts("labels"),
        )
    except CorpusError:
        raise
    except ValueError as error:  # not UTF-8, or refused by Sample
        raise CorpusError(f"record breaks the schema: {error}") from error


def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """In-graph inverse of `encode`, without provenance; images stay encoded.

    Args:
      serialized: string (n,), serialized Examples.

    Returns:
      id, image, modality, source, group: string (n,); captions, labels: ragged string (n, None);
      num_original_captions: int64 (n,).
    """
    import tensorflow as tf

    text_list = tf.io.RaggedFeature(tf.string, row_splits_dtype=tf.int64)
    spec = {key: tf.io.FixedLenFeature((), tf.string) for key in (*_TEXT_KEYS, "image")}
    spec |= dict.fromkeys(_TEXT_LIST_KEYS, text_list)
    spec["num_original_captions"] = tf.io.FixedLenFeature((), tf.int64)
    return tf.io.parse_example(serialized, spec)


def tfds_features() -> dict[str, Any]:
    """The features of a record as TFDS describes them."""
    import numpy as np
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    return {
        "id": text,
        "image": tfds.features.Image(shape=(None, None, 3)),
        "captions": tfds.features.Sequence(text),
        "num_original_captions": tfds.features.Scalar(np.int64),
        "provenance": tfds.features.Sequence(text),
        "provenance_index": tfds.features.Sequence(np.int64),
        "labels": tfds.features.Sequence(text),
        "modality": text,
        "source": text,
        "group": text,
    }


SCHEMA = Schema("image_text", SCHEMA_VERSION, encode, tfds_features)
