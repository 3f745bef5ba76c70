"""Images with masks: folders -> records -> the same pixels in the graph, in the shared order."""

import io

import numpy as np
import pytest
import tensorflow as tf
from helpers.corpora import convert, rejections
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from input_pipeline import dataset, manifest, segmentation_records
from input_pipeline.conversion.label_classes import ANY_VALUE, Classes
from input_pipeline.conversion.sources.masks import held_out
from input_pipeline.io.errors import CorpusError
from input_pipeline.phantoms import masks
from input_pipeline.segmentation_records import SegmentationSample


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Ten pictures with masks of 0 and 255; one mask is missing, one of another size."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "camera"
    for sub in ("images", "masks"):
        (raw / sub).mkdir(parents=True)
    for i in range(10):
        pixels = rng.integers(0, 256, (12, 9, 3), np.uint8)
        (raw / "images" / f"{i:02d}.png").write_bytes(encoded(pixels))
        mask = (pixels[..., 0] > 128).astype(np.uint8) * 255
        if i == 3:
            mask = mask[:-1]
        if i != 7:
            (raw / "masks" / f"{i:02d}.png").write_bytes(encoded(mask))
    (raw / "images" / ".hidden").write_text("")
    return raw


def read(out):
    return {
        split: [
            segmentation_records.decode(record)
            for shard in content.shards
            for record in tf.data.TFRecordDataset(str(out / shard.file)).as_numpy_iterator()
        ]
        for split, content in manifest.load(out).splits.items()
    }


def test_a_folder_becomes_a_corpus(folder, tmp_path):
    out = tmp_path / "out"
    assert convert("masks", out, f"--raw={folder}", "--modality=fundus", "--classes=vessel") == 0
    found = read(out)
    assert {split: len(samples) for split, samples in found.items()} == {"train": 7, "val": 1}
    for sample in [s for samples in found.values() for s in samples]:
        name = sample.id.removeprefix("camera/")
        assert sample.image == (folder / "images" / name).read_bytes()
        red = np.asarray(Image.open(folder / "images" / name))[..., 0]
        np.testing.assert_array_equal(sample.label_map(), red > 128)
        assert (sample.classes, sample.labels, sample.source) == (
            ("vessel",),
            ("vessel",),
            "camera",
        )
    assert manifest.load(out).schema == "segmentation"
    assert {r["id"]: r["reason"] for r in rejections(out)} == {
        "camera/03.png": "the image is 12 x 9, its mask (11, 9)",
        "camera/07.png": "no mask of its name",
    }


def test_patients_are_not_on_both_sides_and_the_choice_is_stable(folder, tmp_path):
    for path in sorted(folder.rglob("*.png")):
        path.rename(path.with_name(f"p{int(path.stem) // 2}_{path.name}"))
    out = tmp_path / "out"
    flags = (f"--raw={folder}", "--modality=fundus", "--classes=vessel", "--held_out=0.4")
    assert convert("masks", out, *flags, "--group_regex=^(p\\d)_") == 0
    found = read(out)
    groups = {split: {s.group for s in samples} for split, samples in found.items()}
    assert len(groups["val"]) == 2
    assert not groups["val"] & groups["train"]
    names = [f"p{i}" for i in range(50)]
    more = held_out([*names, "new"], 0.4)
    assert held_out(names, 0.4) == held_out(names[::-1] * 2, 0.4)
    assert len(held_out(names, 0.4) ^ (more - {"new"})) <= 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--classes=", "NAME,NAME"),
        ("--classes=a=1,b", "NAME=VALUE"),
        ("--classes=a=0", "1 to 65535"),
        ("--classes=a=7,b=7", "must differ"),
        ("--group_regex=p", "no group in parentheses"),
        ("--held_out=1", r"share in \[0, 1\)"),
        ("--images=pictures", "cannot read .*pictures"),
        ("--masks=.", "holds no files"),
    ],
)
def test_a_wrong_flag_is_named(folder, tmp_path, capsys, flag, message):
    import re

    flags = (f"--raw={folder}", "--modality=fundus", "--classes=vessel", flag)
    assert convert("masks", tmp_path / "out", *flags) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("vessel", {0: 0, 1: 1, 255: 1}),
        ("liver,spleen", {0: 0, 1: 1, 2: 2, 3: None}),
        ("disc=*,cup=128", {0: 0, 1: 1, 127: 1, 128: 2, 255: 1}),
        ("cup=128, disc=255", {0: 0, 128: 1, 255: 2, 127: None}),
    ],
)
def test_grey_values_become_labels(text, table):
    classes = Classes.parse(text)
    for value, label in table.items():
        grey = np.array([[0, value]], np.uint8)
        if label is None:
            with pytest.raises(ValueError, match=f"no class: .{value}"):
                classes.label_map(grey)
        else:
            np.testing.assert_array_equal(classes.label_map(grey), [[0, label]])


@given(st.text(max_size=30))
def test_any_text_is_classes_or_a_value_error(text):
    try:
        classes = Classes.parse(text)
    except ValueError:
        return
    assert len(classes.names) == len(classes.values) == len(set(classes.values))
    numbers = [v for v in classes.values if isinstance(v, int)]
    assert all(1 <= v <= 65535 for v in numbers)
    assert all(v == ANY_VALUE or v[0] == "#" for v in classes.values if v not in numbers)


def draw_array(draw, dtype, low, high):
    shape = draw(array_shapes(min_dims=2, max_dims=3, max_side=5))
    # TensorFlow takes numbers below the smallest normal one for 0
    numbers = {"allow_subnormal": False, "allow_nan": False, "allow_infinity": False}
    floats = {"elements": numbers} if dtype.kind == "f" else {}
    image = draw(arrays(dtype, shape, **floats))
    return image, draw(arrays(np.uint8, shape, elements=st.integers(low, high)))


@settings(deadline=None)  # the first one loads TensorFlow's kernels
@given(st.data())
def test_arrays_of_any_rank_survive_a_record_in_python_and_in_the_graph(data):
    dtype = data.draw(st.sampled_from(segmentation_records.DTYPES))
    image, mask = draw_array(data.draw, np.dtype(dtype), 0, 2)
    spacing = tuple(float(i + 1) for i in range(image.ndim))
    sample = SegmentationSample.from_array(
        image, mask, id="a", classes=("x", "y"), modality="ct", source="s", spacing=spacing
    )
    again = segmentation_records.decode(segmentation_records.encode(sample))
    assert again == sample
    np.testing.assert_array_equal(again.pixels(), image)
    np.testing.assert_array_equal(again.label_map(), mask)
    assert set(again.labels) == {("x", "y")[v - 1] for v in np.unique(mask) if v}
    parsed = segmentation_records.parse(tf.constant(segmentation_records.encode(sample)))
    values = image.astype(np.float32) / np.float32(255 if dtype == "uint8" else 1)
    np.testing.assert_array_equal(parsed["image"], values[..., None])
    np.testing.assert_array_equal(parsed["mask"], mask)
    assert tuple(parsed["spacing"].numpy()) == spacing


def test_a_record_that_is_not_of_the_schema_is_named():
    sample = masks.make_sample(masks.MaskPhantomRow("a", "warm", 24))
    example = tf.train.Example.FromString(segmentation_records.encode(sample))
    with pytest.raises(CorpusError, match=r"not a tf\.train\.Example"):
        segmentation_records.decode(b"\xff\xff")
    del example.features.feature["mask"]
    with pytest.raises(CorpusError, match="lacks mask"):
        segmentation_records.decode(example.SerializeToString())
    with pytest.raises(ValueError, match=r"label values \[0, 3\]"):
        SegmentationSample.from_encoded(
            b"x", np.array([[0, 3]]), id="a", classes=("x",), modality="m", source="s"
        )


def test_phantoms_are_a_function_of_their_row_and_styles_share_the_anatomy():
    warm, again, cold = (
        masks.draw(np.random.default_rng(3), masks.STYLES[style], 48)
        for style in ("warm", "warm", "cold")
    )
    np.testing.assert_array_equal(warm[0], again[0])
    np.testing.assert_array_equal(warm[1], cold[1])
    assert np.abs(warm[0].astype(int) - cold[0]).mean() > 20
    assert set(np.unique(warm[1])) <= {0, 1, 2}
    assert 0.02 < (warm[1] == 1).mean() < 0.5


def test_the_stream_accepts_segmentation_records_only_for_segmentation_tasks(tmp_path):
    out = tmp_path / "warm"
    assert convert("mask_phantoms", out, "--style=warm", "--num_images=10", "--image_size=16") == 0
    source = dataset.MixtureSource("warm", str(out), "train", None)
    with pytest.raises(CorpusError, match="holds segmentation records, the task reads image_text"):
        dataset.open_sources([source])
    manifests = dataset.open_sources([source], schema="segmentation")

    def decode_one(record, seed, source):
        sample = segmentation_records.parse(record)
        return {"id": sample["id"], "mask": tf.ensure_shape(sample["mask"], (16, 16)), "seed": seed}

    def decode(*rows):
        return dataset.decode_each(decode_one, *rows)

    spec = dataset.StreamSpec([source], manifests, seed=1, batch_size=4, block_size=8)

    def stream(start):
        return list(dataset.train_batches(spec, decode, start, 6))

    whole, rest = stream(0), stream(4)
    assert len(rest) == 2
    for a, b in zip(whole[4:], rest, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_a_table_of_images_and_masks_becomes_a_corpus(folder, tmp_path):
    table = folder / "list.csv"
    rows = [f"images\\{i:02d}.png,x,masks\\{i:02d}.png" for i in (0, 1, 2, 7)]
    table.write_text("\n".join(["image,rater,mask", *rows]) + "\n")
    out = tmp_path / "out"
    flags = (f"--input={table}", "--modality=fundus", "--classes=vessel", "--held_out=0")
    assert convert("mask_table", out, *flags) == 0
    found = read(out)["train"]
    assert {s.id for s in found} == {f"list/images/{i:02d}.png" for i in (0, 1, 2)}
    for sample in found:
        red = np.asarray(Image.open(folder / sample.id.removeprefix("list/")))[..., 0]
        np.testing.assert_array_equal(sample.label_map(), red > 128)
    assert [r["reason"] for r in rejections(out)] == ["no such file: masks/07.png"]
    assert convert("mask_table", tmp_path / "b", *flags, "--mask_column=label") == 2


def test_slices_of_volumes_keep_orientation_spacing_and_values(tmp_path, capsys):
    nibabel = pytest.importorskip("nibabel")
    raw = tmp_path / "ct"
    raw.mkdir()
    rng = np.random.default_rng(0)
    values = rng.integers(-200, 400, (6, 5, 4)).astype(np.int16)  # right, anterior, superior
    labels = np.zeros(values.shape, np.uint8)
    labels[1:3, 2, 1] = 6
    labels[4, 4, 2] = 1
    labels[0, 0, 2] = 9  # of no class: background
    # stored with the first axis to the left: the header says so
    affine = np.diag([-0.5, 0.7, 3.0, 1.0])
    for prefix, volume in (("image_", values), ("label_", labels)):
        nibabel.Nifti1Image(volume[::-1], affine).to_filename(raw / f"{prefix}7.nii.gz")
    nibabel.Nifti1Image(values, affine).to_filename(raw / "image_8.nii.gz")
    out = tmp_path / "out"
    flags = (f"--raw={raw}", "--modality=ct", "--classes=liver=6,spleen=1", "--held_out=0")
    assert convert("nifti_slices", out, *flags, "--window=-125,275") == 0
    found = {s.id: s for s in read(out)["train"]}
    assert set(found) == {"ct/7/0001", "ct/7/0002"}
    first = found["ct/7/0001"]
    want = np.clip((values[::-1, ::-1, 1].T + 125) / 400, 0, 1)
    np.testing.assert_allclose(first.pixels(), want, atol=1e-6)
    np.testing.assert_array_equal(first.label_map(), (labels[::-1, ::-1, 1].T == 6) * 1)
    assert first.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert (first.labels, found["ct/7/0002"].labels) == (("liver",), ("spleen",))
    assert [r["reason"] for r in rejections(out)] == ["no label volume of its name"]
    assert convert("nifti_slices", tmp_path / "b", *flags, "--window=9,1") == 2
    assert "not in order" in capsys.readouterr().err
