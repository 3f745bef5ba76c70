"""Conversions in tests: runs the command in this process and reads its output."""

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
