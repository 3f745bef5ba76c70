"""The manifest: read back as written, and every kind of damage to a corpus is told apart."""

import hashlib
import json

import pytest

from input_pipeline import manifest as manifest_lib
from input_pipeline.io.errors import CorpusError
from input_pipeline.manifest import Manifest, Shard, Split

COUNTS = {"source": {"a": 2}, "modality": {"ct": 2}, "label": {"x": 1, "y": 1}}


@pytest.fixture
def corpus(tmp_path):
    """A directory with two shards (any bytes do) and its manifest."""
    shards = []
    for index, content in enumerate((b"first shard", b"second")):
        file = manifest_lib.shard_name("train", index, 2)
        (tmp_path / file).write_bytes(content)
        shards.append(Shard(file, 1, len(content), hashlib.sha256(content).hexdigest()))
    splits = {"train": Split(2, COUNTS, tuple(shards))}
    manifest = Manifest("tiny", splits, read=3, written=2, rejected=1, plan="p")
    manifest_lib.save(tmp_path, manifest)
    return tmp_path, manifest


def test_load_inverts_save(corpus):
    directory, manifest = corpus
    assert manifest_lib.load(directory) == manifest
    assert manifest_lib.load(directory).counts == COUNTS
    assert not list(directory.glob(".*")), "temporary files are left"


def test_shard_names_match_the_pattern():
    name = manifest_lib.shard_name("val", 7, 100_000)
    assert name == "val-00007-of-100000.tfrecord"
    assert manifest_lib.SHARD_PATTERN.fullmatch(name)[1] == "val"


def test_fingerprint_follows_content_not_name_or_plan(corpus):
    _, m = corpus
    split = m.splits["train"]
    renamed = Manifest("other", m.splits, read=9, written=2, rejected=7, plan="q")
    swapped = Manifest("tiny", {"train": Split(2, COUNTS, split.shards[::-1])}, 3, 2, 1, "p")
    assert renamed.fingerprint == m.fingerprint != swapped.fingerprint


def test_whole_corpus_passes(corpus):
    manifest_lib.verify(*corpus, "train", checksums=True)


@pytest.mark.parametrize(
    ("damage", "checksums", "message"),
    [
        (lambda path: path.unlink(), False, "is missing"),
        (lambda path: path.write_bytes(b""), False, "is empty: 0 bytes"),
        (lambda path: path.write_bytes(b"sec"), False, "truncated or altered: 3 bytes"),
        (lambda path: path.write_bytes(b"Second"), True, "SHA-256"),
    ],
)
def test_damage_is_named(corpus, damage, checksums, message):
    directory, manifest = corpus
    path = directory / manifest.splits["train"].shards[1].file
    damage(path)
    with pytest.raises(CorpusError, match=message) as error:
        manifest_lib.verify(directory, manifest, "train", checksums=checksums)
    assert path.name in str(error.value)


def test_unknown_split_lists_the_known(corpus):
    with pytest.raises(CorpusError, match=r"no split 'test'; it has \['train'\]"):
        manifest_lib.verify(*corpus, "test")


def _edit(directory, **changes):
    path = directory / manifest_lib.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_bad_manifests_are_refused(corpus):
    directory, _ = corpus
    with pytest.raises(CorpusError, match="does not exist"):
        manifest_lib.load(directory / "nowhere")
    _edit(directory, schema_version=99)
    with pytest.raises(CorpusError, match="version 99 is newer"):
        manifest_lib.load(directory)
    _edit(directory, schema_version=1, fingerprint="0")
    with pytest.raises(CorpusError, match="was edited"):
        manifest_lib.load(directory)
    _edit(directory, splits={"train": {}})
    with pytest.raises(CorpusError, match="not a manifest of this format"):
        manifest_lib.load(directory)
    (directory / manifest_lib.FILE_NAME).write_text("{")
    with pytest.raises(CorpusError, match="cannot read"):
        manifest_lib.load(directory)
    (directory / manifest_lib.FILE_NAME).unlink()
    with pytest.raises(CorpusError, match="has no manifest"):
        manifest_lib.load(directory)
