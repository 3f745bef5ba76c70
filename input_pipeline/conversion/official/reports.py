"""Texts of radiology reports: sections, and the marks of words that de-identification removed."""

import re

_MARK = re.compile(r"-?(?<![A-Za-z0-9])(?:[Xx]{3,}|_{2,})(?:'s)?(?![A-Za-z0-9])-?")
_EMPTY = re.compile(r"\(\s*\)|\[\s*\]|\"\s*\"|(?<!\S)/(?!\S)")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def clean(text: str) -> tuple[str, bool]:
    """The text without marks of removed words, and whether it had any.

    The rule: a mark (`XXXX`, `___`) is deleted, with a hyphen that joined it to a word; then what
    this leaves empty: brackets, quotes, slashes, repeated punctuation and the space before it, and
    sentences without a letter or digit. No other word changes. White space is collapsed.
    """
    text = " ".join(text.split())
    if not _MARK.search(text):
        return text, False
    text = _EMPTY.sub(" ", _MARK.sub(" ", text))
    text = re.sub(r"\s+([.,;:!?)])", r"\1", text)
    text = re.sub(r"([.!?])[.,;:]+|[,;:]+([.!?])|([,;:])[,;:]+", r"\1\2\3", text)
    sentences = (sentence.lstrip(" .,;:") for sentence in _SENTENCE.split(text))
    kept = [sentence for sentence in sentences if any(map(str.isalnum, sentence))]
    return " ".join(" ".join(kept).split()), True
