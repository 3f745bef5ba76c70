"""The review file: rejected captions of incomplete sets, for a person to decide on.

JSON Lines, one object per caption:

    {"decision": "", "text": "Brain MRI with a large meningioma.", "reasons": {"attributes": "..."},
     "modality": "mri", "source": "", "labels": ["meningioma"], "attributes": {},
     "provenance": {...}}

Set `decision` to `accept`, after editing `text` if necessary, or to `reject`; an empty one is
undecided. Pass the file with `--reviewed=FILE`; lines may also be written by hand.
"""

import dataclasses
import json
import re
from collections.abc import Iterable

from input_pipeline.captioning import checks
from input_pipeline.captioning.generate import Captioned
from input_pipeline.captioning.label_sets import LabelSet
from input_pipeline.captioning.templates import Caption, Provenance
from input_pipeline.captioning.vocabulary import Vocabulary
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import PathLike, to_path, write_text_atomically

DECISIONS = ("", "accept", "reject")


def write(path: PathLike, results: Iterable[Captioned]) -> int:
    """Writes the rejected captions of incomplete sets; returns their number."""
    lines = []
    for result in results:
        if len(result.accepted) >= result.wanted:
            continue
        for refusal in result.refused:
            content = {"decision": "", "text": refusal.caption.text, "reasons": refusal.reasons}
            content |= dataclasses.asdict(result.label_set)
            content["attributes"] = dict(result.label_set.attributes)
            content["provenance"] = dataclasses.asdict(refusal.caption.provenance)
            lines.append(json.dumps(content, ensure_ascii=False) + "\n")
    write_text_atomically(path, "".join(lines))
    return len(lines)


def has_decisions(path: PathLike) -> bool:
    """Whether a review file exists in which a person has made decisions."""
    path = to_path(path)
    if not path.exists():
        return False
    decisions = (re.search(r'"decision":\s*"([^"]*)"', line) for line in _lines(path))
    return any(match and match[1] for match in decisions)


def read(path: PathLike, vocabulary: Vocabulary) -> dict[str, list[Caption]]:
    """The captions that a person accepted, by `LabelSet.key`; equal texts of a set once.

    Their provenance says `reviewed` and lists the checks that the text passes as it now is.

    Raises:
      CorpusError: names the line and what is wrong with it.
    """
    accepted: dict[str, dict[str, Caption]] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"reviewed captions {path}, line {number}"
        try:
            content = json.loads(line)
            decision, text = content.get("decision", ""), " ".join(content["text"].split())
            label_set = LabelSet(
                modality=content["modality"],
                labels=tuple(content["labels"]),
                source=content.get("source", ""),
                attributes=tuple(content.get("attributes", {}).items()),
            )
            provenance = Provenance.from_json(content.get("provenance", {"provider": "person"}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorpusError(f"{where}: not a reviewed caption: {error!r}") from error
        if decision not in DECISIONS:
            raise CorpusError(f"{where}: decision {decision!r} is none of {DECISIONS}")
        if decision != "accept":
            continue
        if not text:
            raise CorpusError(f"{where}: an accepted caption has no text")
        known = accepted.setdefault(label_set.key, {})
        failed = checks.refusals(text, checks.Context(label_set, vocabulary, list(known)))
        passed = tuple(name for name in checks.CHECKS if name not in failed)
        known[text] = Caption(text, dataclasses.replace(provenance, reviewed=True, checks=passed))
    return {key: list(captions.values()) for key, captions in accepted.items()}


def _lines(path: PathLike) -> list[str]:
    try:
        return to_path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read reviewed captions {path}: {error}") from error
