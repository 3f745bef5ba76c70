"""Prompts for a language model, and parsing of captions from its response.

Two endpoints: `chat` for models with a chat template (one request for all captions of a set), and
`completion` for base models, which continue a list of worked examples by one line per request.
Examples and wording are data, `data/prompts.json`; its version is part of every cache key.
"""

import contextlib
import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.captioning.label_sets import LabelSet

ENDPOINTS = ("chat", "completion")
TYPICAL_CAPTION_TOKENS = 25  # for estimates
_TOKENS_PER_CAPTION = 60  # a limit, about twice what 25 words take
_MAX_REFUSED = 4  # shown in a prompt: more of them crowd out the examples


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of the model. `text` is the prompt, or the user's message after `system`."""

    endpoint: str
    text: str
    system: str
    max_tokens: int
    num_captions: int
    seed: int

    @property
    def num_prompt_tokens(self) -> int:
        """A rough count, four characters to a token, for estimates of cost."""
        return (len(self.system) + len(self.text)) // 4 + 1


@functools.cache
def _data() -> Mapping[str, Any]:
    data = importlib.resources.files("input_pipeline.captioning") / "data" / "prompts.json"
    return json.loads(data.read_text("utf-8"))


def version(endpoint: str) -> str:
    """Names the prompt in cache keys and in the provenance of captions."""
    return f"{endpoint}-{_data()['version']}"


def requests(
    endpoint: str, label_set: LabelSet, count: int, refused: Mapping[str, str], seed: int
) -> list[Request]:
    """The calls that ask for `count` captions.

    Args:
      endpoint: one of `ENDPOINTS`.
      refused: rejected captions -> the reason; the last few are shown.
      seed: seed of the first request; later requests count up from it.
    """
    shown = list(refused.items())[-_MAX_REFUSED:]
    if endpoint == "chat":
        parts = [_describe(label_set)]
        if shown:
            parts.append(_data()["refused"])
            parts += [f"- {caption} ({reason})" for caption, reason in shown]
        system = _data()["chat"].format(count=count)
        tokens = _TOKENS_PER_CAPTION * count
        return [Request(endpoint, "\n".join(parts), system, tokens, count, seed)]
    # The examples come first and are constant, so that a server can cache them.
    lines = [
        f"Modality: {e['modality']}. Label: {e['labels']}.\nCaption: {e['caption']}\n"
        for e in _examples(label_set.modality)
    ]
    # The reason comes before the caption: a base model would otherwise append one to its caption.
    lines += [f"Refused because it {reason}: {caption}\n" for caption, reason in shown]
    text = "\n".join([*lines, f"{_describe(label_set)}\nCaption:"])
    return [
        Request(endpoint, text, "", _TOKENS_PER_CAPTION, 1, seed + index) for index in range(count)
    ]


def captions(request: Request, response: str) -> list[str]:
    """The captions in a response: a JSON list of texts, or one per line, markers removed."""
    if request.endpoint == "completion":
        return [clean] if (clean := _clean(response.strip().partition("\n")[0])) else []
    lines: Sequence[object] = response.splitlines()
    if start := re.search(r"\[\s*\"", response):
        with contextlib.suppress(ValueError):  # a bracket in a sentence
            lines, _ = json.JSONDecoder().raw_decode(response[start.start() :])
    cleaned = (_clean(line) for line in lines if isinstance(line, str))
    # Neither a code fence nor an introduction ("Here are ten captions:") is a caption.
    return [line for line in cleaned if line and not line.startswith("```") and line[-1] != ":"]


def _examples(modality: str) -> list[Mapping[str, str]]:
    """All examples, those of the modality last, next to the request."""
    return sorted(_data()["examples"], key=lambda example: example["modality"] == modality)


def _describe(label_set: LabelSet) -> str:
    attributes = "".join(
        f" {name.replace('_', ' ').capitalize()}: {value}." for name, value in label_set.attributes
    )
    return f"Modality: {label_set.modality}. Label: {', '.join(label_set.labels)}.{attributes}"


def _clean(line: str) -> str:
    """A caption without list marker, quotation marks and doubled space."""
    line = re.sub(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s+", "", line)
    return " ".join(line.split()).strip("\"'“”` ")
