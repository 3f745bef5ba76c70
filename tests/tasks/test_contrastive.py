"""What the contrastive task says of its data before the first step."""

import jax
import numpy as np

from unimed_jax import tasks
from unimed_jax.distributed import sharding
from unimed_jax.training.data_loader import DataLoader


def test_captions_that_will_be_cut_are_counted(tiny_config, phantom_corpus, tmp_path):
    config = tiny_config()
    task = tasks.create(config, str(tmp_path))
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    loader = DataLoader(config, task, phantom_corpus, mesh)
    records = list(loader.first_records(30))
    assert len(records) == 30
    assert task.data_notes(records) == ()

    config.model.text.context_length = 8
    task = tasks.create(config, str(tmp_path))
    (note,) = task.data_notes(records)
    assert note.startswith("captions longer than model.text.context_length=8 tokens are cut: ")
    captions = [c for record in records for c in _captions(record)]
    long = np.array(task.tokenizer.lengths(captions)) > 8
    assert f"{long.sum()} of the first {len(captions)} ({long.mean():.1%})" in note


def _captions(record: bytes) -> tuple[str, ...]:
    from input_pipeline.records import decode

    return decode(record).captions
