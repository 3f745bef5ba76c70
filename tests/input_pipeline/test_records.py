"""Records: what goes in comes out, in Python and in the graph; bad records are refused by name."""

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import records
from input_pipeline.io.errors import CorpusError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)  # surrogates are no UTF-8
NOT_BLANK = TEXT.filter(str.strip)


@st.composite
def samples(draw):
    captions = tuple(draw(st.lists(NOT_BLANK, max_size=30)))
    return records.Sample(
        id=draw(TEXT.filter(bool)),
        image=draw(st.binary(min_size=1, max_size=200)),
        captions=captions,
        num_original_captions=draw(st.integers(0, len(captions))),
        labels=tuple(draw(st.lists(TEXT, max_size=5))),
        modality=draw(TEXT),
        source=draw(TEXT),
        group=draw(TEXT),
        caption_provenance=tuple(draw(st.sampled_from(["", "{}", '{"a":1}'])) for _ in captions),
    )


def sample(**changes):
    fields = {
        "id": "a/1",
        "image": b"jpeg",
        "captions": ("zwei Wörter", "肺炎"),
        "num_original_captions": 1,
        "labels": (),
        "modality": "ct",
        "source": "a",
    }
    return records.Sample(**fields | changes)


@settings(max_examples=200, deadline=None)
@given(samples())
def test_decode_inverts_encode(given_sample):
    assert records.decode(records.encode(given_sample)) == given_sample


@settings(max_examples=50, deadline=None)
@given(samples())
def test_parse_agrees_with_decode(given_sample):
    parsed = records.parse(tf.constant([records.encode(given_sample)]))
    parsed = {key: value[0].numpy() for key, value in parsed.items()}
    for key in ("id", "modality", "source", "group"):
        assert parsed[key].decode() == getattr(given_sample, key)
    for key in ("captions", "labels"):
        assert tuple(text.decode() for text in parsed[key]) == getattr(given_sample, key)
    assert parsed["image"] == given_sample.image
    assert parsed["num_original_captions"] == given_sample.num_original_captions


def test_parse_works_in_a_tf_data_graph_with_static_ranks():
    serialized = [records.encode(sample()), records.encode(sample(captions=("one",)))]
    dataset = tf.data.Dataset.from_tensors(serialized).map(records.parse)
    spec = dataset.element_spec
    assert spec["captions"].shape.rank == spec["labels"].shape.rank == 2
    assert all(spec[key].shape == (2,) for key in spec.keys() - {"captions", "labels"})
    assert list(next(iter(dataset))["captions"].row_lengths()) == [2, 1]


def test_provenance_is_stored_once_and_version_1_had_none():
    given_sample = sample(captions=("a", "b", "c"), caption_provenance=("", "{p}", "{p}"))
    features = tf.train.Example.FromString(records.encode(given_sample)).features.feature
    assert list(features["provenance"].bytes_list.value) == [b"{p}"]
    assert list(features["provenance_index"].int64_list.value) == [-1, 0, 0]
    assert records.decode(records.encode(given_sample)) == given_sample

    def as_version_1(features):
        features.pop("provenance")
        features.pop("provenance_index")

    assert records.decode(_altered(as_version_1)) == sample()
    assert sample().caption_provenance == ("", "")


def test_encoding_is_deterministic_across_construction_order():
    assert records.encode(sample()) == records.encode(sample())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "needs an id"),
        ({"image": b""}, "image bytes"),
        ({"captions": ("a", " \n")}, "empty caption"),
        ({"num_original_captions": 3}, "num_original_captions is 3"),
        ({"caption_provenance": ("{}",)}, "provenance of 1 captions, but there are 2"),
    ],
)
def test_sample_refuses_what_no_reader_could_use(changes, message):
    with pytest.raises(ValueError, match=message):
        sample(**changes)


def _altered(alter):
    example = tf.train.Example.FromString(records.encode(sample()))
    alter(example.features.feature)
    return example.SerializeToString()


@pytest.mark.parametrize(
    ("serialized", "message"),
    [
        (b"\xff\xff no protobuf", "not a tf.train.Example"),
        (_altered(lambda f: f.pop("captions")), "lacks feature 'captions'"),
        (_altered(lambda f: f["id"].bytes_list.value.append(b"b")), "'id' holds 2 values"),
        (
            _altered(lambda f: f["provenance_index"].int64_list.value.__setitem__(0, 5)),
            "'provenance_index' is out of range",
        ),
        (_altered(lambda f: f["id"].bytes_list.value.__setitem__(0, b"\xff")), "breaks the schema"),
    ],
)
def test_decode_names_what_is_wrong(serialized, message):
    with pytest.raises(CorpusError, match=message):
        records.decode(serialized)
