"""Captions from labels: a JSON file of templates per class, of captions per label set, or both.

    {
      "version": 2,
      "modality_names": {"xray": "X-ray", "mri": "MRI"},
      "sources": {
        "covid_ct": {"COVID-19": ["Axial chest CT with ground-glass opacities.", "..."]}
      },
      "modalities": {
        "mri": {"glioma": ["{modality} of the brain with a glioma."],
                "*":      ["{modality} showing {label}."]}
      },
      "label_sets": [
        {"source": "", "modality": "xray", "labels": ["edema", "effusion"],
         "attributes": {"view": "frontal"},
         "captions": [{"text": "Frontal chest film with edema and effusion.", "provenance": 0}]}
      ],
      "provenance": [{"provider": "openai", "model": "...", "prompt_version": "chat-1", ...}]
    }

Templates are written by hand, label sets by `tools/caption_labels.py`. A row takes the captions of
its label set: that with its source, labels and attributes, else that of any source (""), else the
same without attributes. Without such a set, each label contributes its captions: those of the label
set with this label alone, else its templates, which are looked up under ``sources`` by source,
then under ``modalities`` by modality, first by the label itself and then by ``*``; the first list
that exists is used in full. Slots: ``{label}`` is the label, ``{modality}`` its name in
``modality_names``, or the modality as it is. Every key but ``version`` may be left out. Attributes
stand among the labels of a row as ``name=value`` (``view=frontal``).
"""

import dataclasses
import functools
import hashlib
import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.captioning.label_sets import LabelSet
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import PathLike, to_path, write_text_atomically

VERSION = 2  # version 1, without label sets, can be read
ANY_LABEL = "*"

_SLOTS = {"label", "modality"}
_KEYS = {"version", "modality_names", "sources", "modalities", "label_sets", "provenance"}
_SET_KEYS = {"source", "modality", "labels", "attributes", "captions"}

_Classes = Mapping[str, Mapping[str, tuple[str, ...]]]  # source or modality -> label -> templates


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The origin of a generated caption.

    Attributes:
      provider: `openai` (a model), `template` (the grammar), `templates` (a file written by hand),
        `person`, `released` (with the source, nothing else known).
      prompt_version: version of the prompt or grammar; for a file, its SHA-256, shortened.
      model: the requested model; empty if none.
      seed: seed of the request or the grammar.
      time: UTC, ISO 8601.
      checks: names of the checks that the caption passed (`captioning/checks.py`).
      reviewed: a person accepted it, perhaps after editing it.
    """

    provider: str
    prompt_version: str = ""
    model: str = ""
    seed: int | None = None
    time: str = ""
    checks: tuple[str, ...] = ()
    reviewed: bool = False

    @functools.cached_property
    def as_json(self) -> str:
        """Compact and canonical: what records hold. Empty fields are left out."""
        fields = dataclasses.asdict(self)
        kept = {k: v for k, v in fields.items() if v is not False and v not in ("", None, ())}
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Provenance":
        """Raises TypeError for a field that is unknown or missing."""
        return cls(**{**fields, "checks": tuple(fields.get("checks", ()))})


@dataclasses.dataclass(frozen=True)
class Caption:
    """A generated caption and its origin."""

    text: str
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class CaptionTemplates:
    """Templates and label sets of a file; without a file, there are none.

    `label_sets` is indexed by `LabelSet.key`. `path` is for messages only
    and not part of the `repr`.
    """

    sources: _Classes = dataclasses.field(default_factory=dict)
    modalities: _Classes = dataclasses.field(default_factory=dict)
    modality_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label_sets: Mapping[str, tuple[Caption, ...]] = dataclasses.field(default_factory=dict)
    version: str = ""
    path: str = dataclasses.field(default="", repr=False, compare=False)

    def captions_of(self, source: str, modality: str, labels: Sequence[str]) -> tuple[Caption, ...]:
        """The captions of a row with these labels, by the rules at the top of this file."""
        requested = LabelSet.of(modality, labels, source)
        for label_set in (requested, dataclasses.replace(requested, attributes=())):
            for origin in (source, ""):
                key = dataclasses.replace(label_set, source=origin).key
                if key in self.label_sets:
                    return self.label_sets[key]
        if len(requested.labels) > 1:
            return tuple(
                caption
                for label in requested.labels
                for caption in self.captions_of(source, modality, (label,))
            )
        written = Provenance("templates", self.version)
        return tuple(
            Caption(text, written)
            for label in requested.labels
            for text in self.captions(source, modality, label)
        )

    def captions(self, source: str, modality: str, label: str) -> tuple[str, ...]:
        """The filled templates of one label, empty if there are none."""
        for classes in (self.sources.get(source, {}), self.modalities.get(modality, {})):
            for key in (label, ANY_LABEL):
                if key in classes:
                    name = self.modality_names.get(modality, modality)
                    return tuple(t.format(label=label, modality=name) for t in classes[key])
        return ()

    def how_to_add(self, source: str, modality: str, label: str) -> str:
        """How to add templates for a label, for messages."""
        if not self.path:
            return "give a caption file (--captions)"
        keys = f'"sources" / "{source}" / "{label}" or "modalities" / "{modality}" / "{label}"'
        return f"add {keys} to {self.path}"


def load(path: PathLike) -> CaptionTemplates:
    """Reads and checks a caption file. Raises CorpusError, which names the file and the key."""
    try:
        data = to_path(path).read_bytes()
        content = json.loads(data)
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot read captions {path}: {error}") from error

    def expect(condition: bool, where: str, what: str) -> None:
        if not condition:
            raise CorpusError(f"captions {path}: {where} {what}")

    expect(isinstance(content, dict), "the file", "must hold an object")
    expect(content.get("version") in (1, VERSION), '"version"', f"must be {VERSION} (or 1)")
    unknown = sorted(content.keys() - _KEYS)
    expect(not unknown, f"key {unknown}", f"is unknown; valid: {sorted(_KEYS)}")
    names = content.get("modality_names", {})
    expect(_is_mapping_of(str, names), '"modality_names"', "must map modalities to names")

    def classes_of(section: str) -> _Classes:
        groups = content.get(section, {})
        expect(_is_mapping_of(dict, groups), f'"{section}"', "must map names to objects")
        for group, classes in groups.items():
            for label, templates in classes.items():
                where = f'"{section}" / "{group}" / "{label}"'
                expect(
                    isinstance(templates, list)
                    and bool(templates)
                    and all(isinstance(t, str) and t.strip() for t in templates),
                    where,
                    "must be a list of one or more non-empty texts",
                )
                for template in templates:
                    expect(_has_known_slots(template), where, f"has a wrong slot: {template!r}")
        return {
            group: {label: tuple(templates) for label, templates in classes.items()}
            for group, classes in groups.items()
        }

    return CaptionTemplates(
        sources=classes_of("sources"),
        modalities=classes_of("modalities"),
        modality_names=names,
        label_sets=_label_sets(content, expect),
        version=f"sha256-{hashlib.sha256(data).hexdigest()[:16]}",
        path=str(path),
    )


def _label_sets(
    content: Mapping[str, Any], expect: Callable[[bool, str, str], None]
) -> dict[str, tuple[Caption, ...]]:
    table = content.get("provenance", [])
    expect(isinstance(table, list), '"provenance"', "must be a list")
    provenance = []
    for number, fields in enumerate(table):
        try:
            provenance.append(Provenance.from_json(fields))
        except (TypeError, AttributeError) as error:
            expect(False, f'"provenance" / {number}', f"is not one: {error}")
    label_sets = content.get("label_sets", [])
    expect(isinstance(label_sets, list), '"label_sets"', "must be a list")
    by_key: dict[str, tuple[Caption, ...]] = {}
    for number, entry in enumerate(label_sets):
        where = f'"label_sets" / {number}'
        expect(isinstance(entry, dict) and entry.keys() <= _SET_KEYS, where, f"keys: {_SET_KEYS}")
        labels, captions = entry.get("labels"), entry.get("captions")
        attributes = entry.get("attributes", {})
        expect(
            isinstance(entry.get("modality"), str)
            and isinstance(entry.get("source", ""), str)
            and isinstance(labels, list)
            and bool(labels)
            and all(isinstance(label, str) for label in labels)
            and _is_mapping_of(str, attributes),
            where,
            'needs "modality", a text, "labels", a list of texts, and texts as "attributes"',
        )
        expect(isinstance(captions, list), where, 'needs "captions", a list')
        label_set = LabelSet(
            entry["modality"], tuple(labels), entry.get("source", ""), tuple(attributes.items())
        )
        expect(label_set.key not in by_key, where, f"repeats the set {label_set}")
        for caption in captions:
            expect(
                isinstance(caption, dict)
                and isinstance(caption.get("text"), str)
                and bool(caption["text"].strip())
                and isinstance(caption.get("provenance"), int)
                and 0 <= caption["provenance"] < len(provenance),
                where,
                f'has a caption that is not {{"text": ..., "provenance": index}}: {caption!r}',
            )
        if captions:  # a set without captions falls back to its labels
            by_key[label_set.key] = tuple(
                Caption(caption["text"], provenance[caption["provenance"]]) for caption in captions
            )
    return by_key


def save_label_sets(
    path: PathLike, label_sets: Iterable[tuple[LabelSet, Sequence[Caption]]]
) -> None:
    """Writes a caption file of label sets, atomically."""
    table: dict[str, int] = {}
    entries = []
    for label_set, captions in label_sets:
        texts = [
            {"text": c.text, "provenance": table.setdefault(c.provenance.as_json, len(table))}
            for c in captions
        ]
        entry = dataclasses.asdict(label_set) | {"attributes": dict(label_set.attributes)}
        entries.append(entry | {"captions": texts})
    content = {
        "version": VERSION,
        "label_sets": entries,
        "provenance": [json.loads(provenance) for provenance in table],
    }
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _is_mapping_of(kind: type, value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, kind) for v in value.values())


def _has_known_slots(template: str) -> bool:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:  # a brace that is not closed
        return False
    return all(
        slot is None or (slot in _SLOTS and not spec and not conversion)
        for _, slot, spec, conversion in parts
    )
