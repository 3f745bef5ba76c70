"""Images with their masks in real files: every source checks the same of a pair."""

import io

import numpy as np
import pytest
import tensorflow as tf
from helpers.corpora import convert, rejections, report
from PIL import Image

from input_pipeline import manifest, segmentation_records

nibabel = pytest.importorskip("nibabel")

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (12, 9, 3), np.uint8)
LABELS = np.zeros((12, 9), np.uint8)
LABELS[2:5, 1:3], LABELS[7:11, 4:8] = 1, 2


def encoded(pixels, kind="PNG", orientation=1):
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif if orientation != 1 else b"")
    return buffer.getvalue()


def samples(out):
    found = {}
    for content in manifest.load(out).splits.values():
        for shard in content.shards:
            for record in tf.data.TFRecordDataset(str(out / shard.file)).as_numpy_iterator():
                sample = segmentation_records.decode(record)
                found[sample.id.partition("/")[2]] = sample
    return found


def reasons(out):
    return {r["id"].partition("/")[2] or r["path"]: r["reason"] for r in rejections(out)}


@pytest.fixture(params=["masks", "mask_table"])
def pictures(tmp_path, request):
    """Converts name -> (image file, mask file) by either source."""

    def run(pairs, classes="a,b", status=0):
        raw = tmp_path / "raw"
        for name, (image, mask) in pairs.items():
            for folder, data in (("images", image), ("masks", mask)):
                (raw / folder).mkdir(parents=True, exist_ok=True)
                (raw / folder / name).write_bytes(data)
        flags = [f"--raw={raw}"]
        if request.param == "mask_table":
            rows = [f"images\\{name};masks\\{name}" for name in pairs]
            (raw / "t.csv").write_bytes("\r\n".join(["image;mask", *rows]).encode("utf-16"))
            flags = [f"--input={raw / 't.csv'}"]
        flags += ["--modality=mri", f"--classes={classes}", "--held_out=0", "--max_rejected=1"]
        assert convert(request.param, tmp_path / "out", *flags) == status
        strip = "images/" if request.param == "mask_table" else ""
        found = {k.removeprefix(strip): s for k, s in samples(tmp_path / "out").items()}
        return found, {k.removeprefix(strip): r for k, r in reasons(tmp_path / "out").items()}

    return run


def test_deep_masks_keep_their_values_and_bad_ones_are_named(pictures):
    good = encoded(PICTURE)
    found, why = pictures(
        {
            "a.png": (good, encoded(LABELS)),
            "deep.png": (good, encoded(LABELS.astype(np.uint16))),
            "beyond.png": (good, encoded(LABELS + np.uint8(1))),
            "same.png": (good, good),
            "size.png": (good, encoded(LABELS[:-1])),
        }
    )
    assert set(found) == {"a.png", "deep.png"}
    for sample in found.values():
        np.testing.assert_array_equal(sample.label_map(), LABELS)
        np.testing.assert_array_equal(sample.pixels(), PICTURE)
    assert set(why) == {"beyond.png", "same.png", "size.png"}
    assert "mask masks/beyond.png: mask values of no class: [3]" in why["beyond.png"]
    assert "are the same file" in why["same.png"]
    assert why["size.png"] == "the image is 12 x 9, its mask (11, 9)"


def test_a_turned_image_and_its_mask_are_upright_or_refused(pictures):
    red = np.zeros((12, 12, 3), np.uint8)
    red[..., 0] = np.where(np.arange(12) > 7, 255, 0)
    square = (red[..., 0] > 0).astype(np.uint8)
    wide, marked = red[:9], square[:9]
    found, why = pictures(
        {
            "both.png": (encoded(red, orientation=3), encoded(square, orientation=3)),
            "raw.png": (encoded(wide, orientation=6), encoded(marked)),
            "upright.png": (encoded(wide, orientation=6), encoded(np.rot90(marked, -1))),
            "unclear.png": (encoded(red, orientation=3), encoded(square)),
            "mask.png": (encoded(red), encoded(square, orientation=6)),
        },
        "a",
    )
    assert set(found) == {"both.png", "raw.png", "upright.png"}
    for sample in found.values():
        np.testing.assert_array_equal(sample.label_map(), sample.pixels()[..., 0] > 128)
    assert found["both.png"].label_map()[0, 0] == 1, "displayed, the mark is on the left"
    assert found["raw.png"].shape == found["upright.png"].shape == (12, 9)
    assert set(why) == {"unclear.png", "mask.png"}
    assert all("save both upright" in reason for reason in why.values())


def test_masks_that_no_image_uses_are_counted(tmp_path):
    for folder, names in (("images", "a"), ("masks", "abc")):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        for name in names:
            data = encoded(LABELS if folder == "masks" else PICTURE)
            (tmp_path / "raw" / folder / f"{name}.png").write_bytes(data)
    flags = (f"--raw={tmp_path / 'raw'}", "--modality=mri", "--classes=a,b")
    assert convert("masks", tmp_path / "out", *flags, "--held_out=0") == 0
    assert report(tmp_path / "out")["inputs"] == {"masks without an image of their name": 2}


# --- NIfTI --------------------------------------------------------------------------------------

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
VALUES = RNG.integers(-100, 100, (6, 5, 4)).astype(np.int16)
VOLUME = np.zeros(VALUES.shape, np.uint8)
VOLUME[1:3, 2:4, 1:3], VOLUME[4, 4, 1:3] = 1, 2


def nifti(values, affine=AFFINE, slope=None):
    """A .nii file; with a slope, values are stored as integers and scaled when they are read."""
    header = nibabel.Nifti1Header()
    header.set_sform(affine, 2)
    header.set_data_dtype(values.dtype)
    image = nibabel.Nifti1Image(values, None, header)
    if slope:
        image = nibabel.Nifti1Image(np.rint(values / slope).astype(np.uint8), affine)
        image.header.set_slope_inter(slope, 0)
    return image.to_bytes()


@pytest.fixture(params=["nifti_volumes", "nifti_slices"])
def volumes(tmp_path, request):
    """Converts name -> (image file, label file) by either source; samples are whole volumes."""

    def run(pairs, status=0, *flags):
        raw = tmp_path / "raw"
        raw.mkdir()
        for name, (image, label) in pairs.items():
            (raw / f"image_{name}.nii").write_bytes(image)
            (raw / f"label_{name}.nii").write_bytes(label)
        names = ["--image=image_{id}.nii", "--label=label_{id}.nii"]
        flags = [*(names if request.param == "nifti_volumes" else ["--all_slices"]), *flags]
        flags += [f"--raw={raw}", "--modality=mri", "--classes=a,b", "--held_out=0"]
        flags += ["--max_rejected=1", "--window=-100,100"]
        assert convert(request.param, tmp_path / "out", *flags) == status
        found = samples(tmp_path / "out")
        if request.param == "nifti_slices":
            slices = {name: [s for k, s in sorted(found.items()) if k.startswith(f"{name}/")]
                      for name in pairs}  # fmt: skip
            stacked = {
                k: (np.stack([s.pixels() for s in v]), np.stack([s.label_map() for s in v]))
                for k, v in slices.items()
                if v
            }
            turned = {k: tuple(a[:, ::-1, ::-1] for a in v) for k, v in stacked.items()}
        else:
            turned = {name: (s.pixels(), s.label_map()) for name, s in found.items()}
        why = {key.split("/")[0]: reason for key, reason in reasons(tmp_path / "out").items()}
        return turned, why, report(tmp_path / "out")["notes"]

    return run


def test_scaled_and_reordered_labels_keep_their_classes(volumes):
    image = nifti(VALUES)
    turned = nibabel.Nifti1Image(VOLUME, AFFINE).as_reoriented([[1, -1], [2, 1], [0, -1]])
    found, why, notes = volumes(
        {
            "plain": (image, nifti(VOLUME)),
            "scaled": (image, nifti(VOLUME, slope=2 / 255)),
            "coarse": (image, nifti(VOLUME, slope=0.0332)),
            "float": (image, nifti(VOLUME * np.float32(0.9999999))),
            "low": (image, nifti(VOLUME.astype(np.float64) * 0.996)),
            "double": (image, nifti(VOLUME.astype(np.float64))),
            "turned": (image, nifti(np.asarray(turned.dataobj), turned.affine)),
        }
    )
    assert not why and not notes
    assert set(found) == {"plain", "scaled", "coarse", "float", "low", "double", "turned"}
    for pixels, labels in found.values():
        np.testing.assert_array_equal(labels, VOLUME.transpose(2, 1, 0))
        want = (VALUES.transpose(2, 1, 0) + 100) / 200
        np.testing.assert_allclose(pixels, want, atol=1e-6)


def test_pairs_that_do_not_belong_together_are_rejected_with_the_reason(volumes):
    image, label = nifti(VALUES), nifti(VOLUME)
    moved, mirrored = AFFINE.copy(), AFFINE.copy()
    moved[0, 3] = 1.0
    mirrored[0] = [-2.0, 0, 0, 0]
    colour = np.zeros(VALUES.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    holes = np.where(VOLUME == 1, np.float32("nan"), VOLUME)
    bad = {
        "moved": (image, nifti(VOLUME, moved), "lie elsewhere"),
        "mirrored": (image, nifti(VOLUME, mirrored), "lie elsewhere"),
        "shape": (image, nifti(VOLUME[:, :-1]), "its labels"),
        "half": (image, nifti(VOLUME * np.float32(0.5)), "not whole numbers: 0.5"),
        "negative": (image, nifti(VOLUME.astype(np.int16) - 1), "negative label values: -1"),
        "holes": (image, nifti(holes), "no numbers"),
        "gaps": (nifti(np.where(VOLUME, np.float32("inf"), VALUES)), label, "no numbers"),
        "rgb": (nifti(colour), label, "expected real numbers"),
        "flat": (nifti(VALUES, np.diag([2.0, 0, 3, 1])), label, "without three directions"),
        "cut": (image[:-99], label, "cannot read|Expected"),
    }
    pairs = {name: (a, b) for name, (a, b, _) in bad.items()} | {"good": (image, label)}
    found, why, _ = volumes(pairs)
    assert set(found) == {"good"}
    assert set(why) == set(bad)
    for name, (_, _, message) in bad.items():
        assert any(part in why[name] for part in message.split("|")), why[name]


def test_values_of_no_class_are_background_and_named(volumes):
    labels = VOLUME.astype(np.int16)
    labels[0, 0, :2], labels[0, 1, 0] = 9, 1002
    found, _, notes = volumes({"a": (nifti(VALUES), nifti(labels))})
    np.testing.assert_array_equal(found["a"][1], VOLUME.transpose(2, 1, 0))
    assert {f"label value {value} of no class: background" for value in (9, 1002)} == set(notes)


def test_volumes_without_labels_are_rejections_and_not_forgotten(tmp_path):
    for name, labels in (("1", VOLUME), ("2", VOLUME * 0)):
        (tmp_path / f"image_{name}.nii").write_bytes(nifti(VALUES))
        (tmp_path / f"label_{name}.nii").write_bytes(nifti(labels))
    (tmp_path / "LABEL_3.NII").write_bytes(nifti(VOLUME))
    flags = (f"--raw={tmp_path}", "--modality=mri", "--classes=a,b", "--held_out=0")
    assert convert("nifti_slices", tmp_path / "out", *flags) == 0
    assert report(tmp_path / "out")["inputs"] == {"volumes in no pair": 1}
    flags += ("--image=image_{id}.nii", "--label=label_{id}.nii")
    assert convert("nifti_volumes", tmp_path / "b", *flags) == 0
    assert report(tmp_path / "b")["inputs"] == {"volumes in no pair": 1}
    (rejection,) = rejections(tmp_path / "out")
    assert rejection["path"] == "label_2.nii" and "all labels are 0" in rejection["reason"]
