"""`unimed-jax fetch pmc` against an S3 server on loopback with the layout of PMC's bucket."""

import collections
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import official_layouts
from helpers.corpora import REPO, convert, report, samples
from helpers.unimed_layouts import encoded, put_json

pytest.importorskip("boto3", reason="the extra [pmc] is not installed")
pytest.importorskip("moto.server", reason="moto's server is not installed")

from helpers.pmc_server import pmc_server

from input_pipeline.conversion import pmc_bucket
from unimed_jax import fetch_data

ALIGNMENT = "llava_med/llava_med_alignment_500k_filtered.json"
HQ = "llava_med/llava_med_instruct_fig_captions.json"
PANELS = "pmc_oa/caption_T060_filtered_top4_sep_v0_subfigures"


@pytest.fixture(scope="module")
def running_server():
    with pmc_server() as found:
        yield found


@pytest.fixture
def server(running_server, monkeypatch):
    """A bucket that is empty."""
    for name, value in running_server.environment.items():
        monkeypatch.setenv(name, value)
    running_server.reset()
    return running_server


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def name_in_llava(raw, figures):
    """figures: pair id -> path in the article's package, `PMC1/a.jpg`; all in the alignment set."""
    entries = [
        {"image": f"{pair}.jpg", "conversations": [{}, {"value": f"Invented caption of {pair}."}]}
        for pair in figures
    ]
    put_json(raw / ALIGNMENT, entries)
    lines = [
        {
            "pair_id": pair,
            "pmc_tar_url": f"https://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/01/ab/"
            f"{path.partition('/')[0]}.tar.gz",
            "image_file_path": path,
        }
        for pair, path in figures.items()
    ]
    (raw / "llava_med" / "llava_med_image_urls.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in lines)
    )


def name_in_pmc_oa(raw, names):
    (raw / "pmc_oa").mkdir(exist_ok=True)
    lines = [{"image": name, "caption": f"Invented caption of {name}"} for name in names]
    (raw / "pmc_oa" / "pmc_oa.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))


def fetch(raw, *flags, status=0):
    assert fetch_data.main(["pmc", f"--raw={raw}", "--requests_per_second=500", *flags]) == status


def ledger(raw):
    lines = map(json.loads, (raw / "pmc_fetch.jsonl").read_text().splitlines())
    return {line["path"]: line for line in lines}


def gone(raw):
    lines = map(json.loads, (raw / "pmc_gone.jsonl").read_text().splitlines())
    return {line["path"]: line["gone"] for line in lines}


def images(raw):
    return {
        path.relative_to(raw).as_posix(): path.read_bytes()
        for path in sorted(raw.rglob("*"))
        if path.is_file() and path.suffix == ".jpg"
    }


# --- what is brought ----------------------------------------------------------------------------


def test_figures_of_all_parts_are_where_the_converters_look_for_them(server, raw, tmp_path, capsys):
    xml = (
        '<article xmlns:xlink="http://www.w3.org/1999/xlink"><body>'
        '<fig id="Fig3"><label>3</label><graphic xlink:href="77_2020_9_Fig3_HTML"/></fig>'
        "</body></article>"
    )
    server.put_article("PMC11", {"a.jpg": encoded(1), "b.jpg": encoded(2), "s.pdf": b"%PDF"})
    server.put_article("PMC12", {"gr1.jpg": encoded(3)}, license_code="CC BY-NC")
    server.put_article("PMC77", {"77_2020_9_Fig3_HTML.jpg": encoded(4)}, xml)
    server.put_article("PMC78", {"pbio-0030085-g005.jpg": encoded(5)})
    name_in_llava(raw, {"1_F1": "PMC11/a.jpg", "2_F1": "PMC12/gr1.jpg", "2_F9": "PMC11/b.jpg"})
    put_json(
        raw / HQ, {"mri": [{"pair_id": "2_F9", "fig_caption": "x y", "in_text_mention": None}]}
    )
    name_in_pmc_oa(
        raw, ["PMC77_Fig3_1.jpg", "PMC77_Fig3_2.jpg", "PMC78_pbio-0030085-g005_1483.jpg"]
    )
    fetch(raw, "--parts=llava_med_alignment,llava_med_hq60k,pmc_oa")
    assert images(raw) == {
        "llava_med/images/1_F1.jpg": encoded(1),
        "llava_med/images/2_F1.jpg": encoded(3),
        "llava_med/images/2_F9.jpg": encoded(2),
        f"{PANELS}/PMC77_Fig3_1.jpg": encoded(4),
        f"{PANELS}/PMC77_Fig3_2.jpg": encoded(4),
        f"{PANELS}/PMC78_pbio-0030085-g005_1483.jpg": encoded(5),
    }
    said = capsys.readouterr().out
    assert "6 figures named = 0 there before + 6 fetched + 0 gone + 0 failed + 0 not asked" in said
    lines = ledger(raw)
    for path, content in images(raw).items():
        line = lines[path]
        assert line["sha256"] == hashlib.sha256(content).hexdigest()
        assert line["md5"] == hashlib.md5(content).hexdigest() and line["bytes"] == len(content)
    assert lines["llava_med/images/2_F1.jpg"]["licence"] == "CC BY-NC"
    assert lines["llava_med/images/2_F1.jpg"]["key"] == "PMC12.1/gr1.jpg"
    assert gone(raw) == {}
    # a figure of two panels, and one of two parts, are asked for once; supplements never
    assert collections.Counter(server.asked(".jpg")).most_common(1)[0][1] == 1
    assert not server.asked(".pdf")

    for key, count in (("llava_med_alignment", 3), ("llava_med_hq60k", 1), ("pmc_oa", 3)):
        out = tmp_path / "out" / key
        assert convert(key, out, f"--raw={raw}") == 0
        assert report(out)["rejected"] == 0 and len(samples(out)["train"]) == count


def test_the_official_files_in_the_folders_of_their_repository(server, raw, tmp_path):
    official_layouts.llava_med_alignment(raw)
    names = sorted(path.stem for path in (raw / "data" / "images").iterdir())
    for path in (raw / "data" / "images").iterdir():
        path.unlink()
    lines = []
    for n, name in enumerate(names):
        server.put_article(f"PMC{n}", {f"x-{n}.jpg": encoded(n)})
        lines.append({"pair_id": name, "pmc_tar_url": "", "image_file_path": f"PMC{n}/x-{n}.jpg"})
    listing = raw / "data" / "llava_med_image_urls.jsonl"
    listing.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    fetch(raw)
    assert images(raw) == {f"data/images/{name}.jpg": encoded(n) for n, name in enumerate(names)}
    assert convert("llava_med_alignment", tmp_path / "out", f"--raw={raw}") == 0
    assert report(tmp_path / "out")["written"] == 3


def test_the_newest_version_that_has_a_figure_is_taken_whatever_its_suffix(server, raw):
    server.put_article("PMC1", {"old.jpg": encoded(1), "same.jpg": encoded(2)}, version=1)
    server.put_article("PMC1", {"SAME.PNG": encoded(3, "PNG")}, version=2, is_retracted=True)
    server.put_article("PMC1", {"same.tif": encoded(4, "TIFF")}, version=10)
    server.put_article("PMC10", {"old.jpg": encoded(5)})  # not a version of PMC1
    name_in_llava(raw, {"a": "PMC1/same.jpg", "b": "PMC1/old.jpg"})
    fetch(raw)
    lines = ledger(raw)
    assert lines["llava_med/images/a.jpg"]["key"] == "PMC1.10/same.tif"
    assert lines["llava_med/images/b.jpg"]["key"] == "PMC1.1/old.jpg"
    assert images(raw)["llava_med/images/b.jpg"] == encoded(1)
    server.put_article("PMC2", {"same.GIF": encoded(1, "GIF"), "SAME.JPEG": encoded(2)})
    found = pmc_bucket.PmcBucket().article("PMC2.1").figure("Same.jpg")
    assert found.key == "PMC2.1/SAME.JPEG"
    assert pmc_bucket.PmcBucket().article("PMC1.2").retracted


def test_what_is_gone_is_listed_with_the_reason_and_not_asked_for_again(server, raw, capsys):
    server.put_article("PMC1", {"a.jpg": encoded(1)})
    server.client.delete_object(Bucket="pmc-oa-opendata", Key="PMC1.1/a.jpg")
    server.put_article("PMC2", {"other.jpg": encoded(2)})
    server.put_article("PMC4", {"x.jpg": encoded(4)}, xml="<article><fig id='F1'>")
    figures = {"1": "PMC1/a.jpg", "2": "PMC2/a.jpg", "3": "PMC3/a.jpg"}
    name_in_llava(raw, figures)
    entries = json.loads((raw / ALIGNMENT).read_text())
    for name in ("unlisted.jpg", "../../../out.jpg"):
        entries.append({**entries[0], "image": name})
    put_json(raw / ALIGNMENT, entries)
    name_in_pmc_oa(raw, ["PMC4_F1_1.jpg", "odd.jpg"])
    fetch(raw, "--parts=llava_med_alignment,pmc_oa")
    assert gone(raw) == {
        "llava_med/images/1.jpg": "PMC1.1/a.jpg is not in the bucket",
        "llava_med/images/2.jpg": "PMC2.1 has no such figure: a.jpg",
        "llava_med/images/3.jpg": "PMC3 is not in the bucket",
        "llava_med/images/unlisted.jpg": "llava_med_image_urls.jsonl does not name it",
        "llava_med/images/../../../out.jpg": "its name leads out of the folder",
        f"{PANELS}/PMC4_F1_1.jpg": "PMC4.1 has no such figure: F1",
        f"{PANELS}/odd.jpg": "its name is not that of a panel of an article",
    }
    assert images(raw) == {} and "7 gone" in capsys.readouterr().out

    server.put("PMC1.1/a.jpg", encoded(1))  # it has come back
    server.requests.clear()
    fetch(raw, "--parts=llava_med_alignment,pmc_oa")
    assert not server.asked("PMC") and len(gone(raw)) == 7
    fetch(raw, "--parts=llava_med_alignment,pmc_oa", "--again")
    assert images(raw) == {"llava_med/images/1.jpg": encoded(1)} and len(gone(raw)) == 6


def test_images_that_are_there_stay_and_cost_no_request(server, raw, capsys):
    server.put_article("PMC1", {"a.jpg": encoded(1)})
    name_in_llava(raw, {"mine": "PMC1/a.jpg"})
    (raw / "llava_med" / "images").mkdir()
    (raw / "llava_med" / "images" / "mine.jpg").write_bytes(b"an image of the user")
    fetch(raw)
    assert images(raw)["llava_med/images/mine.jpg"] == b"an image of the user"
    assert not server.asked("PMC1") and "1 there before + 0 fetched" in capsys.readouterr().out


# --- a server that fails ------------------------------------------------------------------------


def test_throttling_errors_cut_and_wrong_objects_are_tried_again(server, raw, capsys):
    names = ("slow", "error", "cut", "other", "close")
    for n, name in enumerate(names):
        server.put_article(f"PMC{n}", {f"{name}.jpg": encoded(n)})
    name_in_llava(raw, {name: f"PMC{n}/{name}.jpg" for n, name in enumerate(names)})
    failed = set()

    def first_time(path):
        key = path.partition("?")[0].rpartition("/")[2]
        if key in failed or not key.endswith(".jpg"):
            return None
        failed.add(key)
        return key.removesuffix(".jpg")

    server.fault = first_time
    fetch(raw)
    assert images(raw) == {
        f"llava_med/images/{name}.jpg": encoded(n) for n, name in enumerate(names)
    }
    assert len(failed) == 5
    assert all(server.asked().count(f"PMC{n}.1/{name}.jpg") == 2 for n, name in enumerate(names))
    assert "5 fetched + 0 gone + 0 failed" in capsys.readouterr().out


def test_what_fails_all_the_time_is_left_for_another_time(server, raw, capsys, monkeypatch):
    monkeypatch.setattr(pmc_bucket, "_REQUEST_ATTEMPTS", 2)
    monkeypatch.setattr(pmc_bucket, "_ATTEMPTS", 2)
    for n in range(3):
        server.put_article(f"PMC{n}", {"a.jpg": encoded(n)})
    name_in_llava(raw, {str(n): f"PMC{n}/a.jpg" for n in range(3)})
    server.fault = lambda path: {"PMC1.1/a": "error", "PMC2.1/a": "cut"}.get(path[17:25])
    fetch(raw, status=75)
    output = capsys.readouterr()
    assert "1 fetched + 0 gone + 2 failed" in output.out
    assert "run the command again" in output.err and "PMC1.1/a.jpg" in output.err
    assert [*images(raw)] == ["llava_med/images/0.jpg"] and gone(raw) == {}
    server.fault = lambda path: None
    fetch(raw)
    assert len(images(raw)) == 3


def test_a_bucket_that_fails_all_the_time_ends_the_command(server, raw, capsys, monkeypatch):
    monkeypatch.setattr(pmc_bucket, "_REQUEST_ATTEMPTS", 1)
    name_in_llava(raw, {str(n): f"PMC{n}/a.jpg" for n in range(50)})
    server.fault = lambda path: "error" if "prefix" in path else None
    fetch(raw, status=2)
    assert "32 articles in a row could not be fetched" in capsys.readouterr().err
    server.fault = lambda path: "error"
    fetch(raw, status=2)
    assert "cannot list s3://pmc-oa-opendata" in capsys.readouterr().err


@pytest.mark.slow
def test_requests_keep_to_the_rate_and_to_the_number_of_connections(server, raw):
    for n in range(8):
        server.put_article(f"PMC{n}", {"a.jpg": encoded(n)})
    name_in_llava(raw, {str(n): f"PMC{n}/a.jpg" for n in range(8)})
    server.delay = 0.2
    arguments = ["pmc", f"--raw={raw}", "--requests_per_second=20", "--connections=3"]
    assert fetch_data.main(arguments) == 0
    assert len(images(raw)) == 8 and server.most_at_once == 3
    times = [moment for moment, _ in server.requests]
    # a listing, then listing, metadata and figure of each article
    assert len({path for _, path in server.requests}) == 1 + 8 * 3
    # 20 a second: the k-th after any request comes no sooner than k twentieths of a second later
    spans = [times[n + 10] - times[n] for n in range(len(times) - 10)]
    assert min(spans) > 10 / 20 - 0.1


# --- kills --------------------------------------------------------------------------------------


def start(raw, *flags):
    return subprocess.Popen(
        [sys.executable, "-m", "unimed_jax.cli", "fetch", "pmc", f"--raw={raw}", *flags],
        cwd=REPO,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_fetch_goes_on_where_it_was(server, raw):
    count = 40
    contents = {str(n): encoded(n, size=(200, 160)) for n in range(count)}
    for name, content in contents.items():
        server.put_article(f"PMC{name}", {"a.jpg": content})
    name_in_llava(raw, {name: f"PMC{name}/a.jpg" for name in contents})
    server.delay = 0.02
    flags = ("--connections=4", "--requests_per_second=200")
    kills = 0
    for part in (1, 2):
        process = start(raw, *flags)
        deadline = time.monotonic() + 120
        while len(images(raw)) < part * count // 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        # whatever is visible is whole
        for path, content in images(raw).items():
            assert content == contents[path.rpartition("/")[2].removesuffix(".jpg")]
    assert kills == 2 and len(images(raw)) < count
    with (raw / "pmc_fetch.jsonl").open("ab") as file:
        file.write(b'{"path": "llava_med/images/0.jpg", "gone": "tor')  # as a kill may leave it
    before = set(images(raw))
    server.requests.clear()
    process = start(raw, *flags)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert f"{count} figures named = {len(before)} there before + {count - len(before)}" in output
    assert len(server.asked(".jpg")) == count - len(before)  # none twice
    assert {path.rpartition("/")[2] for path in images(raw)} == {f"{n}.jpg" for n in contents}
    for path, content in images(raw).items():
        assert ledger(raw)[path]["sha256"] == hashlib.sha256(content).hexdigest()
    assert not [path for path in raw.rglob("*") if path.name.endswith(".tmp")]


# --- wrong calls --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parts=llava"], "--parts=llava: expected some of llava_med_alignment,"),
        (["--connections=0"], "--connections=0: expected a number above 0"),
        (["--parts=pmc_oa"], "pmc_oa: none of"),
        ([], "the annotation files of no part of LLaVA-Med are in"),
    ],
)
def test_a_wrong_call_is_one_line(server, raw, capsys, flags, message):
    fetch(raw, *flags, status=2)
    error = capsys.readouterr().err
    assert message in error


def test_llava_needs_its_list_of_figures(server, raw, capsys):
    name_in_llava(raw, {"1": "PMC1/a.jpg"})
    (raw / "llava_med" / "llava_med_image_urls.jsonl").unlink()
    fetch(raw, status=2)
    assert "llava_med_image_urls.jsonl is not in" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(server, raw, capsys):
    from input_pipeline.io import locks

    name_in_llava(raw, {"1": "PMC1/a.jpg"})
    with locks.exclusive(raw):
        fetch(raw, status=2)
    assert "is in use by process" in capsys.readouterr().err
