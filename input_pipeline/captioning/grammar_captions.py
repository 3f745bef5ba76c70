"""Captions of label sets by the grammar, made and checked when a row asks for them."""

import dataclasses
import functools
from collections.abc import Sequence

from input_pipeline.captioning import generate, grammar, vocabulary
from input_pipeline.captioning.label_sets import LabelSet
from input_pipeline.captioning.providers import TemplateProvider
from input_pipeline.captioning.templates import Caption
from input_pipeline.captioning.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class GrammarCaptions:
    """The captions that `unimed-jax caption --provider=template` writes, without a file.

    Where no caption passes the checks because a set denies too many findings, captions name the
    first of these only: half of them, a quarter, and so on.

    The provenance has no time, so that the bytes of a corpus are the same on every day.
    """

    seed: int = 0
    version: str = dataclasses.field(default_factory=grammar.version)

    def captions_of(self, source: str, modality: str, labels: Sequence[str]) -> tuple[Caption, ...]:
        """The accepted captions of a row with these labels; none for a row without labels."""
        label_set = LabelSet.of(modality, labels, source)
        return _captions(label_set, self.seed) if label_set.labels else ()

    def how_to_add(self, source: str, modality: str, label: str) -> str:
        """How to add captions for a label, for messages."""
        return "the grammar's captions fail the checks; give a caption file (--captions=FILE)"


@functools.cache
def _captions(label_set: LabelSet, seed: int) -> tuple[Caption, ...]:
    words = _words()
    provider = TemplateProvider(words, seed, time="")
    denied = [label for label in label_set.labels if words.claim(_alone(label, label_set)).absent]
    while True:
        accepted = generate.caption_one(label_set, provider, words, generate.Settings()).accepted
        if accepted or not denied:
            return accepted
        # A negation does not reach over a long list: the checks refuse such captions.
        left_out = set(denied[len(denied) // 2 :])
        denied = denied[: len(denied) // 2]
        labels = tuple(label for label in label_set.labels if label not in left_out)
        if not labels:
            return ()
        label_set = dataclasses.replace(label_set, labels=labels)


def _alone(label: str, label_set: LabelSet) -> LabelSet:
    return LabelSet(label_set.modality, (label,))


@functools.cache
def _words() -> Vocabulary:
    return vocabulary.load()
