"""Conversions in tests: runs the command in this process and reads its output."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import tensorflow as tf

from input_pipeline import manifest, records

REPO = Path(__file__).parents[2]
TOOL = REPO / "tools" / "convert_corpus.py"

_spec = importlib.util.spec_from_file_location("convert_corpus", TOOL)
_tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tool)
main = _tool.main


def convert(source, out, *flags):
    """The exit status of `tools/convert_corpus.py SOURCE --out=OUT FLAGS`."""
    return main([source, f"--out={out}", "--workers=1", *map(str, flags)])


def samples(out):
    """The samples of every split, by id."""
    return {split: samples_of(out, split) for split in manifest.load(out).splits}


def samples_of(out, split="train"):
    files = [str(out / shard.file) for shard in manifest.load(out).splits[split].shards]
    found = map(records.decode, tf.data.TFRecordDataset(files).as_numpy_iterator())
    return {sample.id: sample for sample in found}


def rejections(out):
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def report(out):
    return json.loads((out / "conversion.json").read_text())


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def replace_records(out, split, samples):
    """Replaces the records of a split by others, as one shard, and adapts the manifest."""
    found = manifest.load(out)
    (shard,) = found.splits[split].shards
    with tf.io.TFRecordWriter(str(out / shard.file)) as writer:
        for sample in samples:
            writer.write(records.encode(sample))
    path = out / shard.file
    shard = dataclasses.replace(
        shard, num_bytes=path.stat().st_size, sha256=manifest.file_sha256(path)
    )
    splits = {split: dataclasses.replace(found.splits[split], shards=(shard,))}
    manifest.save(out, dataclasses.replace(found, splits={**found.splits, **splits}))


def write_shards(directory, shards: list[list[bytes]]) -> manifest.Manifest:
    """A corpus of the given records, without an index."""
    directory.mkdir(exist_ok=True)
    written = []
    for number, contents in enumerate(shards):
        path = directory / manifest.shard_name("train", number, len(shards))
        with tf.io.TFRecordWriter(str(path)) as writer:
            for content in contents:
                writer.write(content)
        size, checksum = path.stat().st_size, manifest.file_sha256(path)
        written.append(manifest.Shard(path.name, len(contents), size, checksum))
    count = sum(map(len, shards))
    split = manifest.Split(count, manifest.add_counts([]), tuple(written))
    content = manifest.Manifest("x", {"train": split}, count, count, 0, "")
    manifest.save(directory, content)
    return content
