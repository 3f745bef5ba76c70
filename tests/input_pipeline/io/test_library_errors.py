"""Errors of libraries whose cause is outside the program are one line; faults are not hidden."""

import errno
import os
import socket
import time
from pathlib import Path

import pytest
import tensorflow as tf

from input_pipeline.io import cli, files
from input_pipeline.io.errors import UserError
from input_pipeline.io.library_errors import TRACEBACK, LibraryError, user_errors
from unimed_jax import convert_corpus

FULL = Path("/dev/full")  # every write to it fails as on a full disk


def write_text() -> None:
    with FULL.open("w") as file:
        file.write("x")


def write_records() -> None:
    with tf.io.TFRecordWriter(str(FULL)) as writer:
        writer.write(b"x")


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("write", [write_text, write_records])
def test_a_full_disk_is_named(write):
    with pytest.raises(LibraryError, match=r"No space left.*; make room") as found, user_errors():
        write()
    assert not found.value.temporary


@user_errors()
def explained(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/a/b"), "^/a/b: Permission den"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/a"), "^/a: No such file"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a"), "/a: Too many open .*ulimit -n"),
        (MemoryError("Unable to allocate 49 GiB"), "too little memory: Unable to allocate 49 GiB"),
        (BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), "nothing reads the output"),
        (
            ValueError('RESOURCE_EXHAUSTED: Failed writing: "/c/d": No space left on device [x=1]'),
            "^cannot write /c/d: No space left on device",
        ),
        (ValueError("NOT_FOUND: /c/d does not exist [x='pages']"), r"^/c/d does not exist$"),
        (tf.errors.DataLossError(None, None, "corrupted record at 7"), "^corrupted record at 7$"),
    ],
)
def test_known_causes_are_one_line(error, message):
    with pytest.raises(LibraryError, match=message) as found:
        explained(error)
    assert found.value.__cause__ is error
    assert "\n" not in str(found.value)


def test_a_cause_is_found_below_wrappers():
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b")
        except OSError as error:
            raise RuntimeError("a worker failed") from error
    except RuntimeError as error:
        with pytest.raises(LibraryError, match=r"^cannot write /a/b: No space left"):
            explained(error)


@pytest.mark.parametrize("error", [ZeroDivisionError(), ValueError("x"), KeyError("x")])
def test_a_fault_of_the_program_is_not_hidden(error):
    with pytest.raises(type(error)):
        explained(error)


def test_an_error_of_the_bucket_is_one_line():
    from gcsfs.retry import HttpError

    for code, temporary in ((401, False), (503, True)):
        with pytest.raises(LibraryError, match=r"the bucket cannot be used: .*Anonym") as found:
            explained(HttpError({"code": code, "message": "Anonymous caller"}))
        assert found.value.temporary is temporary


def test_without_a_network_the_reason_is_given_at_once(monkeypatch, tmp_path, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"^gs://bucket/run: no connection to .*Connection refused"):
        files.to_path("gs://bucket/run")
    assert time.monotonic() - began < 5
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        convert_corpus.main(["csv", "--input=gs://bucket/a.csv", f"--out={tmp_path}"])
    assert capsys.readouterr().err.startswith("error: gs://bucket/a.csv: no connection to http")


def test_commands_show_one_line_and_the_traceback_on_demand(capsys, monkeypatch):
    def fail() -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    assert cli.run(fail) == cli.RESTART_STATUS
    said = capsys.readouterr().err
    assert said == f"error: Connection refused ({TRACEBACK}=1 shows the traceback)\n"
    monkeypatch.setenv(TRACEBACK, "1")
    cli.run(fail)
    said = capsys.readouterr().err
    assert "in fail" in said
    assert said.splitlines()[-1].startswith("error: Connection refused")
