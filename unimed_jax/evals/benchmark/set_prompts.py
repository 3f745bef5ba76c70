"""The prompts of each set of a suite: packaged ones, or those of a prompt file.

A prompt file names the classes of a set by our names, by what the set's files call them, or by
names of its own in our order.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from input_pipeline.io.errors import ConfigError
from unimed_jax.evals.benchmark.spec import SetSpec, Suite, all_set_keys
from unimed_jax.evals.prompt_sets import PromptSet, PromptTask


@dataclass(frozen=True)
class SetPrompts:
    """The prompts of a set.

    Attributes:
      task: the classes, named and ordered as in the file of the set, with all their prompts.
      sha256: of the prompt file, or of the file of the set.
      origin: 'packaged' or '--prompts'.
      by_order: the file's own name of each class that was told by its place; empty for none.
    """

    task: PromptTask
    sha256: str
    origin: str = "packaged"
    by_order: tuple[str, ...] = ()


def packaged(spec: SetSpec) -> SetPrompts:
    """The prompts in the file of a set."""
    return SetPrompts(spec.prompts, spec.sha256)


def from_file(suite: Suite, prompts: PromptSet, file: str) -> dict[str, SetPrompts]:
    """Key -> prompts for the sets of `suite` that a prompt file names.

    Sets of other suites, or that were not chosen, are skipped, so that one file serves all.

    Raises:
      ConfigError: a task is no set of any suite, or its classes are not those of the set.
    """
    known = all_set_keys()
    specs = {spec.key: spec for spec in suite.sets}
    found = {}
    for task in prompts.tasks:
        where = f"{file}: tasks.{task.name}"
        if task.name not in known:
            raise ConfigError(f"{where}: no set of a suite; {suite.name} has {_keys(suite)}")
        if spec := specs.get(task.name):
            order, by_order = _in_label_order(spec, task.classes, f"{where}.classes")
            in_order = dataclasses.replace(
                task,
                classes=spec.prompts.classes,
                prompts=tuple(task.prompts[i] for i in order),
            )
            found[task.name] = SetPrompts(in_order, prompts.sha256, "--prompts", by_order)
    return found


def _in_label_order(
    spec: SetSpec, keys: Sequence[str], where: str
) -> tuple[list[int], tuple[str, ...]]:
    """(place in `keys` of each class, the keys that only their place tells).

    A key is a name of ours or a label of the files, whatever its case and punctuation. Other keys
    stand for the class at their place, if no known key contradicts that.
    """
    names = spec.prompts.classes
    if len(keys) == len(names):
        for known in (names, spec.file_labels):
            if sorted(map(_plain, keys)) == sorted(map(_plain, known)):
                places = {_plain(key): place for place, key in enumerate(keys)}
                return [places[_plain(name)] for name in known], ()
        unknown = tuple(
            key
            for key, name, label in zip(keys, names, spec.file_labels, strict=True)
            if _plain(key) not in (_plain(name), _plain(label))
        )
        ours = {_plain(text) for text in (*names, *spec.file_labels)}
        if not any(_plain(key) in ours for key in unknown):
            return list(range(len(names))), unknown
    raise ConfigError(
        f"{where}: must be {', '.join(names)}, or as many names of your own in this order; found "
        f"{', '.join(keys)}"
    )


def _plain(text: str) -> str:
    """Lower case, without spaces and punctuation."""
    return re.sub(r"[\W_]+", "", text.lower())


def _keys(suite: Suite) -> str:
    return ", ".join(spec.key for spec in (*suite.sets, *suite.not_chosen))
