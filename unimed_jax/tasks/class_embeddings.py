"""One vector per class from descriptions of what it looks like, cached with where it came from."""

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
    """Unit vectors of the classes of a task.

    Attributes:
      vectors: float32 (K, D), in the order of the classes.
      provenance: what they are a function of: classes, sentences and tower.
    """

    vectors: np.ndarray
    provenance: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Of the vectors and their provenance."""
        digest = hashlib.sha256(json.dumps(self.provenance, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.vectors, "<f4").tobytes())
        return digest.hexdigest()

    def save(self, directory: PathLike) -> None:
        """Writes ``text_vectors.json``."""
        content = {"provenance": dict(self.provenance), "vectors": self.vectors.tolist()}
        write_text_atomically(to_path(directory) / FILE_NAME, json.dumps(content) + "\n")


def descriptions(file: str, modality: str, classes: Sequence[str]) -> dict[str, list[str]]:
    """The sentences of every class.

    Args:
      file: a packaged name (``segmentation``) or the path of a JSON of captions, as
        tools/caption_labels.py writes it (docs/guides/captions.md).
      modality: whose captions are taken.
      classes: names, as they stand among the labels of the file.

    Raises:
      ConfigError: there is no such file, or a class has no sentence.
    """
    if file.endswith(".json"):
        templates = caption_templates.load(to_path(file))
    else:
        packaged = importlib.resources.files("unimed_jax.tasks") / "descriptions" / f"{file}.json"
        if not packaged.is_file():
            raise ConfigError(f"no descriptions are called {file!r}; a path must end in .json")
        with importlib.resources.as_file(packaged) as path:
            templates = caption_templates.load(path)
    found = {
        name: [caption.text for caption in templates.captions_of("", modality, (name,))]
        for name in classes
    }
    if absent := [name for name, sentences in found.items() if not sentences]:
        raise ConfigError(
            f"descriptions {file!r} say nothing of class {absent[0]!r} in modality {modality!r}"
        )
    return found


def get(
    sentences: Mapping[str, Sequence[str]],
    tower: str,
    cache: PathLike,
    locate: Callable[[str], AnyPath],
) -> TextVectors:
    """The vectors of the classes: those of the cache if they were made from the same, else new.

    A vector is the renormalised mean of the unit vectors of the sentences.

    Args:
      sentences: class -> sentences.
      tower: ``bag_of_words``, or anything with a text tower that ``unimed_jax.load`` reads.
      cache: directory that may hold ``text_vectors.json``.
      locate: local path of a URI.

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
    """Unit vectors (N, 64) that need no weights: the sum of a random vector per word.

    Texts that share words are close; nothing is known of meaning. A word's vector is a function of
    its spelling.
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
    if text is not None and text.layout is layouts.BERT:  # a bare language model: its own space
        overrides = {"text.projection": "none", "embed_dim": text.config["width"]}
    config = pretrained.model_config(overrides)
    return dual_encoder.from_pretrained(pretrained, config).encode_text(texts)
