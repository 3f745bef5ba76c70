"""Text vectors of classes from descriptions of their appearance, cached with their provenance."""

import dataclasses
import hashlib
import importlib.resources
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.captioning import templates as caption_templates
from input_pipeline.io.errors import ConfigError
from input_pipeline.io.files import AnyPath, PathLike, read_bytes, to_path, write_text_atomically

FILE_NAME = "text_vectors.json"
BAG_OF_WORDS = "bag_of_words"
_BAG_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class TextVectors:
    """Unit text vectors of the classes of a task.

    Attributes:
      vectors: float32 (K, D), in the order of the classes.
      provenance: the inputs they were computed from: classes, sentences and tower.
    """

    vectors: np.ndarray
    provenance: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Hash of the vectors and their provenance."""
        digest = hashlib.sha256(json.dumps(self.provenance, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.vectors, "<f4").tobytes())
        return digest.hexdigest()

    def save(self, directory: PathLike) -> None:
        """Writes ``text_vectors.json`` into a directory."""
        content = {"provenance": dict(self.provenance), "vectors": self.vectors.tolist()}
        write_text_atomically(to_path(directory) / FILE_NAME, json.dumps(content) + "\n")


def descriptions(file: str, modality: str, classes: Sequence[str]) -> dict[str, list[str]]:
    """Reads the sentences that describe each class.

    Args:
      file: name of packaged descriptions (``segmentation``), or path of a JSON file of captions
        written by tools/caption_labels.py (docs/guides/captions.md).
      modality: modality of the captions to use.
      classes: class names, as spelled in the labels of the file.

    Returns:
      Class -> sentences.

    Raises:
      ConfigError: the file does not exist, or a class has no sentence.
    """
    if file.endswith(".json"):
        templates = caption_templates.load(to_path(file))
    else:
        packaged = importlib.resources.files("unimed_jax.tasks") / "descriptions" / f"{file}.json"
        if not packaged.is_file():
            raise ConfigError(
                f"there are no packaged descriptions {file!r}; a path must end in .json"
            )
        with importlib.resources.as_file(packaged) as path:
            templates = caption_templates.load(path)
    sentences = {
        name: [caption.text for caption in templates.captions_of("", modality, (name,))]
        for name in classes
    }
    if missing := [name for name, texts in sentences.items() if not texts]:
        raise ConfigError(
            f"descriptions {file!r} have no sentence for class {missing[0]!r} in modality "
            f"{modality!r}"
        )
    return sentences


def get(
    sentences: Mapping[str, Sequence[str]],
    tower: str,
    cache: PathLike,
    locate: Callable[[str], AnyPath],
) -> TextVectors:
    """Text vectors of the classes, from the cache if its provenance is the same.

    A vector is the normalized mean of the unit vectors of the sentences of a class.

    Args:
      sentences: class -> sentences.
      tower: ``bag_of_words``, or weights with a text tower that ``unimed_jax.load`` can read.
      cache: directory that may hold ``text_vectors.json``.
      locate: maps a URI to a local path.

    Raises:
      WeightsError, UserError: the tower cannot be read.
    """
    provenance = {
        "tower": tower,
        "classes": list(sentences),
        "sentences": {name: list(texts) for name, texts in sentences.items()},
    }
    path = to_path(cache) / FILE_NAME
    if path.is_file():
        content = json.loads(read_bytes(path))
        if content["provenance"] == provenance:
            return TextVectors(np.array(content["vectors"], np.float32), provenance)
    texts = [text for group in sentences.values() for text in group]
    encoded = bag_of_words(texts) if tower == BAG_OF_WORDS else _encode(locate(tower), texts)
    ends = np.cumsum([len(group) for group in sentences.values()])
    means = np.stack([part.mean(0) for part in np.split(encoded, ends[:-1])])
    vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
    return TextVectors(vectors.astype(np.float32), provenance)


def bag_of_words(texts: Sequence[str]) -> np.ndarray:
    """Text vectors that need no weights: the normalized sum of a random vector per word.

    Texts that share words are close; meaning plays no role. The vector of a word is a function of
    its spelling.

    Returns:
      float64 (N, 64), rows of unit length.
    """

    def vector(word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
        return np.random.Generator(np.random.Philox(seed)).standard_normal(_BAG_WIDTH)

    sums = np.stack(
        [sum(map(vector, re.findall(r"\w+", text.lower())), np.zeros(_BAG_WIDTH)) for text in texts]
    )
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def _encode(path: AnyPath, texts: Sequence[str]) -> np.ndarray:
    from unimed_jax.inference import dual_encoder
    from unimed_jax.weights import layouts
    from unimed_jax.weights.loader import open_weights

    pretrained = open_weights(path)
    overrides = {}
    text = pretrained.parts.get("text")
    if text is not None and text.layout is layouts.BERT:  # a language model without a joint space
        overrides = {"text.projection": "none", "embed_dim": text.config["width"]}
    config = pretrained.model_config(overrides)
    return dual_encoder.from_pretrained(pretrained, config).encode_text(texts)
