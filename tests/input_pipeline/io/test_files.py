"""Paths: local ones as ever, URLs unharmed; files appear whole in a bucket, or not at all."""

import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import corpora

from input_pipeline.io import files
from input_pipeline.io.errors import UserError

URL = "gs://bucket/a folder/x.csv"


def test_a_url_stays_a_url(storage):
    path = files.to_path(URL)
    assert str(path) == str(path.absolute()) == str(pickle.loads(pickle.dumps(path))) == URL
    assert str(path.parent / "b" / "c") == "gs://bucket/a folder/b/c"
    assert files.to_path(path) == path and not files.is_local(path)
    assert files.to_path("gs://bucket/a/").name == "a"
    with pytest.raises(TypeError):
        os.fspath(path)  # no function that knows local files alone takes it for one


def test_other_texts_are_local_paths():
    for text in ("a/b", "/a", "C:\\a", "~/a", "a//b"):
        assert files.to_path(text) == Path(text) and files.is_local(files.to_path(text))
    assert files.to_path("file:///a/b") == Path("/a/b")


@pytest.mark.parametrize("torn", ["gs:/bucket/x", Path("gs://bucket/x"), Path("s3://bucket")])
def test_a_url_that_lost_a_slash_is_refused(torn):
    with pytest.raises(UserError, match=r"a URL has two slashes"):
        files.to_path(torn)


def test_what_is_missing_for_a_url_is_named(monkeypatch):
    with pytest.raises(UserError, match=r"http://host/x: expected a path, or a URL of gs, s3"):
        files.to_path("http://host/x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'unimed_jax\[gcs\]'"):
        files.to_path(URL)


def test_names_in_tables_are_below_the_folder_or_anywhere(storage):
    bucket, local = files.to_path("gs://bucket/d"), Path("/d")
    for name, remote, here in (
        ("x.png", "gs://bucket/d/x.png", "/d/x.png"),
        (".", "gs://bucket/d", "/d"),
        ("", "gs://bucket/d", "/d"),
        ("a/./x", "gs://bucket/d/a/x", "/d/a/x"),
        ("../x", "gs://bucket/x", "/d/../x"),
        ("/x", "/x", "/x"),
        ("gs://other/x", "gs://other/x", "gs://other/x"),
        # an image on the web is not fetched: there is no such file
        ("http://host/x", "gs://bucket/d/http:/host/x", "/d/http:/host/x"),
    ):
        assert str(files.under(bucket, name)) == remote
        assert str(files.under(local, name)) == here


def test_files_are_written_read_and_found_in_a_bucket(storage):
    folder = files.to_path("gs://bucket/one")
    files.write_text_atomically(folder / "b" / "x.txt", "ä\nß\n")
    files.write_bytes_atomically(folder / "a.bin", bytes(range(256)))
    files.write_bytes_atomically(folder / ".hidden", b"")
    assert storage.below("one/") == {
        "b/x.txt": "ä\nß\n".encode(), "a.bin": bytes(range(256)), ".hidden": b"",
    }  # fmt: skip
    assert files.read_bytes(folder / "a.bin", (250, 3)) == bytes((250, 251, 252))
    assert files.read_bytes(folder / "a.bin", (250, 30)) == bytes(range(250, 256))
    assert files.read_bytes(folder / "a.bin", (300, 5)) == b""
    with pytest.raises(OSError) as missing:
        files.read_bytes(folder / "none")
    assert files.reason(missing.value) == "No such file or directory"  # as on a disk
    assert list(files.walk_files(folder)) == ["a.bin", "b/x.txt"]
    found = [str(path) for path in files.find_files(folder)]
    assert found == [f"gs://bucket/one/{name}" for name in (".hidden", "a.bin", "b/x.txt")]
    assert files.local_copy(folder / "a.bin").read_bytes() == bytes(range(256))
    copy = files.local_copy(folder)
    assert (copy / "b" / "x.txt").read_text("utf-8") == "ä\nß\n" and copy.name == "one"
    files.remove_tree(folder / "b")
    files.remove_tree(folder / "never was")
    assert storage.below("one/").keys() == {".hidden", "a.bin"}


def test_lines_of_a_bucket_are_not_a_request_each(storage):
    content = "".join(f"{n},some cell\n" for n in range(50_000)).encode()
    storage.put("lines.csv", content)
    before = len(storage.requests)
    with files.open_to_read(files.to_path("gs://bucket/lines.csv")) as file:
        assert b"".join(file) == content
    assert len(storage.requests) - before < 10


def test_of_many_that_create_a_file_one_succeeds(storage):
    path = files.to_path("gs://bucket/plan.json")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: files.create(path, str(n)), range(8)))
    assert sum(made) == 1
    assert storage.objects["plan.json"] == str(made.index(True)).encode()


def test_a_folder_in_a_bucket_is_sent_once(storage, tmp_path):
    for name, text in (("a", "1"), ("b/c", "22")):
        files.write_text_atomically(tmp_path / name, text)
    target = files.to_path("gs://bucket/moved")
    files.move_folder(tmp_path, target)
    generations = dict(storage.generations)
    files.move_folder(tmp_path, target)
    assert storage.generations == generations
    (tmp_path / "a").write_text("longer")
    files.move_folder(tmp_path, target)
    assert storage.below("moved/") == {"a": b"longer", "b/c": b"22"}


def test_a_growing_file_is_seen_after_every_publish(storage):
    grown = files.AppendOnlyFile(files.to_path("gs://bucket/grown.jsonl"), b"1\n")
    with grown.local.open("ab") as file:
        for line in (b"2\n", b"3\n"):
            file.write(line)
            file.flush()
            before = storage.objects["grown.jsonl"]
            grown.publish()
            assert storage.objects["grown.jsonl"] == before + line


def test_an_error_of_the_bucket_is_one_line(storage):
    with pytest.raises(UserError, match=r"^cannot write gs://nobody/x"):
        files.write_text_atomically("gs://nobody/x", "")


@pytest.mark.parametrize("name", ["run [a]", "a*b", "x y%20"])
def test_the_name_of_a_folder_is_no_pattern(storage, name, tmp_path):
    storage.put("axb/t/a.txt", b"sibling")
    storage.put(f"{name}/t/a.txt", b"own")
    storage.put(f"{name}/t/b/c.txt", b"own")
    folder = files.to_path(f"gs://bucket/{name}/t")
    assert files.sorted_glob(folder, "*.txt") == [folder / "a.txt"]
    copy = files.local_copy(folder)
    assert files.find_files(copy) == [copy / "a.txt", copy / "b" / "c.txt"]
    assert files.local_copy(folder / "a.txt").read_bytes() == b"own"
    files.remove_tree(folder)
    assert not storage.below(f"{name}/")
    assert storage.objects["axb/t/a.txt"] == b"sibling"
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        files.local_copy(folder)


UPLOAD = """
from input_pipeline.io import files
files.write_bytes_atomically("gs://bucket/large", bytes(9_000_000))
"""


@pytest.mark.slow
def test_an_upload_that_is_killed_leaves_the_old_file(storage):
    storage.put("large", b"old")
    storage.hold, _ = lambda: True, storage.held.clear()
    environment = os.environ | {"PYTHONPATH": str(corpora.REPO)}
    process = subprocess.Popen([sys.executable, "-c", UPLOAD], env=environment)
    assert storage.held.wait(120)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    storage.hold = None
    assert storage.objects["large"] == b"old"
    subprocess.run([sys.executable, "-c", UPLOAD], env=environment, check=True)
    assert storage.objects["large"] == bytes(9_000_000)
