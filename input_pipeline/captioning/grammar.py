"""Captions from a grammar (`data/grammar.json`): no model, deterministic in the seed.

Sentence patterns, words for the image and words for the finding are each drawn without repetition
until all have been used. The patterns say no more than the label set.
"""

import functools
import hashlib
import importlib.resources
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from input_pipeline.captioning.label_sets import LabelSet
from input_pipeline.captioning.vocabulary import Vocabulary

_T = TypeVar("_T")


@functools.cache
def _grammar() -> Mapping[str, Any]:
    data = importlib.resources.files("input_pipeline.captioning") / "data" / "grammar.json"
    return json.loads(data.read_text("utf-8"))


def version() -> str:
    """Names the grammar in the provenance of captions."""
    return f"grammar-{_grammar()['version']}"


def captions(label_set: LabelSet, vocabulary: Vocabulary, seed: int) -> Iterator[str]:
    """Captions of a set, most diverse first; ends when every combination has been given."""
    claim = vocabulary.claim(label_set)
    grammar = _grammar()
    kind = "present" if claim.present else "absent" if claim.absent else "normal"
    if claim.present and not claim.absent and {*claim.present} <= {*grammar["organs"]}:
        kind = "organ"  # a label that names what is imaged, and no disease of it
    named = claim.present or claim.absent
    patterns = _shuffled(grammar[kind], seed, label_set.key, "pattern")
    images = _shuffled(image_names(label_set, vocabulary), seed, label_set.key, "image")
    phrases = [vocabulary.phrases(finding) for finding in named]
    rounds = len(images) * max(map(len, phrases), default=1)
    for turn in range(rounds):
        for index, pattern in enumerate(patterns):
            step = turn + index
            image = images[step % len(images)]
            words = [p[(step // len(images) + turn) % len(p)] for p in phrases]
            finding = _joined(words, grammar["joiners"][kind]) if words else ""
            if claim.present:
                finding = _qualified(finding, label_set, claim.absent)
            yield pattern.format(
                image=image, Image=_capital(image), finding=finding, Finding=_capital(finding)
            )


def image_names(label_set: LabelSet, vocabulary: Vocabulary) -> list[str]:
    """Words for the image, with its attributes: 'pediatric female frontal chest X-ray'."""
    grammar = _grammar()
    known = vocabulary.attributes(label_set)
    age = known.get("age_group", "")
    age = grammar["age_group"].get(age, grammar["age_group"]["*"]).format(age_group=age)
    before = " ".join(filter(None, [age, *map(known.get, ("sex", "view", "anatomy"))]))
    names = grammar["images"].get(vocabulary.modality(label_set.modality), grammar["images"]["*"])
    return [f"{before} {name}".strip().format(modality=label_set.modality) for name in names]


def _qualified(finding: str, label_set: LabelSet, absent: Sequence[str]) -> str:
    """'severe left-sided effusion without edema'."""
    grammar = _grammar()
    given = dict(label_set.attributes)
    if side := given.get("laterality"):
        form = grammar["laterality"].get(side, grammar["laterality"]["*"])
        finding = form.format(finding=finding, laterality=side)
    if severity := given.get("severity"):
        finding = grammar["severity"].format(finding=finding, severity=severity)
    if absent:
        finding += " without " + _joined(absent, grammar["joiners"]["absent"])
    return finding


def _joined(words: Sequence[str], last: str) -> str:
    """'a, b and c'."""
    return last.join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _shuffled(items: Sequence[_T], seed: int, *key: str) -> list[_T]:
    """A permutation by hash: Python does not promise that random.shuffle stays the same."""

    def rank(index: int) -> bytes:
        return hashlib.blake2b(repr((seed, key, index)).encode(), digest_size=8).digest()

    return [items[index] for index in sorted(range(len(items)), key=rank)]
