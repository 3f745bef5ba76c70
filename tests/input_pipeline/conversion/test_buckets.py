"""Conversion from and to a bucket gives the bytes of a local one, also after a kill."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile

import pytest
from helpers import corpora, official_layouts
from helpers import unimed_layouts as layouts
from helpers.tables import CAPTIONS, put_table

from input_pipeline import manifest
from input_pipeline.conversion.unimed_parts import PARTS

TABLE = ("--input=gs://bucket/raw/table.csv", "--captions=gs://bucket/raw/captions.json")
FLAGS = ("--name=table", "--id_column=key", "--num_shards=train=6,val=2", "--short_side=25")


def tool(name):
    spec = importlib.util.spec_from_file_location(name, corpora.REPO / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def local(storage, tmp_path_factory):
    """What a conversion of a table writes on a local disk; the table is in the bucket as well."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("local") / "out"
    table = put_table(raw, 200)
    assert json.loads(CAPTIONS) == json.loads((raw / "captions.json").read_text())
    storage.put_folder(raw, "raw")
    captions = f"--captions={raw / 'captions.json'}"
    assert corpora.convert("csv", out, f"--input={table}", captions, *FLAGS) == 0
    return corpora.contents(out)


def test_a_table_in_a_bucket_gives_the_bytes_of_a_local_one(storage, local):
    assert corpora.convert("csv", "gs://bucket/out", *TABLE, *FLAGS) == 0
    assert storage.below("out/") == local  # all of it: no plan and no temporary file stays
    found = manifest.load("gs://bucket/out")
    manifest.verify("gs://bucket/out", found, "train", checksums=True)
    generations = dict(storage.generations)
    assert corpora.convert("csv", "gs://bucket/out", *TABLE, *FLAGS) == 0
    assert storage.generations == generations, "a finished corpus is written again"


def test_disk_to_bucket_and_bucket_to_disk(storage, local, tmp_path):
    assert corpora.convert("csv", tmp_path / "out", *TABLE, *FLAGS) == 0
    assert corpora.contents(tmp_path / "out") == local
    table = put_table(tmp_path, 200)
    urls = table.read_text().replace("\n3.img", "\ngs://bucket/raw/3.img")
    assert urls != table.read_text()
    table.write_text(urls)  # an image that is elsewhere
    captions = f"--captions={tmp_path / 'captions.json'}"
    assert corpora.convert("csv", "gs://bucket/up", f"--input={table}", captions, *FLAGS) == 0
    shards = {name: data for name, data in local.items() if name.endswith(".tfrecord")}
    found = storage.below("up/")
    assert {len(found[name]) for name in shards} == {len(data) for data in shards.values()}


@pytest.mark.slow  # two processes import TensorFlow
def test_two_processes_write_to_a_bucket(storage, local):
    out = "gs://bucket/two"
    assert corpora.main(["csv", f"--out={out}", "--workers=2", *TABLE, *FLAGS]) == 0
    assert storage.below("two/") == local


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed"
)
@pytest.mark.parametrize(
    "options", ["", "--direct_num_workers=2 --direct_running_mode=multi_processing"]
)
def test_beam_reads_from_and_writes_to_a_bucket(storage, local, options):
    beam = ("--runner=beam", f"--beam_options={options}")
    out = f"beam{len(options)}"
    assert corpora.convert("csv", f"gs://bucket/{out}", *TABLE, *FLAGS, *beam) == 0
    assert storage.below(f"{out}/") == local


@pytest.mark.slow
def test_a_conversion_killed_during_an_upload_resumes(storage, local):
    def shards():
        return {n: d for n, d in storage.below("killed/").items() if n.endswith(".tfrecord")}

    storage.held.clear()
    storage.hold = lambda: len(shards()) >= 3
    process = subprocess.Popen(
        [sys.executable, corpora.TOOL, "csv", "--out=gs://bucket/killed", *TABLE, *FLAGS],
        env=os.environ | {"PYTHONPATH": str(corpora.REPO)},
    )
    assert storage.held.wait(300), "no shard was written"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    storage.hold = None
    kept = shards()
    assert len(kept) == 3 and all(data == local[name] for name, data in kept.items())
    assert "manifest.json" not in storage.below("killed/")
    proven = [name for name in kept if f".partial/{name}.json" in storage.below("killed/")]
    assert len(proven) >= 2
    generations = {name: storage.generations[f"killed/{name}"] for name in proven}
    assert corpora.convert("csv", "gs://bucket/killed", *TABLE, *FLAGS) == 0
    assert storage.below("killed/") == local
    for name, generation in generations.items():
        assert storage.generations[f"killed/{name}"] == generation, "written again"


def test_an_unfinished_conversion_of_another_plan_is_refused(storage, local, capsys):
    storage.put("other/.partial/plan.json", b'{"plan": "another"}\n')
    assert corpora.convert("csv", "gs://bucket/other", *TABLE, *FLAGS) == 2
    assert "gs://bucket/other holds an unfinished conversion of other" in capsys.readouterr().err
    assert corpora.convert("csv", "gs://bucket/other", *TABLE, *FLAGS, "--overwrite") == 0
    assert storage.below("other/") == local
    assert corpora.convert("csv", "gs://bucket/other", *TABLE, *FLAGS, "--seed=1") == 2
    assert "holds another complete corpus" in capsys.readouterr().err
    assert storage.below("other/") == local


def test_what_a_bucket_lacks_is_one_line(storage, local, capsys):
    for flag, message in (
        ("--input=gs://bucket/none.csv", "cannot read gs://bucket/none.csv: No such file"),
        ("--input=gs://nobody/table.csv", "cannot read gs://nobody/table.csv"),
        ("--captions=gs://bucket/none.json", "cannot read captions gs://bucket/none.json"),
    ):
        flags = (*TABLE, flag) if "captions" in flag else (*TABLE[1:], flag)
        assert corpora.convert("csv", "gs://bucket/lacking", *flags, *FLAGS) == 2
        assert message in capsys.readouterr().err
    assert corpora.convert("csv", "gs://nobody/out", *TABLE, *FLAGS) == 2
    assert "cannot write to gs://nobody/out: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("key", PARTS)
def test_every_unimed_part_is_read_from_a_bucket(key, storage, tmp_path):
    raw = tmp_path / "raw"
    layouts.BUILDERS[key](raw)
    storage.put_folder(raw, f"{key}/raw")
    flags = []
    if key in ("radimagenet", "chexpert", "chestxray8", "mimic_cxr", "retina_part1"):
        flags.append("--released_captions")
    if key == "retina_part2":
        (tmp_path / "captions.json").write_text(
            json.dumps({"version": 1, "modalities": {"fundus": {"*": ["{label}"]}}})
        )
        flags.append(f"--captions={tmp_path / 'captions.json'}")
    assert corpora.convert(key, tmp_path / "out", f"--raw={raw}", *flags) in (0, 1)
    out = f"gs://bucket/{key}/out"
    assert corpora.convert(key, out, f"--raw=gs://bucket/{key}/raw", *flags) in (0, 1)
    assert storage.below(f"{key}/out/") == corpora.contents(tmp_path / "out")


@pytest.mark.parametrize(
    "key", ["radimagenet", "chexpert", "chestxray8", "mimic_cxr", "openi", "retina_part1"]
)
def test_every_official_layout_is_read_from_a_bucket(key, storage, tmp_path):
    raw = tmp_path / "raw"
    getattr(official_layouts, key)(raw)
    storage.put_folder(raw, f"official/{key}/raw")
    flags = ("--captions=auto", "--max_rejected=0.9")
    assert corpora.convert(key, tmp_path / "out", f"--raw={raw}", *flags) == 0
    out = f"gs://bucket/official/{key}/out"
    assert corpora.convert(key, out, f"--raw=gs://bucket/official/{key}/raw", *flags) == 0
    assert storage.below(f"official/{key}/out/") == corpora.contents(tmp_path / "out")


def test_folders_and_tars_are_read_from_a_bucket(storage, tmp_path):
    for n in range(6):
        layouts.put_image(tmp_path / "classes" / ("train", "val")[n % 2] / "a b" / f"{n}.jpg", n)
    (tmp_path / "classes" / "train" / ".hidden").mkdir()
    layouts.put_image(tmp_path / "classes" / "train" / ".hidden" / "x.jpg")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as tar:
        for path in sorted((tmp_path / "classes").rglob("[0-9].jpg")):
            text = path.with_suffix(".txt")
            text.write_text(f"caption {path.stem}")
            for file in (path, text):
                tar.add(file, file.name)
            text.unlink()
    whole = (tmp_path / "tars" / "0.tar").read_bytes()
    (tmp_path / "tars" / "1.tar").write_bytes(whole[:2000])  # cut off in an image or before it
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"version": 1, "modalities": {"ct": {"*": ["{label}"]}}}))
    for source, folder, flags in (
        ("folder", "classes", ["--modality=ct", f"--captions={captions}"]),
        ("webdataset", "tars", ["--modality=ct"]),
    ):
        storage.put_folder(tmp_path / folder, f"sources/{folder}")
        raw = (tmp_path / folder, f"gs://bucket/sources/{folder}")
        outs = (tmp_path / f"{folder}_out", f"gs://bucket/sources/{folder}_out")
        for one, out in zip(raw, outs, strict=True):
            assert corpora.convert(source, out, f"--raw={one}", *flags) == 0
        assert storage.below(f"sources/{folder}_out/") == corpora.contents(outs[0])
        assert corpora.report(outs[0])["written"] >= 6


def test_labels_are_listed_and_captioned_in_a_bucket(storage, local, tmp_path):
    sets = (tmp_path / "sets.jsonl", "gs://bucket/sets.jsonl")
    captions = (tmp_path / "captions.json", "gs://bucket/captions.json")
    for labels, out in zip(sets, captions, strict=True):
        assert corpora.main(["csv", f"--labels_out={labels}", TABLE[0], "--id_column=key"]) == 0
        flags = [f"--labels={labels}", f"--out={out}", "--provider=template", "--num_captions=3"]
        assert tool("caption_labels").main(flags) == 0
    assert storage.objects["sets.jsonl"] == sets[0].read_bytes()
    ours, theirs = (
        json.loads(content)["label_sets"]
        for content in (storage.objects["captions.json"], captions[0].read_bytes())
    )
    assert ours == theirs and len(ours) == 3


def test_a_response_cache_in_a_bucket_is_refused_with_the_remedy(storage, local, capsys):
    flags = ["--labels=gs://bucket/raw/table.csv", "--out=gs://bucket/x.json", "--provider=openai"]
    assert tool("caption_labels").main([*flags, "--model=any"]) == 2
    assert "gs://bucket/x.cache.sqlite must be on a local disk" in capsys.readouterr().err


def test_a_corpus_in_a_bucket_is_inspected_into_a_bucket(storage, tmp_path):
    pytest.importorskip("imagehash", reason="the extra [inspect] is not installed")
    table = put_table(tmp_path, 200)
    captions = f"--captions={tmp_path / 'captions.json'}"
    flags = [f"--input={table}", captions, *FLAGS]
    assert corpora.convert("csv", tmp_path / "corpus", *flags) == 0
    layouts.put_image(tmp_path / "evaluation" / "class" / "x.jpg", 2, size=(40, 30))
    layouts.put_image(tmp_path / "evaluation" / "class" / "y.jpg", 99)
    (tmp_path / "evaluation" / "notes.txt").write_text("no image")
    for folder in ("corpus", "evaluation"):
        storage.put_folder(tmp_path / folder, f"inspected/{folder}")
    for root in (str(tmp_path), "gs://bucket/inspected"):
        against = f"--against={root}/evaluation"
        flags = [f"{root}/corpus", f"--out={root}/report", against, "--text_images=0"]
        assert tool("inspect_corpus").main(flags) == 0
    ours, theirs = storage.below("inspected/report/"), corpora.contents(tmp_path / "report")
    assert ours.keys() == theirs.keys() and b"k22" in ours["exclude.jsonl"]
    for name in ("exclude.jsonl", "duplicates.jsonl", "statistics.json"):
        assert ours[name] == theirs[name]
