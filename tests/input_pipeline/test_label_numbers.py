"""Label sets as numbers: equal for equal labels of a modality; a record without any is alone."""

import numpy as np
import tensorflow as tf

from input_pipeline import label_numbers, records


def numbers(*changes, max_labels=4):
    same = {"id": "a", "image": b"x", "captions": ("a text",), "num_original_captions": 1}
    same |= {"modality": "xray", "source": "a"}
    samples = [records.Sample(**same | fields) for fields in changes]
    serialized = tf.constant([records.encode(sample) for sample in samples])
    return label_numbers.of(records.parse(serialized), max_labels).numpy()


def test_a_label_is_the_same_in_every_source_but_not_in_every_modality():
    found = numbers(
        {"labels": ("normal",), "modality": "xray", "source": "a"},
        {"labels": ("edema", "normal"), "modality": "xray", "source": "b"},
        {"labels": ("normal",), "modality": "fundus", "source": "a"},
    )
    assert found.dtype == np.uint32
    assert found[0, 0] == found[1, 1] > 0
    assert found[2, 0] not in found[:2]
    assert [np.count_nonzero(row) for row in found] == [1, 2, 1]


def test_records_without_labels_are_like_no_other():
    found = numbers(*({"id": name, "labels": ()} for name in ("a", "b", "a")))
    assert found[0, 0] == found[2, 0] != found[1, 0]
    assert (found[:, 1:] == 0).all()
    assert (found[:, 0] > 0).all()


def test_labels_beyond_the_limit_are_left_out():
    (found,) = numbers({"labels": ("a", "b", "c")}, max_labels=2)
    assert [*found] == [*numbers({"labels": ("a", "b")}, max_labels=2)[0]]
