"""Token ids against transformers' BERT tokenizer on the same vocabulary."""

import json

import numpy as np
import pytest
from transformers import BertTokenizerFast

from input_pipeline.io.errors import ConfigError
from input_pipeline.phantoms import captions
from input_pipeline.tokenizer import Tokenizer, clean

TEXTS = [
    "Chest x-ray phantom showing a nodule.",
    "Ground-glass opacities in both lungs; no pleural effusion (COVID-19).",
    "naïve café — Überprüfung 東京 5 ± 3 mm²",
    "",
    "nodule " * 100,
    "MRI,T1w: tumor!?",
]


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{entry}\n" for entry in captions.vocabulary()), encoding="utf-8")
    return path


@pytest.mark.parametrize("length", [8, 32])
def test_ids_are_those_of_transformers(vocab, length):
    ours = Tokenizer(vocab.parent, length)(TEXTS)
    reference = BertTokenizerFast(vocab=str(vocab), do_lower_case=True)
    theirs = reference(
        [clean(t) for t in TEXTS], padding="max_length", truncation=True, max_length=length
    )["input_ids"]
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, theirs)


def test_special_tokens_in_a_text_are_those_of_transformers(vocab):
    """A literal [SEP] is the token, as in the published tokenizer, and [sep] is text."""
    texts = [
        "nodule [SEP] no effusion",
        "[CLS] a chest x-ray [MASK] phantom",
        "[PAD][UNK]nodule[MASK]phantom",
        "a [sep] b [ SEP ] c [Mask]",
        "x[SEP]&lt;[MASK]&gt;",
    ]
    ours = Tokenizer(vocab.parent, 32)
    reference = BertTokenizerFast(vocab=str(vocab), do_lower_case=True)
    theirs = reference([clean(t) for t in texts], padding="max_length", max_length=32)["input_ids"]
    np.testing.assert_array_equal(ours(texts), theirs)
    separator = reference.convert_tokens_to_ids("[SEP]")
    assert np.sum(ours(texts[:1]) == separator) == 2


def test_a_saved_copy_is_the_same_tokenizer(vocab, tmp_path):
    tokenizer = Tokenizer(vocab, 16)
    tokenizer.save(tmp_path / "copy")
    copy = Tokenizer(tmp_path / "copy", 16)
    assert copy.sha256 == tokenizer.sha256
    np.testing.assert_array_equal(copy(TEXTS), tokenizer(TEXTS))


CASED = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "MRI",
    "mri",
    "##s",
    "Caf",
    "caf",
    "##é",
    "##e",
]


@pytest.mark.parametrize("config", [None, {"do_lower_case": False}, {"do_lower_case": True},
                                    {"do_lower_case": False, "strip_accents": True}])  # fmt: skip
@pytest.mark.parametrize("fast", [False, True])
def test_case_is_kept_where_the_config_says_so(tmp_path, config, fast):
    (tmp_path / "vocab.txt").write_text("".join(f"{entry}\n" for entry in CASED))
    if fast:  # a tokenizer.json of another setting, which transformers overrules by the config
        Tokenizer(tmp_path, 12).save(tmp_path)
    if config is not None:
        config = {"tokenizer_class": "BertTokenizer"} | config
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    texts = ["MRIs mri Café", "café Mri"]
    reference = BertTokenizerFast(
        vocab=str(tmp_path / "vocab.txt"),
        do_lower_case=bool(config and config["do_lower_case"]),
        strip_accents=config and config.get("strip_accents"),
    )
    theirs = reference(texts, padding="max_length", max_length=12)["input_ids"]
    np.testing.assert_array_equal(Tokenizer(tmp_path, 12)(texts), theirs)


def test_lengths_are_those_before_truncation(vocab):
    tokenizer = Tokenizer(vocab, 8)
    reference = BertTokenizerFast(vocab=str(vocab), do_lower_case=True)
    expected = [len(ids) for ids in reference([clean(t) for t in TEXTS])["input_ids"]]
    assert max(expected) > 8
    np.testing.assert_array_equal(tokenizer.lengths(TEXTS), expected)
    assert tokenizer(TEXTS).shape == (len(TEXTS), 8)


def test_cleaning_repairs_and_collapses():
    assert clean("  a&amp;lt;b \n\t caf\u00c3\u00a9 ") == "a<b café"


@pytest.mark.parametrize(
    ("content", "message"), [("word\nother\n", "no BERT vocabulary"), (None, "no tokenizer in")]
)
def test_a_wrong_vocabulary_is_named(tmp_path, content, message):
    if content:
        (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        Tokenizer(tmp_path, 16)
    assert str(tmp_path) in str(error.value)
