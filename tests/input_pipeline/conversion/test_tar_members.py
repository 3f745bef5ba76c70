"""Tars as people pack them: every member is part of a sample, of a rejection, or counted."""

import io
import json
import tarfile
from collections import Counter

import pytest
from helpers import corpora
from helpers.corpora import convert
from helpers.unimed_layouts import encoded
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.conversion.sources.tar_members import tar_samples


def put_tar(path, members, format_=tarfile.PAX_FORMAT):
    """Members are (name, bytes or text), (name, None) for a folder, or a TarInfo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format_) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            data = data.encode() if isinstance(data, str) else data
            if data is None:
                info.type, data = tarfile.DIRTYPE, b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def run(tmp_path, members, *flags, status=0, **options):
    put_tar(tmp_path / "tars/a.tar", members, **options)
    out = tmp_path / "out"
    raw = f"--raw={tmp_path / 'tars'}"
    assert convert("webdataset", out, raw, "--modality=ct", "--max_rejected=1", *flags) == status
    samples = corpora.samples_of(out)
    inputs = corpora.report(out)["inputs"]
    members = sum(n for what, n in inputs.items() if what.startswith("member"))
    assert members == 2 * inputs["members"], "a member is neither used nor left out"
    return {id_.removeprefix("tars/a/"): s.captions for id_, s in samples.items()}, inputs


def pairs(*stems):
    return [
        m for stem in stems for m in ((f"{stem}.jpg", encoded()), (f"{stem}.txt", f"of {stem}"))
    ]


def test_stems_with_dots_are_stems(tmp_path):
    uids = [f"1.2.826.0.1.3680043.{k}" for k in range(20)]
    stems = [*uids, "ok0", "ok1", "ok2", "a.b/photo.v2", "a.b/photo.v3"]
    samples, inputs = run(tmp_path, pairs(*stems))
    assert samples == {stem: (f"of {stem}",) for stem in stems}
    assert inputs == {"members": 50, "members of samples": 50}


def test_members_of_a_sample_need_not_be_neighbours(tmp_path):
    samples, _ = run(tmp_path, sorted(pairs("a", "b", "c"), key=lambda m: m[0][-3:]))
    assert samples == {stem: (f"of {stem}",) for stem in "abc"}


def test_what_is_left_out_is_counted_by_kind(tmp_path):
    members = [
        ("./", None),
        ("./x", None),
        *pairs("./x/1"),
        ("x/1.seg.png", encoded(0, "PNG")),
        ("x/1.npy", b""),
        ("._1.jpg", b""),
        ("__MACOSX/x/1.jpg", b""),
        (".cache/1.jpg", b""),
        ("README", ""),
        ("1.2.840", ""),
        link("fifo", "", tarfile.FIFOTYPE),
        link("2.jpg", "elsewhere.jpg", tarfile.SYMTYPE),
        ("2.txt", "a text"),
    ]
    samples, inputs = run(tmp_path, members)
    assert samples == {"./x/1": ("of ./x/1",)}
    assert inputs == {
        "members": 14,
        "members of samples": 3,
        "members left out: devices and sparse files": 1,
        "members left out: extension .npy": 1,
        "members left out: folders": 2,
        "members left out: hidden files": 3,
        "members left out: links to what is not in the tar": 1,
        "members left out: more than the image and text of a sample": 1,
        "members left out: no known extension": 2,
    }
    (rejection,) = corpora.rejections(tmp_path / "out")
    assert rejection["reason"] == "no image in the sample"


def test_links_are_what_they_lead_to(tmp_path):
    members = [
        *pairs("a/1"),
        link("a/2.jpg", "./a/1.jpg", tarfile.LNKTYPE),
        link("a/2.txt", "1.txt", tarfile.SYMTYPE),
        link("b/3.jpg", "../a/2.jpg", tarfile.SYMTYPE),
        ("b/3.txt", "third"),
        link("b/4.jpg", "4.jpg", tarfile.SYMTYPE),
    ]
    samples, inputs = run(tmp_path, members)
    assert samples == {"a/1": ("of a/1",), "a/2": ("of a/1",), "b/3": ("third",)}
    images = {s.image for s in corpora.samples_of(tmp_path / "out").values()}
    assert images == {encoded()}
    assert inputs["members left out: links to what is not in the tar"] == 1


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (("1.jpg", encoded(5)), "more than one member 1.jpg"),
        (("./1.txt", "another"), "more than one member 1.txt"),
        (("1.PNG", encoded(5, "PNG")), "more than one image: jpg, png"),
    ],
)
def test_members_that_compete_are_refused(tmp_path, extra, reason):
    samples, _ = run(tmp_path, [*pairs("1", "2"), extra])
    assert samples == {"2": ("of 2",)}
    assert [r["reason"] for r in corpora.rejections(tmp_path / "out")] == [reason]


def test_all_texts_of_a_sample_are_captions(tmp_path):
    table = {"caption": "from  json", "text": "one text", "captions": ["one text", "more"]}
    members = [
        ("1.jpg", encoded()),
        ("1.txt", "\ufeffone\ntext"),
        ("1.json", json.dumps(table | {"label": "a"})),
        ("1.cls", "b"),
        ("2.jpg", encoded()),
        ("2.jpg.txt", "beside the name"),
    ]
    samples, _ = run(tmp_path, members)
    assert samples == {"1": ("one text", "from json", "more"), "2": ("beside the name",)}
    assert corpora.samples_of(tmp_path / "out")["tars/a/1"].labels == ("b",)
    assert corpora.report(tmp_path / "out")["notes"] == {
        "label of .cls taken, not that of .json": 1
    }


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_format_of_tars(tmp_path, format_):
    stem = f"{'folder' * 12}/{'1.2.' * 20}9"
    samples, _ = run(tmp_path, pairs(stem), format_=format_)
    assert samples == {stem: (f"of {stem}",)}


def test_compressed_tars_beside_others_are_rejections(tmp_path):
    put_tar(tmp_path / "tars/b.tar.gz", pairs("1"))
    put_tar(tmp_path / "tars/more/c.tar", pairs("1"))
    _, inputs = run(tmp_path, pairs("1"))
    assert inputs == {
        "members": 2,
        "members of samples": 2,
        "tars in folders below, which are not read": 1,
    }
    (rejection,) = corpora.rejections(tmp_path / "out")
    assert rejection["path"] == "b.tar.gz" and "compressed: unpack it" in rejection["reason"]


words = st.text("ab1.", min_size=1, max_size=6)
kinds = st.sampled_from(["jpg", "PNG", "txt", "json", "cls", "seg.png", "npy", "jpg.txt", ""])


@given(st.lists(st.tuples(st.sampled_from(["", "./", "a/", "./a/"]), words, kinds), max_size=30))
def test_any_names_are_used_or_counted(tmp_path_factory, names):
    path = tmp_path_factory.getbasetemp() / "any.tar"
    members = [(f"{folder}{word}.{kind}", b"x") for folder, word, kind in names]
    put_tar(path, members)
    inputs = Counter()
    samples = list(tar_samples(path, inputs))
    assert all(not isinstance(sample, str) for sample in samples)
    used = [m.name for s in samples for part in s.members.values() for m in part]
    assert not Counter(used) - Counter(name for name, _ in members), "a member is used twice"
    assert len(used) == inputs["members of samples"]
    assert inputs["members"] == len(members)
    assert sum(inputs.values()) == 2 * len(members)
    assert len({s.stem.removeprefix("./") for s in samples}) == len(samples)
