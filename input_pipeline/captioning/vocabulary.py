"""Medical words: findings with synonyms and broader terms, modalities, attributes, negation.

The table is `data/vocabulary.json`; a user's file in the same format adds findings and modalities
or replaces single entries. An unknown label is its only word.
"""

import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.captioning.label_sets import LabelSet
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import PathLike, to_path

VERSION = 1
_EXTENDABLE = ("findings", "modalities", "modality_aliases")
_FINDING_KEYS = {"synonyms", "phrases", "is_a", "negates", "implies", "num_captions"}


@dataclasses.dataclass(frozen=True)
class Mention:
    """A normalized term in a text, and whether it is negated there."""

    text: str
    negated: bool


@dataclasses.dataclass(frozen=True)
class Claim:
    """The findings that a label set asserts and those that it denies."""

    present: tuple[str, ...]
    absent: tuple[str, ...]
    normal: bool


class Vocabulary:
    """The table with its regular expressions.

    Attributes:
      content: the JSON, for simple look-ups.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self._findings: Mapping[str, Mapping[str, Any]] = content["findings"]
        names = {normalise(name): name for name in self._findings}
        synonyms = {
            normalise(term): name
            for name, entry in self._findings.items()
            for term in entry["synonyms"]
        }
        self._by_label = synonyms | names
        self._by_term: dict[str, list[str]] = {}  # what a term in a text may stand for
        for name, entry in self._findings.items():
            # An entry for an absence is found in texts as a negated mention of what is absent.
            for term in () if "negates" in entry else (name, *entry["synonyms"]):
                self._by_term.setdefault(normalise(term), []).append(name)

    def finding(self, label: str) -> str:
        """The name of a label's finding in the table; the label itself if unknown."""
        unknown = " ".join(re.sub(r"[_/]+", " ", label).split())
        return self._by_label.get(normalise(label), unknown)

    def terms(self, finding: str) -> tuple[str, ...]:
        """The words for a finding, its name first."""
        return (finding, *self._findings.get(finding, {}).get("synonyms", ()))

    def phrases(self, finding: str) -> tuple[str, ...]:
        """The words for a finding that fit into a sentence; see `grammar`."""
        return tuple(self._findings.get(finding, {}).get("phrases", ())) or self.terms(finding)

    def broader(self, finding: str) -> set[str]:
        """The finding and all that it is a kind of: naming these adds nothing."""
        reached, todo = set(), [finding]
        while todo:
            name = todo.pop()
            if name not in reached:
                reached.add(name)
                todo += self._findings.get(name, {}).get("is_a", ())
        return reached

    def claim(self, label_set: LabelSet) -> Claim:
        """What the labels say; a label that begins with 'no' or 'without' is a finding's absence.

        A label that is itself an entry (such as 'no diabetic retinopathy') keeps its own words.
        """
        present, absent, normal = [], [], False
        normal_labels = {normalise(label) for label in self.content["normal"]["labels"]}
        for label in label_set.labels:
            finding = self.finding(label)
            negated = re.fullmatch(r"(?:no|without|not|absent|negative for)\s+(.+)", label, re.I)
            if normalise(label) in normal_labels:
                normal = True
            elif "negates" in self._findings.get(finding, {}):
                absent.append(self._findings[finding]["negates"])
            elif negated:
                absent.append(self.finding(negated[1]))
            else:
                present.append(finding)
        return Claim(tuple(present), tuple(absent), normal)

    def attributes(self, label_set: LabelSet) -> dict[str, str]:
        """The attributes of a set, with those that its labels imply (severity of a grade)."""
        implied: dict[str, str] = {}
        for label in label_set.labels:
            implied |= self._findings.get(self.finding(label), {}).get("implies", {})
        return implied | dict(label_set.attributes)

    def num_captions(self, label_set: LabelSet, default: int) -> int:
        """The number of captions of a set; the table asks for more for some labels."""
        entries = (self._findings.get(self.finding(label), {}) for label in label_set.labels)
        return max([default, *(entry.get("num_captions", 0) for entry in entries)])

    def modality(self, name: str) -> str:
        """The key of a modality in the table; the name in lower case if it has none."""
        return self.content["modality_aliases"].get(name.lower(), name.lower())

    def findings_in(self, text: str, extra: Sequence[str] = ()) -> Iterator[tuple[str, Mention]]:
        """(finding, mention) for every finding that the text names; longer terms win.

        `extra` are findings that the table may not have (labels of the user).
        """
        unknown = {normalise(name): [name] for name in extra if name not in self._findings}
        for mention in self._mentions(text, _pattern((*self._by_term, *unknown))):
            term = normalise(mention.text)
            for form in (term, *_singulars(term)):
                if names := unknown.get(form) or self._by_term.get(form):
                    for name in names:
                        yield name, mention
                    break

    def terms_in(self, text: str, terms: Iterable[str]) -> list[Mention]:
        """Mentions of any of the terms."""
        return list(self._mentions(text, _pattern(tuple(terms))))

    def _mentions(self, text: str, pattern: re.Pattern) -> Iterator[Mention]:
        text = normalise(text)
        for match in pattern.finditer(text):
            yield Mention(match[0], self._is_negated(text, match.start(), match.end()))

    def _is_negated(self, text: str, start: int, end: int) -> bool:
        """NegEx in short (Chapman et al. 2001): a cue before within reach, or one just behind."""
        rules = self.content["negation"]
        # Commas do not end a scope: "no mass, effusion or edema".
        before = re.split(r"[.;:]", text[:start])[-1].split()[-rules["reach"] :]
        scope = " ".join(before)
        for word in rules["ends_scope"]:
            scope = re.split(rf"\b{word}\b", scope)[-1]
        if _pattern(tuple(rules["before"])).search(scope):
            return True
        after = re.split(r"[.;:,]", text[end:])[0].strip()
        return any(after.startswith(normalise(cue)) for cue in rules["after"])


def normalise(text: str) -> str:
    """Lower case, American spelling of tumour, hyphens and runs of space as one space."""
    text = re.sub(r"[\s\-\u2010-\u2015_/]+", " ", text.lower()).strip()
    return text.replace("tumour", "tumor").replace("oedema", "edema")


@functools.lru_cache(maxsize=512)
def _pattern(terms: tuple[str, ...]) -> re.Pattern:
    """Matches any of the terms as whole words in normalised text, in the plural too."""
    forms = sorted({normalise(term) for term in terms if term}, key=len, reverse=True)
    alternatives = "|".join(re.escape(form) for form in forms) or r"(?!)"
    return re.compile(rf"(?<!\w)(?:{alternatives})(?:s|es)?(?!\w)")


def _singulars(term: str) -> Iterator[str]:
    for ending in ("es", "s"):
        if term.endswith(ending):
            yield term.removesuffix(ending)


def load(extension: PathLike | None = None) -> Vocabulary:
    """The built-in table, with entries of the user's file added or replaced.

    Raises:
      CorpusError: the user's file cannot be read or has another format; names the key.
    """
    data = importlib.resources.files("input_pipeline.captioning") / "data" / "vocabulary.json"
    content = json.loads(data.read_text("utf-8"))
    if extension is None:
        return Vocabulary(content)
    try:
        added = json.loads(to_path(extension).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot read vocabulary {extension}: {error}") from error
    if not isinstance(added, dict) or added.get("version") != VERSION:
        raise CorpusError(f'vocabulary {extension}: "version" must be {VERSION}')
    for key in added.keys() - {"version"}:
        if key not in _EXTENDABLE or not isinstance(added[key], dict):
            raise CorpusError(f"vocabulary {extension}: {key!r} must be one of {_EXTENDABLE}")
        content[key] = content[key] | added[key]
    for name, entry in content["findings"].items():
        where = f"vocabulary {extension}: findings / {name!r}"
        if not isinstance(entry, dict) or not _is_texts(entry.get("synonyms")):
            raise CorpusError(f'{where} needs "synonyms", a list of texts')
        if unknown := entry.keys() - _FINDING_KEYS:
            raise CorpusError(f"{where}: {sorted(unknown)} unknown; valid: {sorted(_FINDING_KEYS)}")
        related = [*entry.get("is_a", ()), *filter(None, [entry.get("negates")])]
        if missing := [kind for kind in related if kind not in content["findings"]]:
            raise CorpusError(f"{where}: {missing[0]!r} is no finding of the table")
    for name, terms in content["modalities"].items():
        if not _is_texts(terms):
            raise CorpusError(f"vocabulary {extension}: modalities / {name!r} must list texts")
    return Vocabulary(content)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text for text in value)
