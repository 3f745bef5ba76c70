"""The contrastive task: what it says of its data, and the labels that it gives to its loss."""

import jax
import numpy as np
import pytest
from helpers import corpora

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
    assert not task.data_notes(records)

    config.model.text.context_length = 8
    task = tasks.create(config, str(tmp_path))
    (note,) = task.data_notes(records)
    assert note.startswith("captions longer than model.text.context_length=8 tokens are cut: ")
    captions = [c for record in records for c in _captions(record)]
    long = np.array(task.tokenizer.lengths(captions)) > 8
    assert f"{long.sum()} of the first {len(captions)} ({long.mean():.1%})" in note


@pytest.mark.parametrize("same_label", ["ignored", "positive"])
def test_the_loss_is_given_the_labels_of_the_records(
    tiny_config, phantom_corpus, tmp_path, same_label
):
    config = tiny_config(loss__same_label=same_label, loss__max_labels=3)
    task = tasks.create(config, str(tmp_path))
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    loader = DataLoader(config, task, phantom_corpus, mesh)
    ids, batch = next(loader.read(0, 1))
    spec = task.batch_spec(config.batch_size)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in spec.items()
    }
    samples = corpora.samples_of(phantom_corpus)
    sets = [(samples[name].modality, samples[name].labels) for name in ids]
    labels = np.asarray(batch["labels"])
    assert len(set(sets)) < len(sets)
    same = np.array([[a == b for b in sets] for a in sets])
    np.testing.assert_array_equal((labels[:, None] == labels[None]).all(-1), same)

    params, key = task.init(jax.random.key(0)), jax.random.key(1)
    with jax.set_mesh(mesh):
        found, _ = task.loss(params, batch, key)
        plain = tasks.create(tiny_config(), str(tmp_path))
        clips, _ = plain.loss(params, {k: batch[k] for k in ("image", "text")}, key)
    # at the start, all logits are alike: what is left out lowers the logarithm of their number
    expected = np.log(len(sets))
    assert float(clips) == pytest.approx(expected, rel=0.2)
    if same_label == "ignored":
        left_out = np.mean(np.log((~same).sum(axis=1) + 1))
        assert float(found) - float(clips) == pytest.approx(left_out - expected, rel=0.2)
    else:
        assert float(found) == pytest.approx(float(clips), rel=0.2)
        assert float(found) != float(clips)


def test_texts_of_a_batch_follow_the_shares(tiny_config, phantom_corpus, tmp_path):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])

    def texts(**shares):
        config = tiny_config(**{f"captions__{key}": share for key, share in shares.items()})
        task = tasks.create(config, str(tmp_path))
        ids, batch = next(DataLoader(config, task, phantom_corpus, mesh).read(0, 1))
        return ids, np.asarray(batch["image"]), np.asarray(batch["text"])

    plain, words = texts(), texts(label_share=1.0)
    assert plain[0] == words[0]
    np.testing.assert_array_equal(plain[1], words[1])
    assert (plain[2] != words[2]).any(axis=1).all()
    np.testing.assert_array_equal(words[2], texts(label_share=1.0, sentence_share=0.5)[2])


def _captions(record: bytes) -> tuple[str, ...]:
    from input_pipeline.records import decode

    return decode(record).captions
