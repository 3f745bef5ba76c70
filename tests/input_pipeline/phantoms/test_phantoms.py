"""Phantoms: deterministic, truthful, tellable apart, and readable as a corpus."""

import collections
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from tokenizers import BertWordPieceTokenizer

from input_pipeline import manifest, phantoms, records
from input_pipeline.conversion.phantom_corpus import write_phantoms
from input_pipeline.phantoms import captions

PROMPTS_FILE = Path(__file__).parents[3] / "unimed_jax" / "evals" / "prompts" / "phantoms.json"
CLASSES = [(m, finding) for m, findings in phantoms.FINDINGS.items() for finding in findings]
MODALITY_WORDS = {
    "xray": ("x-ray", "radiograph"),
    "ct": (" ct ",),
    "mri": (" mri ",),
    "ultrasound": ("ultrasound", "sonogram"),
    "pathology": ("pathology", "histology"),
    "fundus": ("fundus",),
}


def decode(sample: records.Sample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.image)))


def samples(modality: str, finding: str, count: int, split: str = "train") -> list[records.Sample]:
    return [
        phantoms.make_sample(phantoms.PhantomRow(split, modality, finding, i, 0, 72))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def prompts() -> dict:
    return json.loads(PROMPTS_FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("phantoms")
    write_phantoms(directory, num_train_per_class=2, num_val_per_class=1, image_size=40, seed=3)
    return directory


def test_rows_hold_every_class_of_every_split_once() -> None:
    rows = phantoms.rows({"train": 3, "val": 2}, image_size=64, seed=1)
    for split, count in (("train", 3), ("val", 2)):
        found = collections.Counter((row.modality, row.finding) for row in rows[split])
        assert found == dict.fromkeys(CLASSES, count)
    ids = [row.id for split in rows.values() for row in split]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("modality", "finding"), CLASSES)
def test_a_sample_is_a_function_of_its_row(modality: str, finding: str) -> None:
    row = phantoms.PhantomRow("train", modality, finding, 5, 0, 64)
    sample = phantoms.make_sample(row)
    assert phantoms.make_sample(row) == sample
    assert decode(sample).shape == (64, 64, 3)
    assert decode(sample).std() > 10
    assert (sample.modality, sample.labels) == (modality, (finding,))
    assert sample.source == f"phantoms_{modality}"
    assert sample.num_original_captions == 0


@pytest.mark.parametrize("change", [{"split": "val"}, {"seed": 1}, {"index": 6}])
def test_split_seed_and_index_each_give_another_phantom(change: dict) -> None:
    fields = {"split": "train", "modality": "ct", "finding": "nodule", "index": 5, "seed": 0}
    one, other = (
        phantoms.make_sample(phantoms.PhantomRow(**(fields | c), image_size=64))
        for c in ({}, change)
    )
    assert one.id != other.id
    assert np.abs(decode(one).astype(int) - decode(other)).mean() > 2


@pytest.mark.parametrize(("modality", "finding"), CLASSES)
def test_captions_name_modality_and_finding(modality: str, finding: str) -> None:
    seen = set()
    for sample in samples(modality, finding, 20):
        assert len(set(sample.captions)) == captions.CAPTIONS_PER_SAMPLE
        seen.update(sample.captions)
    for caption in seen:
        padded = f" {caption.replace(':', ' ')} "
        assert "phantom" in caption and "{" not in caption
        assert any(word in padded for word in MODALITY_WORDS[modality]), caption
        assert set(finding.split()) <= set(re.findall(r"\w+", caption)), caption
    assert len(seen) >= 20


def said(sample: records.Sample, words: tuple[str, str]) -> str | None:
    """The one of two words that the captions of a sample hold; None if they hold neither."""
    found = {word for word in words for caption in sample.captions if word in caption.split()}
    assert len(found) <= 1, sample.captions
    return found.pop() if found else None


@pytest.mark.parametrize("modality", ["xray", "ct"])
def test_the_side_in_a_caption_is_the_side_of_the_finding(modality: str) -> None:
    """Fluid is bright and air is dark; the patient's right is on the left of the image."""
    finding = {"xray": "pleural effusion", "ct": "consolidation"}[modality]
    checked = 0
    for sample in samples(modality, finding, 30):
        side = said(sample, ("left", "right"))
        if side is None:
            continue
        lower = decode(sample)[36:50, :, 0].astype(int)
        left, right = lower[:, 10:28].mean(), lower[:, 44:62].mean()
        assert side == ("right" if left > right else "left"), sample.id
        checked += 1
    assert checked > 15


def test_the_size_in_a_caption_is_the_size_of_the_finding() -> None:
    """A cyst is the only black thing in an ultrasound phantom."""
    area = {"small": [], "large": []}
    for sample in samples("ultrasound", "cyst", 30):
        size = said(sample, ("small", "large"))
        if size is not None:
            area[size].append((decode(sample)[..., 0] < 8).sum())
    assert min(map(len, area.values())) > 5
    assert max(area["small"]) < min(area["large"])


def test_vocabulary_spells_every_caption_and_prompt_without_unknown_pieces(
    corpus: Path, prompts: dict
) -> None:
    entries = (corpus / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tuple(entries) == captions.vocabulary()
    assert entries[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(set(entries)) == len(entries) < 1000
    tokenizer = BertWordPieceTokenizer(str(corpus / "vocab.txt"), lowercase=True)
    texts = {
        prompt
        for task in prompts["tasks"].values()
        for lines in task["classes"].values()
        for prompt in lines
    }
    for modality, finding in CLASSES:
        texts.update(c for sample in samples(modality, finding, 20) for c in sample.captions)
    for text in texts:
        tokens = tokenizer.encode(text).tokens
        # Whole words: a prompt may use no word that the captions do not teach.
        assert not [t for t in tokens if t == "[UNK]" or t.startswith("##")], (text, tokens)
        assert len(tokens) <= 32
    assert "[UNK]" not in tokenizer.encode("Unseen words, e.g. 'Zyx-42'!").tokens


def test_prompts_cover_the_classes(prompts: dict) -> None:
    assert prompts["name"] == "phantoms"
    tasks = prompts["tasks"]
    assert set(tasks) == {"modality", *(f"phantoms_{m}" for m in phantoms.FINDINGS)}
    assert tasks["modality"]["field"] == "modality"
    assert list(tasks["modality"]["classes"]) == list(phantoms.FINDINGS)
    for modality, findings in phantoms.FINDINGS.items():
        task = tasks[f"phantoms_{modality}"]
        assert (task["field"], task["source"]) == ("label", f"phantoms_{modality}")
        assert tuple(task["classes"]) == findings
    for task in tasks.values():
        lines = [
            prompt for prompts_of_class in task["classes"].values() for prompt in prompts_of_class
        ]
        assert len(set(lines)) == len(lines) == 4 * len(task["classes"])


def features(samples_: list[records.Sample]) -> np.ndarray:
    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(s.image)).resize((18, 18)), np.float32).ravel() / 255
            for s in samples_
        ]
    )


@pytest.mark.parametrize("modality", phantoms.FINDINGS)
def test_a_linear_classifier_of_coarse_pixels_beats_chance_on_unseen_findings(
    modality: str,
) -> None:
    findings = phantoms.FINDINGS[modality]
    train = [s for finding in findings for s in samples(modality, finding, 60)]
    val = [s for finding in findings for s in samples(modality, finding, 30, split="val")]
    model = LogisticRegression(C=0.1, max_iter=300)
    model.fit(features(train), [s.labels[0] for s in train])
    score = balanced_accuracy_score([s.labels[0] for s in val], model.predict(features(val)))
    assert score > 1 / len(findings) + 0.25


def test_write_gives_a_readable_corpus(corpus: Path) -> None:
    found = manifest.load(corpus)
    assert {split: s.num_samples for split, s in found.splits.items()} == {"train": 34, "val": 17}
    for split in found.splits:
        manifest.verify(corpus, found, split, checksums=True)
    expected = {
        row.id: phantoms.make_sample(row)
        for row in phantoms.rows({"train": 2, "val": 1}, image_size=40, seed=3)["val"]
    }
    shards = [str(corpus / shard.file) for shard in found.splits["val"].shards]
    read = [records.decode(r) for r in tf.data.TFRecordDataset(shards).as_numpy_iterator()]
    assert {sample.id: sample for sample in read} == expected


def test_write_is_repeatable(corpus: Path, tmp_path: Path) -> None:
    again = write_phantoms(
        tmp_path, num_train_per_class=2, num_val_per_class=1, image_size=40, seed=3
    )
    assert again.fingerprint == manifest.load(corpus).fingerprint
    assert (tmp_path / "vocab.txt").read_bytes() == (corpus / "vocab.txt").read_bytes()
