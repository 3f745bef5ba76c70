"""Prompts for a corpus without a prompt file: from its labels, by the grammar of captions.

Every class gets what ``unimed-jax caption --provider=template`` writes for its label, every
modality the names of its images. Prompts written for a task score higher; these are a beginning.
"""

import collections
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.captioning import grammar, vocabulary
from input_pipeline.captioning.label_sets import LabelSet
from unimed_jax.evals.embeddings import SampleMetadata
from unimed_jax.evals.label_tasks import LabelTask, tasks_of_corpus
from unimed_jax.evals.prompt_sets import PromptSet, PromptTask

PROMPTS_PER_CLASS = 8


def from_labels(samples: Sequence[SampleMetadata]) -> PromptSet | None:
    """The modality, and the labels of each source, with prompts for every class.

    Args:
      samples: the samples to score; their labels are the classes.

    Returns:
      The prompt set; None if the samples have neither two modalities nor two labels of one source.
    """
    words = vocabulary.load()
    tasks = [
        PromptTask(
            name=task.name,
            field=task.field,
            source=task.source,
            classes=task.classes,
            prompts=tuple(_prompts(task, name, samples, words) for name in task.classes),
        )
        for task in tasks_of_corpus(samples, samples, min_groups=1)
    ]
    if not tasks:
        return None
    digest = hashlib.sha256(json.dumps(as_json(tasks)).encode()).hexdigest()
    return PromptSet("corpus", 1, tuple(tasks), digest)


def as_json(tasks: Sequence[PromptTask]) -> Mapping[str, Any]:
    """The content of a prompt file with these tasks, see ``prompt_sets``."""
    entries = {}
    for task in tasks:
        classes = dict(zip(task.classes, map(list, task.prompts), strict=True))
        source = {"source": task.source} if task.source is not None else {}
        entries[task.name] = {"field": task.field, **source, "classes": classes}
    return {"name": "corpus", "version": 1, "tasks": entries}


def _prompts(
    task: LabelTask, name: str, samples: Sequence[SampleMetadata], words: vocabulary.Vocabulary
) -> tuple[str, ...]:
    if task.field == "modality":
        return tuple(grammar.image_names(LabelSet(name, ()), words))[:PROMPTS_PER_CLASS]
    modalities = collections.Counter(
        s.modality for s in samples if task.includes(s.source) and name in s.labels
    )
    sentences = (
        grammar.captions(LabelSet(modality, (name,)), words, seed=0)
        for modality, _ in modalities.most_common()
    )
    # modalities take turns
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*sentences))
    return tuple(itertools.islice(filter(None, mixed), PROMPTS_PER_CLASS))
