"""Texts of radiology reports: sections, and the marks of words that de-identification removed."""

import re
from collections.abc import Iterable

_HEADER = re.compile(
    r"^[ \t]*((?i:findings|impression)|[A-Z][A-Z0-9 /()&,.'-]{1,60}[A-Z)])[ \t]*:", re.MULTILINE
)
_FINDINGS = re.compile(r"FINDINGS?\b|IMPRESSIONS? (?:AND|/|&) FINDINGS?")  # also together
_IMPRESSION = re.compile(r"IMPRESSIONS?|CONCLUSIONS?")
# Capitals with a colon inside a section: "LUNGS: Clear."
_PARTS_OF_BODY = re.compile(
    r"(?:(?:LUNGS?|HEART|PLEURAL?|SPACES?|MEDIASTIN(?:UM|AL)|CARDIAC|SILHOUETTE|HILAR?|BON(?:ES?|Y)"
    r"|OSSEOUS|STRUCTURES?|SOFT|TISSUES?|LINES?|TUBES?|DEVICES?|DIAPHRAGM|ABDOMEN|UPPER|CHEST|WALL"
    r"|AIRWAYS?|LEFT|RIGHT|AND|OR|THE|OF)\W*)+"
)
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


def cleaned(texts: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """The texts by `clean`, without empty ones and each once; and whether any had marks."""
    results = [clean(text) for text in texts]
    found = dict.fromkeys(text for text, _ in results if text)
    return tuple(found), any(marked for _, marked in results)


def findings_and_impression(report: str) -> tuple[str, str]:
    """The two sections of a report of MIMIC-CXR as they are written; empty where there is none.

    A section begins with a line that begins with its name in capitals and a colon, and ends where
    the next begins. `FINDINGS AND IMPRESSION` and the like count as findings, `CONCLUSION` as
    impression. Names of parts of the body begin no section.
    """
    report = "\n".join(report.splitlines())
    headers = [
        match for match in _HEADER.finditer(report) if not _PARTS_OF_BODY.fullmatch(match[1])
    ]
    found: dict[str, list[str]] = {"findings": [], "impression": []}
    ends = [*(match.start() for match in headers[1:]), len(report)]
    for match, end in zip(headers, ends, strict=False):  # no header, one end
        name = " ".join(match[1].upper().split())
        text = report[match.end() : end].strip()
        if _FINDINGS.match(name):
            found["findings"].append(text)
        elif _IMPRESSION.fullmatch(name):
            found["impression"].append(text)
    findings, impression = (" ".join(filter(None, texts)) for texts in found.values())
    return findings, impression
