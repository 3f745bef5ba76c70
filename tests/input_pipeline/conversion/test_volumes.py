"""NIfTI in and out, layouts, windows, and the one grid that crops are cut from."""

import json

import nibabel
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import manifest, segmentation_records, volume_grid
from input_pipeline.io.intensity_windows import Window, rescaled
from input_pipeline.io.nifti import LabelWriter, NiftiVolume
from tools.convert_corpus import main as convert

# turned by a right angle, mirrored, oblique by a little, anisotropic
AFFINE = np.array(
    [[0.02, -2.0, 0.0, 30.0], [0.0, 0.03, 3.0, -12.0], [-1.5, 0.0, 0.0, 7.0], [0, 0, 0, 1]]
)


def write(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def scene(rng, shape=(9, 8, 10)):
    """Voxels of a file and their labels; the labels are where values are high."""
    values = rng.integers(-200, 300, shape).astype(np.int16)
    return values, (values > 150).astype(np.uint8) * 2 + (values < -150).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_is_reoriented_by_its_header_and_labels_map_back_to_the_voxel(tmp_path, suffix):
    values, labels = scene(np.random.default_rng(0))
    write(tmp_path / f"a{suffix}", values)
    volume = NiftiVolume(tmp_path / f"a{suffix}")
    canonical = nibabel.as_closest_canonical(nibabel.load(tmp_path / f"a{suffix}"))
    want = np.asarray(canonical.dataobj).transpose(2, 1, 0)  # superior, anterior, right
    np.testing.assert_array_equal(volume.values(), want)
    np.testing.assert_array_equal(volume.read(2, 5), want[2:5])
    assert volume.spacing == pytest.approx(tuple(canonical.header.get_zooms()[::-1]), rel=1e-5)

    write(tmp_path / f"b{suffix}", labels)
    turned = NiftiVolume(tmp_path / f"b{suffix}").values()
    out = tmp_path / "out" / f"a{suffix}"
    out.parent.mkdir()
    writer = LabelWriter(out, volume)
    for start in range(0, volume.shape[0], 3):
        writer.write(start, turned[start : start + 3])
    writer.close()
    written, original = nibabel.load(out), nibabel.load(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, original.affine)
    assert written.header["sform_code"] == original.header["sform_code"]
    assert [p.name for p in out.parent.iterdir()] == [f"a{suffix}"]


def test_scaled_files_are_read_as_their_header_says(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert nibabel.load(tmp_path / "a.nii.gz").dataobj.slope != 1
    found = NiftiVolume(tmp_path / "a.nii.gz").values().transpose(2, 1, 0)
    np.testing.assert_allclose(found, values, atol=1e-3)


def test_what_is_no_volume_is_named(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"cannot read the volume a\.nii\.gz"):
        NiftiVolume(tmp_path / "a.nii.gz")
    write(tmp_path / "b.nii", np.zeros((3, 3, 3, 2), np.int16))
    with pytest.raises(ValueError, match=r"b\.nii has the shape"):
        NiftiVolume(tmp_path / "b.nii")


LAYOUTS = {
    "folders": ("images/{}.nii.gz", "labels/{}.nii.gz"),
    "btcv": ("img/img{}.nii.gz", "label/label{}.nii.gz"),
    "names": ("{}_image.nii.gz", "{}_label.nii.gz"),
    "msd": ("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_become_corpora_without_the_patients_named_as_held_out(tmp_path, layout):
    image, label = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    scenes = {}
    for name in ("0001", "0002", "0003"):
        scenes[name] = scene(rng)
        write(tmp_path / "raw" / image.format(name), scenes[name][0])
        write(tmp_path / "raw" / label.format(name), scenes[name][1])
    flags = ["--modality=ct", "--classes=low,high", f"--layout={layout}"]
    if layout == "msd":
        flags = ["--layout=msd"]
        content = {
            "labels": {"0": "background", "1": "low", "2": "high"},
            "modality": {"0": "CT"},
            "training": [
                {"image": f"./{image.format(n)}", "label": f"./{label.format(n)}"} for n in scenes
            ],
        }
        (tmp_path / "raw" / "dataset.json").write_text(json.dumps(content))
    out = tmp_path / "corpus"
    flags += [f"--raw={tmp_path / 'raw'}", f"--out={out}", "--val=0002"]
    assert convert(["nifti_volumes", *flags]) == 0
    found = manifest.load(out)
    assert found.schema == "segmentation"
    samples = {
        (split, sample.group): sample
        for split, part in found.splits.items()
        for shard in part.shards
        for sample in map(
            segmentation_records.decode,
            tf.data.TFRecordDataset(str(out / shard.file)).as_numpy_iterator(),
        )
    }
    assert set(samples) == {("train", "0001"), ("val", "0002"), ("train", "0003")}
    sample = samples["val", "0002"]
    volume = NiftiVolume(tmp_path / "raw" / image.format("0002"))
    # the default window of CT
    np.testing.assert_array_equal(sample.pixels(), rescaled(volume.values(), (-175.0, 250.0)))
    labels = NiftiVolume(tmp_path / "raw" / label.format("0002")).values()
    np.testing.assert_array_equal(sample.label_map(), labels)
    assert sample.classes == ("low", "high")
    assert sample.spacing == pytest.approx(volume.spacing, rel=1e-6)
    assert json.loads((out / "conversion.json").read_text())["facts"]["val"] == ["0002"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layout=there"], "--layout=there: valid: msd, folders, btcv, names"),
        (["--val=b"], "has no volume 'b'"),
        (["--image={id}.nii"], "give both --image and --label"),
        (["--image=i.nii", "--label={id}"], "does not have one '{id}'"),
        (["--layout=btcv"], "holds no img/img*"),
        (["--layout=msd"], "cannot read"),
        (["--window=3,1"], "not in order"),
        (["--classes="], "give --modality and --classes"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, capsys, flags, message):
    write(tmp_path / "images" / "a.nii.gz", scene(np.random.default_rng(0))[0])
    write(tmp_path / "labels" / "a.nii.gz", scene(np.random.default_rng(0))[1])
    base = [f"--raw={tmp_path}", f"--out={tmp_path / 'out'}", "--modality=ct", "--classes=low,high"]
    assert convert(["nifti_volumes", *base, *flags]) == 2
    assert message in capsys.readouterr().err


def test_volumes_that_do_not_fit_their_labels_are_rejected(tmp_path):
    rng = np.random.default_rng(0)
    raw = tmp_path / "raw"
    for name in ("good", "shape", "place", "alone"):
        write(raw / "images" / f"{name}.nii.gz", scene(rng)[0])
    write(raw / "labels" / "good.nii.gz", scene(rng)[1])
    write(raw / "labels" / "shape.nii.gz", scene(rng, (9, 8, 9))[1])
    write(raw / "labels" / "place.nii.gz", scene(rng)[1], AFFINE + np.eye(4)[:, [3, 0, 1, 2]])
    flags = ["--modality=ct", "--classes=low,high", "--held_out=0", "--max_rejected=1"]
    assert convert(["nifti_volumes", f"--raw={raw}", f"--out={tmp_path / 'c'}", *flags]) == 0
    lines = map(json.loads, (tmp_path / "c" / "rejected.jsonl").read_text().splitlines())
    reasons = {line["id"].split("/")[1]: line["reason"] for line in lines}
    assert set(reasons) == {"shape", "place", "alone"}
    assert "its labels (" in reasons["shape"]
    assert "affines differ" in reasons["place"]
    assert "there is no labels/alone.nii.gz" in reasons["alone"]


@given(st.text(max_size=12) | st.tuples(st.floats(), st.floats()).map(lambda t: f"{t[0]},{t[1]}"))
def test_a_window_is_two_numbers_in_order_or_refused(text):
    try:
        window = Window.parse(text)
    except ValueError:
        return
    assert window.low < window.high
    assert window.relative == (text == "minmax" or text.startswith("percentiles:"))


def test_windows_are_of_the_volume_where_they_are_relative():
    values = np.arange(1000.0).reshape(10, 10, 10)
    assert Window.parse("minmax").limits(values) == (0, 999)
    assert Window.parse("percentiles:10,90").limits(values) == pytest.approx((99.9, 899.1))
    assert Window.parse("-5,7").limits(values) == (-5, 7)
    np.testing.assert_allclose(rescaled(np.array([-9, 1, 9]), (-5, 7)), [0, 0.5, 1])


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(1, 60))
def test_resampling_is_pillows(num_in, num_out):
    line = np.random.default_rng(num_in).random(num_in).astype(np.float32)
    weights = volume_grid.axis_weights(0, num_out, num_out, num_in).numpy()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    want = np.asarray(Image.fromarray(line[None]).resize((num_out, 1), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(weights @ line, want[0], atol=1e-5)


def test_a_crop_in_the_original_grid_is_a_slice_and_zero_outside():
    rng = np.random.default_rng(0)
    image = rng.random((6, 7, 8, 1)).astype(np.float32)
    mask = rng.integers(0, 3, (6, 7, 8)).astype(np.uint8)
    shape = volume_grid.grid_shape(
        tf.constant([6, 7, 8], tf.int64), tf.zeros((0,)), (2.0, 2.0, 2.0)
    )
    np.testing.assert_array_equal(shape, [6, 7, 8])  # the spacing is not known
    found, labels = volume_grid.crop(
        image, mask, shape, tf.constant([-1, 2, 3], tf.int64), (8, 4, 5)
    )
    np.testing.assert_allclose(found[1:7], image[:, 2:6, 3:8], atol=1e-6)
    np.testing.assert_array_equal(labels[1:7], mask[:, 2:6, 3:8])
    assert not np.any(found[0]) and not np.any(found[7]) and not np.any(labels[0])


def test_a_crop_is_that_part_of_the_whole_resampled_volume():
    rng = np.random.default_rng(0)
    image = rng.random((9, 14, 10, 1)).astype(np.float32)
    mask = rng.integers(0, 3, (9, 14, 10)).astype(np.uint8)
    spacing = tf.constant([4.0, 1.0, 1.0])
    shape = volume_grid.grid_shape(tf.constant([9, 14, 10], tf.int64), spacing, (3.0, 2.0, 0.0))
    np.testing.assert_array_equal(shape, [12, 7, 10])
    whole, labels = volume_grid.crop(image, mask, shape, tf.zeros(3, tf.int64), (12, 7, 10))
    part, part_labels = volume_grid.crop(
        image, mask, shape, tf.constant([5, 1, 3], tf.int64), (4, 5, 6)
    )
    np.testing.assert_allclose(part, whole[5:9, 1:6, 3:9], atol=1e-6)
    np.testing.assert_array_equal(part_labels, labels[5:9, 1:6, 3:9])
    plane = Image.fromarray(image[:, :, 4, 0]).resize((7, 12), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(whole[:, :, 4, 0], np.asarray(plane), atol=1e-5)


def test_foreground_crops_hold_a_class_that_each_is_equally_likely_to_be():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[3, 4, 5] = 1
    mask[10:18, 10:18, 10:18] = 2
    shape = tf.constant([20, 20, 40], tf.int64)
    size = (4, 6, 8)
    held = {1: 0, 2: 0}
    for visit in range(60):
        seed = tf.constant([7, visit], tf.int64)
        start = volume_grid.draw_start(mask, shape, size, 1.0, seed)
        np.testing.assert_array_equal(start, volume_grid.draw_start(mask, shape, size, 1.0, seed))
        assert np.all(start >= 0) and np.all(start + size <= shape)
        _, labels = volume_grid.crop(
            np.zeros((*mask.shape, 1), np.float32), mask, shape, start, size
        )
        assert np.any(labels)
        held[1] += int(np.any(labels == 1))
        held[2] += int(np.any(labels == 2))
    assert 15 < held[1] < 45 and 15 < held[2] < 45


def test_crops_are_anywhere_without_foreground_and_centred_where_the_volume_is_short():
    shape = tf.constant([3, 20, 20], tf.int64)
    starts = np.array([
        volume_grid.draw_start(np.ones((3, 20, 20), np.uint8), shape, (8, 4, 4), 0.0,
                        tf.constant([1, visit], tf.int64)) for visit in range(80)
    ])  # fmt: skip
    assert set(starts[:, 0]) == {-2}
    assert starts[:, 1].min() == 0 and starts[:, 1].max() == 16
