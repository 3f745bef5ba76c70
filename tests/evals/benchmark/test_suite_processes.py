"""The suite in real processes: other numbers of devices and hosts, killed and restarted."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import xla_flags
from helpers.small_model import write_export
from helpers.suite_archive import write_archive, write_large_pcam

from unimed_jax.evals.benchmark.image_embeddings import PART_SIZE

pytestmark = pytest.mark.slow
NUM_LARGE = 2 * PART_SIZE + 300
SETS = "--suite.sets=acl_mri,thyroid_us,CT_axial,PCAM,skin_tumor"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), text={"context_length": 32})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated sets, with a PCAM larger than one part of the embeddings."""
    root = tmp_path_factory.mktemp("sets")
    write_archive(root)
    write_large_pcam(root, NUM_LARGE)
    return root


def start(
    checkpoint: Path, archive: Path, out: Path, *arguments: str, **environment: str
) -> subprocess.Popen:
    command = [sys.executable, "-m", "unimed_jax.evaluate", "--suite=unimed21"]
    flags = [f"--checkpoint={checkpoint}", f"--data={archive}", f"--out={out}"]
    return subprocess.Popen(
        [*command, *flags, SETS, *arguments],
        env={**os.environ, "XLA_FLAGS": xla_flags(1), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output[-3000:]
    return output


def on_hosts(
    num_hosts: int, devices: int, checkpoint: Path, archive: Path, out: Path, *arguments: str
) -> list[str]:
    """Runs the command in several processes of several devices; returns their outputs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(num_hosts),
    }
    several = num_hosts > 1
    processes = [
        start(
            checkpoint,
            archive,
            out if i == 0 else out / f"of_host_{i}",  # other hosts must write nothing
            *arguments,
            XLA_FLAGS=xla_flags(devices),
            **({**job, "JAX_PROCESS_ID": str(i)} if several else {}),
        )
        for i in range(num_hosts)
    ]
    return [finish(process) for process in processes]


def embeddings(out: Path) -> dict[str, np.ndarray]:
    files = sorted((out / "embeddings").rglob("*.npz"))
    return {f"{p.parent.name}/{p.name}": np.load(p)["rows"] for p in files}


@pytest.fixture(scope="module")
def one(checkpoint: Path, large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a whole run on one device of one host writes."""
    out = tmp_path_factory.mktemp("one")
    assert f"PCAM: {NUM_LARGE:,} images\n" in finish(start(checkpoint, large, out))
    return out


def test_any_number_of_devices_and_hosts_gives_the_same_result_to_the_last_digit(
    checkpoint, large, one, tmp_path
):
    results, expected = (one / "results.json").read_bytes(), embeddings(one)
    assert len(expected) == 4 + 3  # PCAM in three parts
    pcam = next(s for s in json.loads(results)["sets"] if s["dataset"] == "PCAM")
    assert pcam["as_published"]["num_images"] == NUM_LARGE
    # some embeddings of one host, in a cache that only the first host sees
    cache = tmp_path / "2x2" / "embeddings"
    shutil.copytree(one / "embeddings", cache)
    (cached,) = cache.rglob(f"PCAM/{PART_SIZE:08d}.npz")
    for path in cache.rglob("*.npz"):
        if path != cached:
            path.unlink()
    before = cached.stat().st_mtime_ns

    for hosts, devices in ((1, 8), (3, 1), (2, 2)):
        out = tmp_path / f"{hosts}x{devices}"
        outputs = on_hosts(hosts, devices, checkpoint, large, out)
        of_them = f", {PART_SIZE:,} of them embedded before" if hosts == 2 else ""
        assert f"PCAM: {NUM_LARGE:,} images{of_them}\n" in outputs[0]
        assert all("PCAM" not in output for output in outputs[1:])
        assert not list(tmp_path.rglob("of_host_*"))
        assert (out / "results.json").read_bytes() == results
        found = embeddings(out)
        assert found.keys() == expected.keys()
        for name, rows in expected.items():
            assert found[name].tobytes() == rows.tobytes(), (out.name, name)
    assert cached.stat().st_mtime_ns == before


def test_a_killed_run_resumes_where_it_stopped(checkpoint, large, one, tmp_path):
    killed = tmp_path / "killed"
    process = start(checkpoint, large, killed)
    deadline = time.monotonic() + 300
    while not list(killed.rglob("PCAM/*.npz")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "results.json").exists()
    entry = json.loads((killed / "clip_benchmark" / "acl_mri.json").read_text())
    assert entry["dataset"] == "acl_mri" and entry["metrics"]["auc"] >= 0  # a finished set's result
    before = {p: p.stat().st_mtime_ns for p in killed.rglob("*.npz")}
    kept = len([p for p in before if p.parent.name == "PCAM"]) * PART_SIZE
    assert PART_SIZE <= kept < NUM_LARGE, "the run was killed too late to tell anything"

    output = finish(start(checkpoint, large, killed))
    assert "acl_mri: 6 images, 6 of them embedded before" in output
    assert f"PCAM: {NUM_LARGE:,} images, {kept:,} of them embedded before" in output
    assert "skin_tumor: 4 images\n" in output
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert (killed / "results.json").read_bytes() == (one / "results.json").read_bytes()


def test_clip_benchmark_reads_the_results(one):
    """`clip_benchmark build` of the files is results.csv (docs/log/measurements.md)."""
    rows = []
    for file in sorted((one / "clip_benchmark").glob("*.json")):
        entry = json.loads(file.read_text())
        assert list(entry) == ["dataset", "model", "pretrained", "task", "language", "metrics"]
        full = {"model_fullname": f"{entry['model']} {entry['pretrained']}"}
        rows.append({**entry.pop("metrics"), **entry, **full})
    with (one / "results.csv").open() as file:
        table = sorted(csv.DictReader(file), key=lambda row: row["dataset"])
    expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    assert table == sorted(expected, key=lambda row: row["dataset"])
    assert table[0]["model"] == "ViT-W32-8-32"  # what their notebook splits at '-'
