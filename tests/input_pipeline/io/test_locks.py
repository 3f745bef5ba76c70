"""Locks of directories, on a disk and in a bucket: real processes, killed and stopped."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from helpers.runs import ROOT, freeze

from input_pipeline.io import locks
from input_pipeline.io.files import to_path
from input_pipeline.io.locks import LockedError

HOLD = """
import sys
from input_pipeline.io import locks
from input_pipeline.io.files import to_path
locks._BEAT_SECONDS, locks._EXPIRY_SECONDS = 0.1, 0.6
if len(sys.argv) > 2:
    locks.socket.gethostname = lambda: sys.argv[2]
with locks.exclusive(to_path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(folder: object, *host: str) -> Iterator[subprocess.Popen]:
    """A process that holds the lock of a folder, on this host or as if on another."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *host],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(locks, "_EXPIRY_SECONDS", 0.6)
    monkeypatch.setattr(locks, "_NFS_SECONDS", 0.6)


def refused(folder: object, pid: int) -> None:
    with pytest.raises(LockedError) as found, locks.exclusive(to_path(folder)):
        pass
    who = f"process {pid} on host {socket.gethostname()} since {time.strftime('%Y-')}"
    assert str(found.value).startswith(f"{folder} is in use by {who}")


def test_a_second_process_is_refused_and_a_killed_one_leaves_nothing(tmp_path):
    with holder(tmp_path) as process:
        refused(tmp_path, process.pid)
        process.kill()
        process.wait()
        with locks.exclusive(tmp_path):
            refused(tmp_path, os.getpid())
    assert not list(tmp_path.iterdir())


def test_a_process_that_ends_leaves_nothing(tmp_path):
    with holder(tmp_path) as process:
        process.stdin.close()
        assert process.wait() == 0
        assert not list(tmp_path.iterdir())


def test_a_process_of_another_host_is_given_time_to_be_missed(tmp_path, quick, monkeypatch, capsys):
    with holder(tmp_path, "elsewhere") as process:
        with (
            pytest.raises(LockedError, match=f"process {process.pid} on host elsewhere since"),
            locks.exclusive(tmp_path),
        ):
            pass
        monkeypatch.setattr(locks, "_NFS_SECONDS", 60)
        threading.Timer(0.3, process.kill).start()  # the server frees the locks of its host
        with locks.exclusive(tmp_path):
            pass
    said = capsys.readouterr().err
    for seconds in (0.6, 60):
        assert f"is locked by another host; watching for {seconds} s" in said


def test_of_many_that_try_again_and_again_one_has_the_lock(tmp_path, quick):
    inside, most, wins = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, wins
        for _ in range(200):
            with contextlib.suppress(LockedError), locks.exclusive(tmp_path):
                with guard:
                    inside += 1
                    wins += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and wins > 4


def test_in_a_bucket_a_second_process_is_refused_and_a_killed_one_replaced(storage, monkeypatch):
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.1)
    folder = "gs://bucket/run [a]"
    with holder(folder) as process:
        refused(folder, process.pid)
        process.kill()
        process.wait()
        began = time.monotonic()
        with locks.exclusive(to_path(folder)):
            assert time.monotonic() - began < 15  # it is known to be dead: nothing to wait for
            refused(folder, os.getpid())
    assert not storage.below("run [a]/")


def test_in_a_bucket_the_lock_of_a_host_that_is_gone_expires(storage, quick):
    owner = {"host": "gone", "pid": 1, "namespace": "", "since": "2026", "command": "train"}
    storage.put("gone/.lock", json.dumps(owner).encode())
    began = time.monotonic()
    with locks.exclusive(to_path("gs://bucket/gone")):
        assert time.monotonic() - began > 0.6
        assert json.loads(storage.objects["gone/.lock"])["pid"] == os.getpid()
    storage.put("gone/.lock", b"torn")
    with locks.exclusive(to_path("gs://bucket/gone")):
        pass


def test_in_a_bucket_a_frozen_owner_that_was_replaced_ends(storage, quick):
    folder = to_path("gs://bucket/frozen")
    with holder(folder) as process:
        freeze(process)
        with locks.exclusive(folder):
            process.send_signal(signal.SIGCONT)
            assert process.wait(timeout=30) == 2
            assert json.loads(storage.objects["frozen/.lock"])["pid"] == os.getpid()
            time.sleep(0.3)  # some beats
        assert not storage.below("frozen/")


def test_what_cannot_be_written_is_named(tmp_path, storage):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", to_path("gs://nobody/run")):
        with (
            pytest.raises(ValueError, match=f"cannot write to {folder}: N"),
            locks.exclusive(folder),
        ):
            pass
