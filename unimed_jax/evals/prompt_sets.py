"""Prompt sets: the classes of zero-shot tasks and the sentences that describe them.

A prompt set is a versioned JSON file; packaged sets are ``unimed_jax/evals/prompts/NAME.json``:

    {"name": "phantoms", "version": 1, "tasks": {
      "modality": {"field": "modality", "classes": {"xray": ["a chest X-ray", ...], ...}},
      "busi": {"field": "label", "source": "busi", "classes": {"benign": [...], ...}}}}

``field`` is the field of a sample that holds the true class; ``source``, if given, restricts the
task to the samples of that source. The order of the classes is the order of the logits.
"""

import hashlib
import importlib.resources
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline.io.errors import ConfigError
from input_pipeline.io.files import reason, to_path
from input_pipeline.io.json_objects import unique_keys
from unimed_jax.evals.label_tasks import FIELDS, LabelTask


@dataclass(frozen=True)
class PromptTask(LabelTask):
    """One zero-shot task; the sentences ``prompts[c]`` describe ``classes[c]``."""

    prompts: tuple[tuple[str, ...], ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """All P prompts, class by class."""
        return tuple(sentence for group in self.prompts for sentence in group)

    @property
    def class_index(self) -> tuple[int, ...]:
        """Class of each of the P sentences, for ``classification.class_embeddings``."""
        return tuple(c for c, group in enumerate(self.prompts) for _ in group)


@dataclass(frozen=True)
class PromptSet:
    """A validated prompt set; ``sha256`` is the hash of the file, recorded in results."""

    name: str
    version: int
    tasks: tuple[PromptTask, ...]
    sha256: str


def packaged_names() -> tuple[str, ...]:
    """Names of the packaged prompt sets."""
    files = (importlib.resources.files("unimed_jax.evals") / "prompts").iterdir()
    return tuple(sorted(Path(f.name).stem for f in files if f.name.endswith(".json")))


def load_prompts(name_or_path: str | os.PathLike[str]) -> PromptSet:
    """Reads and validates a prompt set.

    Args:
      name_or_path: name of a packaged set such as 'phantoms', or path of a '.json' file.

    Raises:
      ConfigError: the set or file does not exist or violates the schema; the message names the file
        and the key.
    """
    name = os.fspath(name_or_path)
    if name.endswith(".json"):
        try:
            content = to_path(name).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read the prompt file {name}: {reason(error)}") from error
        return parse_prompts(content, name)
    if name not in packaged_names():
        raise ConfigError(
            f"there is no packaged prompt set {name!r}; valid: {_list(packaged_names())}, or the "
            "path of a .json file"
        )
    resource = importlib.resources.files("unimed_jax.evals") / "prompts" / f"{name}.json"
    return parse_prompts(resource.read_bytes(), f"{name}.json")


def parse_prompts(content: bytes, file: str) -> PromptSet:
    """Parses and validates a prompt file; ``file`` is its name in error messages."""
    try:
        data = json.loads(content, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid JSON: {error}") from error

    def fail(key: str, problem: str) -> ConfigError:
        return ConfigError(f"{file}: {key or 'top level'}: {problem}")

    def mapping(value: Any, key: str, required: set[str], optional: set[str]) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise fail(key, f"must be an object, got {type(value).__name__}")
        if missing := sorted(required - value.keys()):
            raise fail(key, f"lacks {_list(missing)}")
        if unknown := sorted(value.keys() - required - optional):
            known = _list(sorted(required | optional))
            raise fail(key, f"has unknown key {_list(unknown)}; valid: {known}")
        return value

    def text(value: Any, key: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise fail(key, f"must be a non-empty string, got {value!r}")
        return value

    def task(name: str, value: Any) -> PromptTask:
        key = f"tasks.{name}"
        fields = mapping(value, key, {"field", "classes"}, {"source"})
        if fields["field"] not in FIELDS:
            raise fail(f"{key}.field", f"must be one of {_list(FIELDS)}, got {fields['field']!r}")
        classes = fields["classes"]
        if not isinstance(classes, dict) or len(classes) < 2:
            raise fail(f"{key}.classes", "must map at least two classes to lists of prompts")
        for label, prompts in classes.items():
            text(label, f"{key}.classes")
            if not isinstance(prompts, list) or not prompts:
                raise fail(f"{key}.classes.{label}", "must be a list of at least one prompt")
            for i, prompt in enumerate(prompts):
                text(prompt, f"{key}.classes.{label}[{i}]")
        return PromptTask(
            name=name,
            field=fields["field"],
            source=text(fields["source"], f"{key}.source") if "source" in fields else None,
            classes=tuple(classes),
            prompts=tuple(tuple(prompts) for prompts in classes.values()),
        )

    top = mapping(data, "", {"name", "version", "tasks"}, set())
    if type(top["version"]) is not int:
        raise fail("version", f"must be an integer, got {top['version']!r}")
    if not isinstance(top["tasks"], dict) or not top["tasks"]:
        raise fail("tasks", "must be an object with at least one task")
    return PromptSet(
        name=text(top["name"], "name"),
        version=top["version"],
        tasks=tuple(task(name, value) for name, value in top["tasks"].items()),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _list(values: Iterable[str]) -> str:
    return ", ".join(repr(value) for value in values)
