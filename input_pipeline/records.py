"""The one place that knows how a sample is laid out in a `tf.train.Example`.

========================  ==========  ==============================================================
feature                   type        meaning
========================  ==========  ==============================================================
``id``                    bytes       stable name of the sample, unique in its corpus
``image``                 bytes       encoded JPEG or PNG
``captions``              bytes list  at least one; original texts first, then generated ones
``num_original_captions`` int64       how many of ``captions`` people wrote for this very image
``provenance``            bytes list  distinct origins of captions, JSON (`Provenance.as_json`)
``provenance_index``      int64 list  per caption, its place in ``provenance``; -1: none
``labels``                bytes list  class names; may be empty
``modality``              bytes       xray, ct, mri, ultrasound, pathology, fundus, ...
``source``                bytes       the collection that the image is from
``group``                 bytes       patient or study; empty where unknown
========================  ==========  ==============================================================

Text is UTF-8. Version 1 had no provenance; its records are read as captions without one.
TensorFlow is imported inside the functions, so that a command that only describes or checks
samples starts at once.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from input_pipeline.errors import CorpusError

if TYPE_CHECKING:
    import tensorflow as tf

SCHEMA_VERSION = 2

_TEXT_KEYS = ("id", "modality", "source", "group")
_TEXT_LIST_KEYS = ("captions", "labels")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image with everything that is known about it.

    `caption_provenance` has, for every caption, where it is from: a JSON object, or "" where that
    is not known, as of texts that people wrote. Left out, it is "" for all.

    Raises ValueError when the id or image is empty, a caption is blank, `num_original_captions` is
    not in 0..len(captions), or the provenance is not that of so many captions.
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
    import tensorflow as tf

    def bytes_feature(values: list[bytes]) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    def int64_feature(values: list[int]) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = {key: bytes_feature([getattr(sample, key).encode()]) for key in _TEXT_KEYS}
    for key in _TEXT_LIST_KEYS:
        features[key] = bytes_feature([text.encode() for text in getattr(sample, key)])
    features["image"] = bytes_feature([sample.image])
    features["num_original_captions"] = int64_feature([sample.num_original_captions])
    # Ten captions of one run share their provenance: it is stored once.
    distinct = list(dict.fromkeys(filter(None, sample.caption_provenance)))
    places = {"": -1} | {text: place for place, text in enumerate(distinct)}
    features["provenance"] = bytes_feature([text.encode() for text in distinct])
    features["provenance_index"] = int64_feature([places[t] for t in sample.caption_provenance])
    example = tf.train.Example(features=tf.train.Features(feature=features))
    # Maps have no order of their own: without this flag checksums would differ between runs.
    return example.SerializeToString(deterministic=True)


def decode(serialized: bytes) -> Sample:
    """Inverse of `encode`. Raises CorpusError for bytes that are no sample of this schema."""
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

    def single(key: str, kind: str = "bytes_list") -> bytes | int:
        found = values(key, kind)
        if len(found) != 1:
            raise CorpusError(f"record feature {key!r} holds {len(found)} values instead of one")
        return found[0]

    def provenance() -> tuple[str, ...]:
        if "provenance_index" not in features:  # version 1
            return ()
        distinct = [text.decode() for text in values("provenance")]
        places = values("provenance_index", "int64_list")
        if any(not -1 <= place < len(distinct) for place in places):
            raise CorpusError(f"record feature 'provenance_index' points outside: {places}")
        return tuple("" if place < 0 else distinct[place] for place in places)

    try:
        return Sample(
            image=single("image"),
            caption_provenance=provenance(),
            num_original_captions=single("num_original_captions", "int64_list"),
            **{key: single(key).decode() for key in _TEXT_KEYS},
            **{key: tuple(text.decode() for text in values(key)) for key in _TEXT_LIST_KEYS},
        )
    except CorpusError:
        raise
    except ValueError as error:  # not UTF-8, or refused by Sample
        raise CorpusError(f"record breaks the schema: {error}") from error


def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """In-graph inverse of `encode`, the image still encoded; provenance is left where it is.

    Args:
      serialized: string (), one serialized Example.

    Returns:
      id, image, modality, source, group: string (); captions, labels: string (n,);
      num_original_captions: int64 ().
    """
    import tensorflow as tf

    def text_list() -> tf.io.FixedLenSequenceFeature:
        return tf.io.FixedLenSequenceFeature((), tf.string, allow_missing=True)

    spec = {key: tf.io.FixedLenFeature((), tf.string) for key in (*_TEXT_KEYS, "image")}
    spec |= {key: text_list() for key in _TEXT_LIST_KEYS}
    spec["num_original_captions"] = tf.io.FixedLenFeature((), tf.int64)
    return tf.io.parse_single_example(serialized, spec)
