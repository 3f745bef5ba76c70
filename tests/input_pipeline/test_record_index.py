"""The index of records: the records that TensorFlow reads, and damage that is named."""

import shutil

import numpy as np
import pytest
from helpers.corpora import write_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import manifest, record_index, record_reader
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import to_path

shards_of_records = st.lists(
    st.lists(st.binary(max_size=60), max_size=6), min_size=1, max_size=4
).filter(any)


@settings(max_examples=40, deadline=None)
@given(shards_of_records, st.data())
def test_any_run_of_records_is_what_tensorflow_wrote(tmp_path_factory, shards, data):
    directory = tmp_path_factory.mktemp("corpus")
    content = write_shards(directory, shards)
    index = record_index.load(directory, content, "train")
    records = [record for shard in shards for record in shard]
    first = data.draw(st.integers(0, len(records)))
    stop = data.draw(st.integers(first, len(records)))
    for spans in ([(0, len(records))], [(first, stop)], [(0, first), (stop, len(records))]):
        expected = [record for begin, end in spans for record in records[begin:end]]
        assert [*record_reader.sequential(index, spans)] == expected
    stored = record_index.load(directory, content, "train")  # this time from its file
    assert np.array_equal(stored.offsets, index.offsets)
    by_lengths = [record_index.offsets_of([len(r) for r in shard]) for shard in shards]
    assert np.array_equal(np.concatenate(by_lengths), index.offsets)


def test_conversion_writes_the_index_that_a_scan_finds(phantom_corpus, tmp_path):
    content = manifest.load(phantom_corpus)
    shutil.copytree(phantom_corpus, tmp_path / "copy")
    for split in content.splits:
        path = tmp_path / "copy" / record_index.file_name(split)
        written = path.read_bytes()
        path.unlink()
        record_index.load(tmp_path / "copy", content, split)
        assert path.read_bytes() == written


def test_an_index_of_other_shards_is_made_again(tmp_path):
    before = write_shards(tmp_path / "corpus", [[b"one", b"two"], [b"three"]])
    record_index.load(tmp_path / "corpus", before, "train")
    after = write_shards(tmp_path / "corpus", [[b"one", b"another"], [b"three"]])
    index = record_index.load(tmp_path / "corpus", after, "train")
    assert [*record_reader.sequential(index)] == [b"one", b"another", b"three"]
    (tmp_path / "corpus" / record_index.file_name("train")).write_bytes(b"half")
    assert len(record_index.load(tmp_path / "corpus", after, "train").offsets) == 3


def test_a_corpus_that_cannot_be_written_is_read_all_the_same(storage, tmp_path):
    content = write_shards(tmp_path / "corpus", [[b"one"], [b"two", b"three"]])
    storage.put_folder(tmp_path / "corpus", "corpus")
    refuse = storage.put
    storage.put = lambda *arguments: False
    try:
        index = record_index.load(to_path("gs://bucket/corpus"), content, "train")
    finally:
        storage.put = refuse
    assert [*record_reader.sequential(index)] == [b"one", b"two", b"three"]
    assert "corpus/train.index.safetensors" not in storage.objects
    record_index.load(to_path("gs://bucket/corpus"), content, "train")
    assert "corpus/train.index.safetensors" in storage.objects


@pytest.mark.parametrize("byte", [0, 7, 9, 12, 14, 15, 18])
def test_every_altered_byte_of_a_record_is_noticed(tmp_path, byte):
    content = write_shards(tmp_path / "corpus", [[b"first", b"abc", b"last"]])
    index = record_index.load(tmp_path / "corpus", content, "train")
    path = tmp_path / "corpus" / content.splits["train"].shards[0].file
    data = bytearray(path.read_bytes())
    data[int(index.offsets[1]) + byte] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorpusError, match=f"{path.name} is altered: the record at byte 21 "):
        [*record_reader.sequential(index)]


def test_a_scan_names_the_shard_that_is_not_what_the_manifest_says(tmp_path):
    content = write_shards(tmp_path / "corpus", [[b"first"], [b"abc", b"last"]])
    path = tmp_path / "corpus" / content.splits["train"].shards[1].file
    whole = path.read_bytes()
    for data in (whole[:-30], whole[:5], bytes(len(whole))):
        path.write_bytes(data)
        with pytest.raises(CorpusError, match=path.name):
            index = record_index.load(tmp_path / "corpus", content, "train")
            [*record_reader.sequential(index)]
    path.unlink()
    with pytest.raises(CorpusError, match=f"{path.name}: .*No such file"):
        record_index.load(tmp_path / "corpus", content, "train")


def test_a_shard_that_vanishes_is_named(tmp_path):
    content = write_shards(tmp_path / "corpus", [[b"%d" % k for k in range(100)]] * 2)
    index = record_index.load(tmp_path / "corpus", content, "train")
    (tmp_path / "corpus" / content.splits["train"].shards[1].file).unlink()
    stream = record_reader.sequential(index)
    assert [next(stream) for _ in range(100)] == [b"%d" % k for k in range(100)]
    with pytest.raises(CorpusError, match=r"cannot read shard .*-00001-of-00002.*No such file"):
        list(stream)
