"""Captions from labels: a JSON file of templates per class.

    {
      "version": 1,
      "modality_names": {"xray": "X-ray", "mri": "MRI"},
      "sources": {
        "covid_ct": {"COVID-19": ["Axial chest CT with ground-glass opacities.", "..."]}
      },
      "modalities": {
        "mri": {"glioma": ["{modality} of the brain with a glioma."],
                "*":      ["{modality} showing {label}."]}
      }
    }

The templates of a label are looked up under ``sources`` by source, then under ``modalities`` by
modality, first by the label itself and then by ``*``; the first list found is used, whole. Slots:
``{label}`` is the label, ``{modality}`` its name in ``modality_names``, or the modality as it is.
``modality_names``, ``sources`` and ``modalities`` may each be left out.
"""

import dataclasses
import json
import os
import pathlib
import string
from collections.abc import Mapping
from typing import Any

from input_pipeline.errors import CorpusError

VERSION = 1
ANY_LABEL = "*"

_SLOTS = {"label", "modality"}
_KEYS = {"version", "modality_names", "sources", "modalities"}

_Classes = Mapping[str, Mapping[str, tuple[str, ...]]]  # source or modality -> label -> templates


@dataclasses.dataclass(frozen=True)
class CaptionTemplates:
    """Templates as read from a file; without one, no label has any.

    `path` serves messages only and is no part of the identity.
    """

    sources: _Classes = dataclasses.field(default_factory=dict)
    modalities: _Classes = dataclasses.field(default_factory=dict)
    modality_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    path: str = dataclasses.field(default="", repr=False, compare=False)

    def captions(self, source: str, modality: str, label: str) -> tuple[str, ...]:
        """The filled templates of a label, empty if there are none."""
        for classes in (self.sources.get(source, {}), self.modalities.get(modality, {})):
            for key in (label, ANY_LABEL):
                if key in classes:
                    name = self.modality_names.get(modality, modality)
                    return tuple(t.format(label=label, modality=name) for t in classes[key])
        return ()

    def how_to_add(self, source: str, modality: str, label: str) -> str:
        """Where templates for a label would go, for a message to the user."""
        if not self.path:
            return "give a template file (--captions)"
        keys = f'"sources" / "{source}" / "{label}" or "modalities" / "{modality}" / "{label}"'
        return f"add {keys} to {self.path}"


def load(path: str | os.PathLike[str]) -> CaptionTemplates:
    """Reads and checks a template file. Raises CorpusError naming the file and the key at fault."""
    try:
        content = json.loads(pathlib.Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot read caption templates {path}: {error}") from error

    def expect(condition: bool, where: str, what: str) -> None:
        if not condition:
            raise CorpusError(f"caption templates {path}: {where} {what}")

    expect(isinstance(content, dict), "the file", "must hold an object")
    expect(content.get("version") == VERSION, '"version"', f"must be {VERSION}")
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
        path=os.fspath(path),
    )


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
