"""Class folders, tars, TFDS data and the readers of files: what is read, and what is refused."""

import io
import json
import tarfile

import numpy as np
import pytest
from helpers import corpora
from helpers.corpora import convert
from helpers.dicom_files import dicom_file
from helpers.unimed_layouts import encoded, put_image
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.conversion.sources.webdataset import split_captions
from input_pipeline.conversion.unimed_parts import PARTS, TarLayout
from input_pipeline.io import dicom, tabular_files
from input_pipeline.io.cell_text import clean_texts, literal_texts
from input_pipeline.io.errors import CorpusError


@pytest.fixture
def captions_file(tmp_path):
    path = tmp_path / "captions.json"
    templates = {"*": ["{label} on {modality}"]}
    path.write_text(json.dumps({"version": 1, "modalities": {"ct": templates, "xray": templates}}))
    return f"--captions={path}"


# --- folder -------------------------------------------------------------------------------------


def test_class_folders(tmp_path, captions_file):
    raw = tmp_path / "lungs"
    for name in ("benign/p1_a.jpg", "benign/p2_a.jpg", "malignant/deep/p1_b.jpg"):
        put_image(raw / name)
    (raw / "LICENSE").write_text("beside the classes")
    (raw / "benign/notes.txt").write_text("no image")
    (raw / "benign/.hidden").write_text("")
    put_image(tmp_path / "elsewhere/p3_c.jpg")
    (raw / "linked").symlink_to(tmp_path / "elsewhere")
    (raw / "linked/around").symlink_to(raw)
    put_image(raw / "__MACOSX/benign/1.jpg")
    flags = ("--modality=ct", r"--group_regex=(p\d+)_", captions_file)
    assert convert("folder", tmp_path / "out", f"--raw={raw}", *flags) == 0
    samples = corpora.samples_of(tmp_path / "out")
    assert {id_: (s.labels, s.group) for id_, s in samples.items()} == {
        "lungs/benign/p1_a.jpg": (("benign",), "p1"),
        "lungs/benign/p2_a.jpg": (("benign",), "p2"),
        "lungs/malignant/deep/p1_b.jpg": (("malignant",), "p1"),
        "lungs/linked/p3_c.jpg": (("linked",), "p3"),
    }
    assert corpora.report(tmp_path / "out")["inputs"] == {
        "files beside the class folders": 1,
        "files in __MACOSX": 1,
    }
    assert samples["lungs/benign/p1_a.jpg"].captions == ("benign on ct",)
    (rejection,) = corpora.rejections(tmp_path / "out")
    assert rejection["path"] == "benign/notes.txt" and "not an image" in rejection["reason"]


def test_class_folders_of_a_split_that_is_given(tmp_path, captions_file):
    put_image(tmp_path / "raw" / "a/1.jpg")
    flags = (f"--raw={tmp_path / 'raw'}", "--modality=ct", "--split=val", captions_file)
    assert convert("folder", tmp_path / "out", *flags) == 0
    assert {split: list(x) for split, x in corpora.samples(tmp_path / "out").items()} == {
        "val": ["raw/a/1.jpg"]
    }


def test_split_folders_above_class_folders(tmp_path, captions_file):
    for name in ("train/a/1.jpg", "Validation/a/2.jpg", "test/b/3.jpg"):
        put_image(tmp_path / "raw" / name)
    flags = (f"--raw={tmp_path / 'raw'}", "--modality=ct", "--source=src", captions_file)
    assert convert("folder", tmp_path / "out", *flags) == 0
    found = {split: list(x) for split, x in corpora.samples(tmp_path / "out").items()}
    assert found == {
        "train": ["src/train/a/1.jpg"],
        "val": ["src/Validation/a/2.jpg"],
        "test": ["src/test/b/3.jpg"],
    }


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--raw={}/none", "cannot read"),
        ("--raw={}/empty", "holds no folders; expected one per class"),
        ("--raw={}/mixed", "holds the splits test, train and the folder masks: move away"),
        ("--group_regex=(", "--group_regex=(: "),
        ("--group_regex=p", "it has no group in parentheses"),
    ],
)
def test_unusable_folders_are_errors(tmp_path, capsys, flag, message):
    (tmp_path / "empty").mkdir()
    for name in ("train", "test", "masks"):
        put_image(tmp_path / "mixed" / name / "a/1.jpg")
    put_image(tmp_path / "raw/a/1.jpg")
    flags = ("--modality=ct", f"--raw={tmp_path / 'raw'}", flag.format(tmp_path))
    assert convert("folder", tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err


def test_dicom_files_become_images_without_anything_of_the_patient(tmp_path, captions_file):
    raw = tmp_path / "chests"
    for label in ("normal", "nodule"):
        (raw / label).mkdir(parents=True)
        data = dicom_file(np.arange(400, dtype=np.uint16).reshape(20, 20), bits_stored=12)
        (raw / label / "image.dcm").write_bytes(data)
    out = tmp_path / "out"
    assert convert("folder", out, f"--raw={raw}", "--modality=xray", captions_file) == 0
    assert len(corpora.samples_of(out)) == 2
    notes = corpora.report(out)["notes"]
    assert notes["DICOM stored as PNG"] == notes[dicom.IDENTITY_NOTE] == 2
    written = b"".join(corpora.contents(out).values())
    assert b"secret-4711" not in written and b"Nobody" not in written


# --- webdataset ---------------------------------------------------------------------------------


def put_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            data = data if isinstance(data, bytes) else data.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tars_as_open_clip_reads_them(tmp_path):
    raw = tmp_path / "tars"
    put_tar(
        raw / "b.tar",
        [
            ("x/000.PNG", encoded(1, "PNG")),
            ("x/000.json", json.dumps({"caption": " from  json ", "label": ["a", "b"]})),
        ],
    )
    put_tar(
        raw / "a.tar",
        [
            ("000.jpg", encoded(2)),
            ("000.txt", "a text"),
            ("000.cls", "normal"),
            ("001.txt", "a text without an image"),
            ("002.jpg", encoded(3)),
            ("003.jpg", encoded(4)),
            ("003.json", "{"),
        ],
    )
    out = tmp_path / "out"
    flags = ("--modality=ct", "--max_rejected=1")
    assert convert("webdataset", out, f"--raw={raw}", *flags) == 0
    samples = corpora.samples_of(out)
    assert samples.keys() == {"tars/a/000", "tars/b/x/000"}
    first, second = samples["tars/a/000"], samples["tars/b/x/000"]
    assert first.image == encoded(2) and first.captions == ("a text",)
    assert first.labels == ("normal",) and first.num_original_captions == 1
    assert second.image == encoded(1, "PNG") and second.captions == ("from json",)
    assert second.labels == ("a", "b")
    found = {r["row"]: r["reason"] for r in corpora.rejections(out)}
    assert found[2] == "no image in the sample" and found[3] == "neither text nor label"
    assert found.keys() == {2, 3, 4}


def test_tars_of_a_part_under_either_folder_name(tmp_path):
    token = "_mimiccxr_"
    templates = token.join(f"template {n}." for n in range(10))
    for folder in PARTS["mimic_cxr"].tar.folders:
        raw, out = tmp_path / f"raw_{folder}", tmp_path / f"out_{folder}"
        put_tar(
            raw / folder / "dataset-000001.tar",
            [
                ("000000.jpg", encoded(0, "PNG")),  # the extension says nothing
                ("000000.txt", f"{templates}{token}{token}the report"),
                ("000001.jpg", encoded(1)),
                ("000001.txt", f"{templates}{token}{token}noreportpresent"),
            ],
        )
        put_tar(raw / folder / "dataset-000002.tar", [])  # empty tars are normal
        assert convert("webdataset", out, f"--raw={raw}", "--part=mimic_cxr") == 0
        samples = corpora.samples_of(out)
        first = samples["mimic_cxr/dataset-000001/000000"]
        assert first.captions[0] == "the report" and first.num_original_captions == 1
        assert len(first.captions) == 11 and first.image[1:4] == b"PNG"
        second = samples["mimic_cxr/dataset-000001/000001"]
        assert second.num_original_captions == 0 and len(second.captions) == 10
        assert corpora.report(out)["expected"]["difference"] == 2 - 269_001


def test_separators_and_generated_texts_of_other_tars(tmp_path):
    text = "_dr_".join([*(f"caption {n}" for n in range(15)), ""])
    put_tar(tmp_path / "dr/a.tar", [("0.jpg", encoded()), ("0.txt", text)])
    flags = (f"--raw={tmp_path / 'dr'}", "--modality=fundus", "--separator=_dr_")
    for name, more, originals in (("a", (), 15), ("b", ("--generated",), 0)):
        assert convert("webdataset", tmp_path / name, *flags, *more) == 0
        (sample,) = corpora.samples_of(tmp_path / name).values()
        assert len(sample.captions) == 15 and sample.num_original_captions == originals


@pytest.mark.parametrize("cut", [-3000, -1200, 700])
def test_a_tar_cut_off_gives_what_is_whole_and_a_rejection(tmp_path, cut):
    path = tmp_path / "tars/a.tar"
    members = [m for n in range(4) for m in ((f"{n}.jpg", encoded(n)), (f"{n}.txt", f"text {n}"))]
    put_tar(path, members)
    end = path.read_bytes().rindex(b"text 3") + 512
    data = path.read_bytes()[:end]
    path.write_bytes(data[:cut] if cut < 0 else data[: 2048 + cut])
    put_tar(tmp_path / "tars/b.tar", members[:2])
    out = tmp_path / "out"
    assert convert("webdataset", out, f"--raw={path.parent}", "--modality=ct") in (0, 1)
    assert "tars/b/0" in corpora.samples_of(out)
    reasons = " ".join(r["reason"] for r in corpora.rejections(out))
    assert "cut off" in reasons
    for sample in corpora.samples_of(out).values():
        assert sample.image in {encoded(n) for n in range(4)}


def test_unusable_tars_are_errors(tmp_path, capsys):
    for flags, message in (
        (("--modality=ct",), "there is no .tar in"),
        ((), "give --modality=NAME, or --part=KEY"),
        (("--part=mimic",), "--part=mimic: expected one of radimagenet,"),
        (("--part=openi", "--separator=_"), "--part says how captions are joined"),
    ):
        assert convert("webdataset", tmp_path / "out", f"--raw={tmp_path}", *flags) == 2
        assert message in capsys.readouterr().err


def test_compressed_tars_are_refused_with_the_reason(tmp_path, capsys):
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    assert convert("webdataset", tmp_path / "out", f"--raw={tmp_path}", "--modality=ct") == 2
    assert "damaged or cut off" in capsys.readouterr().err


captions_text = st.text(st.characters(exclude_characters="_"), max_size=20)


@settings(deadline=None)
@given(st.lists(captions_text, max_size=12), st.one_of(st.none(), captions_text), st.booleans())
def test_joined_captions_are_split_as_they_were_joined(templates, report, absent):
    """MIMIC: templates, each with the token behind it, one more token, the report or a sentinel."""
    layout = PARTS["mimic_cxr"].tar
    last = "noreportpresent" if absent or report is None else report
    text = "".join(t + layout.separator for t in templates) + layout.separator + last
    original, generated = split_captions(text, layout)
    cleaned = [" ".join(t.split()) for t in templates]
    assert generated == tuple(t for t in cleaned if t)
    assert original == (() if last == layout.absent else clean_or_none(last))


def clean_or_none(text):
    text = " ".join(text.split())
    return (text,) if text else ()


def test_the_first_piece_of_open_i_is_the_original():
    text = "original._openi_ one._openi_two._openi_three._openi_"
    assert split_captions(text, PARTS["openi"].tar) == (("original.",), ("one.", "two.", "three."))
    assert split_captions("whole_text", TarLayout((), num_original=1)) == (("whole_text",), ())


def test_the_sentence_level_caption_of_retina_tars_is_left_out(tmp_path):
    text = "_all_retina_merged_".join(
        [*(f"caption {n}." for n in range(10)), "sentence level.", ""]
    )
    put_tar(
        tmp_path / "retina_part1_webdataset/dataset-000001.tar",
        [("0.jpg", encoded()), ("0.txt", text)],
    )
    convert("webdataset", tmp_path / "out", f"--raw={tmp_path}", "--part=retina_part1")
    (sample,) = corpora.samples_of(tmp_path / "out").values()
    assert sample.captions == tuple(f"caption {n}." for n in range(10))
    assert sample.num_original_captions == 0


# --- tfds ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A data set that TFDS itself has prepared, under the name `invented_lesions`."""
    import numpy as np
    import tensorflow_datasets as tfds

    class InventedLesions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["benign", "malignant"]),
                    "findings": tfds.features.Sequence(tfds.features.ClassLabel(names=["x", "y"])),
                    "note": tfds.features.Text(),
                    "patient": np.int64,
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate(range(5)), "validation": self._generate(range(5, 7))}

        def _generate_examples(self, numbers):
            raise NotImplementedError

        def _generate(self, numbers):
            for n in numbers:
                yield (
                    n,
                    {
                        "image": np.full((6, 8, 3), 30 * n, np.uint8),
                        "label": n % 2,
                        "findings": [0, 1][: n % 3],
                        "note": f"note {n}",
                        "patient": n // 2,
                    },
                )

    directory = tmp_path_factory.mktemp("tfds")
    InventedLesions(data_dir=directory).download_and_prepare()
    return directory


def test_tfds_labels_become_captions_and_images_keep_their_bytes(tfds_dir, tmp_path, captions_file):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    out = tmp_path / "out"
    flags = (f"--data_dir={tfds_dir}", "--modality=ct", "--group_key=patient", captions_file)
    assert convert("tfds:invented_lesions", out, *flags) == 0
    samples = corpora.samples(out)
    assert {split: len(part) for split, part in samples.items()} == {"train": 5, "val": 2}
    builder = tfds.builder("invented_lesions", data_dir=tfds_dir)
    for tfds_split, split in (("train", "train"), ("validation", "val")):
        decoders = {"image": tfds.decode.SkipDecoding()}
        read = builder.as_dataset(split=tfds_split, decoders=decoders).as_numpy_iterator()
        expected = {e["image"]: (e["label"], e["patient"]) for e in read}
        for sample in samples[split].values():
            label, patient = expected.pop(sample.image)
            assert sample.labels == (("benign", "malignant")[label],)
            assert sample.group == str(patient)
            assert sample.captions == (f"{sample.labels[0]} on ct",)
            assert tf.io.decode_png(sample.image).shape == (6, 8, 3)
        assert not expected
    assert corpora.report(out)["facts"]["dataset"] == "invented_lesions/1.0.0"


def test_tfds_texts_and_sequences_of_labels(tfds_dir, tmp_path):
    flags = ("--modality=ct", "--label_key=findings", "--text_key=note", f"--data_dir={tfds_dir}")
    assert convert("tfds", tmp_path / "out", "--dataset=invented_lesions", *flags) == 0
    found = {s.captions[0]: s.labels for s in corpora.samples_of(tmp_path / "out").values()}
    assert found["note 0"] == () and found["note 1"] == ("x",) and found["note 2"] == ("x", "y")


def test_unusable_tfds_data_are_errors(tfds_dir, tmp_path, capsys):
    flags = ("--modality=ct", f"--data_dir={tfds_dir}")
    assert convert("tfds:no_such_set", tmp_path / "out", *flags) == 2
    assert "--dataset=no_such_set: " in capsys.readouterr().err
    assert convert("tfds:invented_lesions", tmp_path / "out", *flags, "--label_key=class") == 2
    assert "has no feature 'class'; found ['findings', 'image'" in capsys.readouterr().err
    flags = ("--modality=ct", f"--data_dir={tmp_path}")
    assert convert("tfds:mnist", tmp_path / "out", *flags) == 2
    assert "is not prepared in" in capsys.readouterr().err


# --- files and cells ----------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(json_values, max_size=8), st.integers(1, 9), st.sampled_from([None, 1]))
def test_json_arrays_are_streamed_whatever_the_size_of_a_read(values, chunk, indent):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabular_files, "_CHUNK", chunk)
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(values, indent=indent))
        assert [v for _, v in tabular_files.json_items(path, "")] == values
        path.write_text(json.dumps({"skip": [1], "k": values, "l": values}, ensure_ascii=False))
        assert list(tabular_files.json_items(path, "k")) == [("k", v) for v in values]
        both = [("skip", 1), *(("k", v) for v in values), *(("l", v) for v in values)]
        assert list(tabular_files.json_items(path, "*")) == both


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("[1, 2", "", r"after element 2: expected ','"),
        ("[1 2]", "", r"after element 1: expected ','"),
        ('{"a": [1]}', "", r"expected '\['"),
        ('{"a": [1]}', "b", "there is no array under 'b'"),
        ("", "", r"expected '\[', found 'the end of the file'"),
        ('[{"a": }]', "", "after element 0"),
        ("[NaN, \udcff]", "", "after element"),
    ],
)
def test_damaged_json_names_the_file_and_place(tmp_path, text, key, message):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CorpusError, match=message) as error:
        list(tabular_files.json_items(path, key))
    assert str(path) in str(error.value)


@given(st.lists(st.text(), min_size=1))
def test_list_literals_are_read_back(texts):
    assert literal_texts(repr(texts)) == tuple(texts)


@given(st.text())
def test_any_cell_gives_clean_texts(cell):
    assert all(text and text == " ".join(text.split()) for text in clean_texts(cell))
