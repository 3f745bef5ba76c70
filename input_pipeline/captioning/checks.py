"""Checks of captions: pure functions that return None or the reason for rejection.

The reasons are shown to the model in the next request and to the reviewer.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence

from input_pipeline.captioning.label_sets import LabelSet
from input_pipeline.captioning.vocabulary import Vocabulary, normalise

_NEAR_DUPLICATE = 0.85  # share of words in common, in order: one word in six may differ


@dataclasses.dataclass(frozen=True)
class Context:
    """The data that a caption is checked against.

    `siblings` are the accepted captions of the set; lengths are in words.
    """

    label_set: LabelSet
    vocabulary: Vocabulary
    siblings: Sequence[str] = ()
    min_words: int = 3
    max_words: int = 40


def names_finding(caption: str, context: Context) -> str | None:
    """Every finding of the set is named, by label or synonym; a normal image is called normal.

    A narrower term counts as well; whether it adds too much is the question of `adds_nothing`.
    """
    vocabulary = context.vocabulary
    claim = vocabulary.claim(context.label_set)
    mentions = vocabulary.findings_in(caption, claim.present + claim.absent)
    named = {broad for name, _ in mentions for broad in vocabulary.broader(name)}
    for finding in claim.present:
        if finding not in named:
            return f"does not name {finding}"
    for finding in claim.absent:
        if finding not in named:
            return f"does not say that there is no {finding}"
    if claim.normal and not claim.present and not _says_normal(caption, vocabulary):
        return "does not say that the image is normal"
    return None


def does_not_negate(caption: str, context: Context) -> str | None:
    """A finding of the set is not denied, and one that the set denies is not asserted.

    Nor is an image called normal, in whole or in part, if the set does not say so: "no COVID-19"
    may be another disease.
    """
    vocabulary = context.vocabulary
    claim = vocabulary.claim(context.label_set)
    for name, mention in vocabulary.findings_in(caption, claim.present + claim.absent):
        broader = vocabulary.broader(name)
        if mention.negated and name in claim.present:
            return f"denies {mention.text}, which the label asserts"
        if not mention.negated and broader & set(claim.absent):
            return f"asserts {mention.text}, which the label denies"
    normal = vocabulary.content["normal"]
    for mention in vocabulary.terms_in(caption, (*normal["statements"], *normal["words"])):
        if not claim.normal and not vocabulary.terms_in(_own_words(context), [mention.text]):
            return f"says {mention.text}, the label is {', '.join(context.label_set.labels)}"
    return None


def adds_nothing(caption: str, context: Context) -> str | None:
    """No other finding is asserted, or denied unless the image is normal: labels do not say.

    Nor are ages, persons, measurements or figure numbers mentioned.
    """
    vocabulary = context.vocabulary
    claim = vocabulary.claim(context.label_set)
    own_words = _own_words(context)
    # The labels' words, their broader terms, and what they deny (another check covers that).
    allowed = {broad for name in claim.present for broad in vocabulary.broader(name)}
    meanings: dict[tuple[str, bool], set[str]] = {}
    for name, mention in vocabulary.findings_in(caption, claim.present + claim.absent):
        implied = mention.negated and claim.normal
        if not implied and not vocabulary.broader(name) & set(claim.absent):
            meanings.setdefault((mention.text, mention.negated), set()).add(name)
    for (text, negated), names in meanings.items():
        # A word may stand for several findings: it is enough that one of them is meant.
        if not names & allowed and not vocabulary.terms_in(own_words, [text]):
            return f"{'denies' if negated else 'adds'} {text}, which the label does not have"
    # words that end like a disease and are in no table
    for word in re.findall(vocabulary.content["disease_words"], normalise(caption)):
        known = any(word in text.split() for text, _ in meanings)
        asserted = any(not mention.negated for mention in vocabulary.terms_in(caption, [word]))
        if asserted and not known and not vocabulary.terms_in(own_words, [word]):
            return f"adds {word}, which the label does not have"
    attributes = vocabulary.content["attributes"]
    stated = {
        normalise(word)
        for name, value in vocabulary.attributes(context.label_set).items()
        for word in attributes.get(name, {"values": {}})["values"].get(value, ())
    }
    for what, pattern in vocabulary.content["inventions"].items():
        for match in re.finditer(pattern, caption, re.IGNORECASE):
            if normalise(match[0]) not in stated:
                return f"adds {what} ({match[0].strip()!r})"
    return None


def agrees_with_attributes(caption: str, context: Context) -> str | None:
    """Side, severity, age group, sex, view and anatomy are those of the set, or not mentioned."""
    vocabulary = context.vocabulary
    known = vocabulary.attributes(context.label_set)
    own_words = _own_words(context)
    for attribute, table in vocabulary.content["attributes"].items():
        value = known.get(attribute, "")
        if (value and value not in table["values"]) or (
            not value and table["when_unknown"] == "allow"
        ):
            continue
        allowed = {value, *table["compatible"].get(value, ())}
        for other in [name for name in table["values"] if name not in allowed]:
            for mention in vocabulary.terms_in(caption, table["values"][other]):
                if not vocabulary.terms_in(own_words, [mention.text]):
                    said = f"but the set says {value}" if value else "which the set does not say"
                    return f"says {mention.text} ({attribute}), {said}"
    return None


def allows_modality(caption: str, context: Context) -> str | None:
    """No other modality is named; naming none is fine."""
    vocabulary = context.vocabulary
    expected = vocabulary.modality(context.label_set.modality)
    table: Mapping[str, Sequence[str]] = vocabulary.content["modalities"]
    expected_words = {normalise(term) for term in (expected, *table.get(expected, ()))}
    for modality, terms in table.items():
        if modality != expected:
            for mention in vocabulary.terms_in(caption, terms):
                if mention.text not in expected_words:
                    return f"names {mention.text}, but the modality is {expected}"
    return None


def has_good_length(caption: str, context: Context) -> str | None:
    """Neither a fragment nor an essay."""
    words = len(caption.split())
    if not context.min_words <= words <= context.max_words:
        return f"has {words} words instead of {context.min_words} to {context.max_words}"
    return None


def is_distinct(caption: str, context: Context) -> str | None:
    """Not a near-duplicate of a sibling, up to case, punctuation and a few words."""
    words = re.findall(r"\w+", normalise(caption))
    for sibling in context.siblings:
        other = re.findall(r"\w+", normalise(sibling))
        if difflib.SequenceMatcher(None, words, other, autojunk=False).ratio() > _NEAR_DUPLICATE:
            return f"is nearly the same as {sibling!r}"
    return None


Check = Callable[[str, Context], str | None]

CHECKS: Mapping[str, Check] = {
    "length": has_good_length,
    "modality": allows_modality,
    "finding": names_finding,
    "negation": does_not_negate,
    "additions": adds_nothing,
    "attributes": agrees_with_attributes,
    "distinct": is_distinct,
}


def refusals(caption: str, context: Context) -> dict[str, str]:
    """Name of every check that the caption fails -> reason; empty if it is good."""
    reasons = {name: check(caption, context) for name, check in CHECKS.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _says_normal(caption: str, vocabulary: Vocabulary) -> bool:
    normal = vocabulary.content["normal"]
    said = vocabulary.terms_in(caption, (*normal["statements"], *normal["words"]))
    denied = vocabulary.terms_in(caption, normal["negatable"])
    return any(not m.negated for m in said) or any(m.negated for m in denied)


def _own_words(context: Context) -> str:
    """The labels and the words for their findings."""
    vocabulary = context.vocabulary
    labels = context.label_set.labels
    words = (term for label in labels for term in vocabulary.terms(vocabulary.finding(label)))
    return "; ".join((*labels, *words))
