"""Beam and local processes write the same bytes; a killed Beam run is continued."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import corpora
from helpers.tables import put_table

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed"
)


def flags_of(table: Path, *flags: str) -> list[str]:
    captions = f"--captions={table.parent / 'captions.json'}"
    return [f"--input={table}", captions, "--id_column=key", *flags]


@needs_beam
@pytest.mark.slow
def test_beam_writes_the_same_bytes_as_local_processes(tmp_path):
    flags = flags_of(put_table(tmp_path, 200), "--num_shards=train=6,val=2", "--short_side=25")
    assert corpora.convert("csv", tmp_path / "local", *flags) == 0
    local = corpora.contents(tmp_path / "local")
    for name, options in (
        ("one", ""),
        ("two", "--direct_num_workers=2 --direct_running_mode=multi_processing"),
    ):
        beam = ("--runner=beam", f"--beam_options={options}")
        assert corpora.convert("csv", tmp_path / name, *flags, *beam) == 0
        assert corpora.contents(tmp_path / name) == local
    assert corpora.report(tmp_path / "one")["written"] == 190


@needs_beam
@pytest.mark.slow
def test_a_killed_beam_run_is_continued_by_local_processes(tmp_path):
    flags = flags_of(put_table(tmp_path, 200, size=(400, 300)), "--num_shards=train=24,val=8")
    assert corpora.convert("csv", tmp_path / "whole", *flags) == 0
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, corpora.TOOL, "csv", *flags, f"--out={out}", "--runner=beam"],
        env=os.environ | {"PYTHONPATH": str(corpora.REPO)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.tfrecord"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline, "no shard was written"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (out / "manifest.json").exists()
    assert corpora.convert("csv", out, *flags) == 0
    assert corpora.contents(out) == corpora.contents(tmp_path / "whole")


@needs_beam
def test_what_beam_raises_is_one_line(tmp_path, capsys):
    flags = flags_of(put_table(tmp_path, 20), "--runner=beam", "--beam_options=--runner=NoRunner")
    assert corpora.convert("csv", tmp_path / "out", *flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: the Beam pipeline failed: ") and "NoRunner" in line


def test_without_beam_the_remedy_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)  # as if it were not installed
    table = put_table(tmp_path, 20)
    assert corpora.convert("csv", tmp_path / "out", *flags_of(table), "--runner=beam") == 2
    assert "pip install 'unimed_jax[beam]'" in capsys.readouterr().err


def test_beam_options_need_the_beam_runner(tmp_path, capsys):
    table = put_table(tmp_path, 20)
    flags = flags_of(table, "--beam_options=--streaming")
    assert corpora.convert("csv", tmp_path / "out", *flags) == 2
    assert "--runner=beam" in capsys.readouterr().err
