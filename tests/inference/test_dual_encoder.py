"""The Python API: inputs of any kind and number, probabilities by the formula, light imports."""

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.dicom_files import dicom_file
from helpers.small_model import random_params, small_config, write_export
from PIL import Image

import unimed_jax
from input_pipeline.io import images
from input_pipeline.io.errors import UserError
from unimed_jax.exporting import open_clip_directory
from unimed_jax.inference.dual_encoder import Model, from_pretrained
from unimed_jax.models import dual_encoder
from unimed_jax.weights import loader

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "chest", "x", "-", "ray", "of", "##s"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small export."""
    root = tmp_path_factory.mktemp("export")
    words = WORDS + [f"[unused{i}]" for i in range(99 - len(WORDS))]
    (root / "vocab.txt").write_text("\n".join(words) + "\n")
    model = dual_encoder.build(small_config())
    opened = loader.of_params(
        random_params(model), model.config, source="test", tokenizer=str(root)
    )
    (root / "export").mkdir()
    open_clip_directory.write(root / "export", opened, model.config, root, str(root / "export"))
    return root / "export"


@pytest.fixture(scope="module")
def model(directory: Path) -> Model:
    return unimed_jax.load(directory)


def _pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + i, 50, 3), np.uint8) for i in range(count)]


@pytest.mark.slow
def test_any_number_of_images_gives_the_same_embeddings(model: Model) -> None:
    pictures = _pictures(37)
    together = model.encode_image(pictures)
    assert together.shape == (37, 24)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    one_by_one = [model.encode_image(picture)[0] for picture in pictures[:3]]
    np.testing.assert_allclose(together[:3], one_by_one, atol=1e-6)
    in_small_batches = model.encode_image(iter(pictures), batch_size=2)
    np.testing.assert_allclose(in_small_batches, together, atol=1e-6)
    assert model.encode_image([]).shape == (0, 24)
    assert model.encode_text([]).shape == (0, 24)


def test_texts_are_padded_no_further_than_needed(tmp_path: Path) -> None:
    model = unimed_jax.load(write_export(tmp_path, text={"context_length": 40}))
    texts, long = ["chest", "brain"], "abcdefghi " * 4  # of 38 tokens
    alone = model.encode_text(texts)
    together = model.encode_text([*texts, long])
    np.testing.assert_allclose(together[:2], alone, atol=1e-6)
    ids = model.tokenizer(texts)
    assert ids.shape == (2, 40)
    expected = jax.jit(dual_encoder.build(model.config).encode_text)(model._params, ids)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(alone, expected, atol=1e-6)
    assert model._engine._encode["text"]._cache_size() == 2  # of 32 and of 40 tokens


@pytest.mark.slow
def test_a_shape_is_compiled_once(directory: Path) -> None:
    model = unimed_jax.load(directory)
    for count in (9, 10, 12, 16, 9):  # eight devices: two rows each
        model.encode_image(_pictures(count))
    assert model._engine._encode["visual"]._cache_size() == 1


@pytest.mark.slow
def test_images_of_every_kind(model: Model, tmp_path: Path) -> None:
    grey = _pictures(1)[0][..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    expected = model.encode_image(rgb)
    for image in (
        grey,
        Image.fromarray(grey),
        Image.fromarray(rgb).convert("RGBA"),
        tmp_path / "grey.png",
        str(tmp_path / "grey.png"),
    ):
        np.testing.assert_allclose(model.encode_image([image]), expected, atol=1e-6)


def _png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_images_that_cannot_be_used(model: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "bomb.png").write_bytes(_png_header(110_000, 110_000))  # 36 GB of RGB
    for image, message in (
        (tmp_path / "broken.png", r"cannot read .*broken\.png: not an image, or of an unknown"),
        (tmp_path / "absent.png", r"cannot read .*absent\.png: No such file"),
        (tmp_path / "bomb.png", r"cannot read .*bomb\.png: .* pixels"),
        (
            np.zeros((4, 4), np.float64),
            r"expected uint8 \(H, W\) or \(H, W, 3\), .* float64",
        ),
        (np.zeros((4, 4, 1), np.uint8), r"got uint8 \(4, 4, 1\)"),
        (np.full((4, 4), np.nan, np.float32), "no pixel is a finite number"),
        (np.zeros((1, 900), np.uint8), "900 x 1 pixels: too elongated"),
        (np.zeros((0, 9), np.uint8), "9 x 0 pixels: it has none"),
    ):
        with pytest.raises(UserError, match=message):
            model.encode_image([image])


@pytest.mark.slow
def test_classify_is_the_softmax_of_scaled_cosines(model: Model) -> None:
    pictures = _pictures(5)
    classes = {"ray": "chest x-ray", "other": ["of rays", "x of chest", "chest"]}
    got = model.class_probabilities(pictures, classes)
    images = model.encode_image(pictures).astype(np.float64)
    centres = []
    for prompts in (["chest x-ray"], classes["other"]):
        mean = model.encode_text(prompts).astype(np.float64).mean(0)
        centres.append(mean / np.linalg.norm(mean))
    scale = np.exp(np.float64(np.asarray(model._params["logit_scale"])))
    logits = scale * images @ np.stack(centres).T
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    by_name = model.classify(pictures, classes)
    assert [list(row) for row in by_name] == [["ray", "other"]] * 5
    np.testing.assert_array_equal([list(row.values()) for row in by_name], got)
    as_list = model.classify(pictures[0], ["chest x-ray", "of rays"])
    np.testing.assert_array_equal(
        list(as_list[0].values()),
        model.class_probabilities(pictures[0], {"a": "chest x-ray", "b": ["of rays"]})[0],
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "at least two labels, found 0"),
        (["chest"], "at least two labels, found 1"),
        ("chest", "is one text"),
        (["chest", " "], "label 2 is ' '"),
        (["chest", "..."], "label 2 is '...'"),
        (["chest", None], "label 2 is None"),
        (["chest", "chest"], "label 2: 'chest' appears twice"),
        ({"a": [], "b": "ray"}, "label 1: 'a' has no prompt"),
        ({"a": "ray", "b": ["ray", ""]}, "label 2: 'b' has the prompt ''"),
        ({"a": "ray", "b": [3]}, "label 2: 'b' has the prompt 3"),
    ],
)
def test_labels_that_cannot_be_compared_are_named(model: Model, labels, message) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        model.classify(_pictures(1), labels)


@pytest.mark.slow
def test_files_are_read_as_conversion_reads_them(model: Model, tmp_path: Path) -> None:
    deep = (np.arange(60 * 80).reshape(60, 80) * 13).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "slice.dcm").write_bytes(dicom_file(deep))
    stored = images.normalise((tmp_path / "deep.png").read_bytes())[0]
    expected = model.encode_image(Image.open(io.BytesIO(stored)))
    for image in (tmp_path / "deep.png", deep, Image.fromarray(deep)):
        np.testing.assert_array_equal(model.encode_image(image), expected)
    stored = images.normalise((tmp_path / "slice.dcm").read_bytes())[0]
    expected = model.encode_image(Image.open(io.BytesIO(stored)))
    np.testing.assert_array_equal(model.encode_image(tmp_path / "slice.dcm"), expected)


@pytest.mark.slow
def test_neither_tensorflow_nor_torch_is_imported(directory: Path) -> None:
    code = (
        "import sys, numpy, unimed_jax\n"
        f"model = unimed_jax.load({str(directory)!r})\n"
        "model.classify(numpy.zeros((40, 40), numpy.uint8), {'a': 'chest', 'b': 'ray'})\n"
        "print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr[-2000:]
    assert "WARNING" not in run.stderr


def test_a_tokenizer_that_does_not_fit_is_named(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    model = unimed_jax.load(directory, tokenizer=tmp_path)
    with pytest.raises(UserError, match="has 11 entries and pad id 0, the model 99 and 0"):
        model.encode_text("chest")


def test_half_precision_is_a_setting(directory: Path) -> None:
    assert unimed_jax.load(directory, overrides={"compute_dtype": "bfloat16"}).config.compute_dtype


# --- config.init --------------------------------------------------------------------------------


def test_initial_parameters_come_from_one_file_or_from_several(directory: Path) -> None:
    model = dual_encoder.build(small_config())
    abstract = jax.eval_shape(model.init, jax.random.key(0))

    def initial(expected: tuple = (), wanted=model, **sources: str) -> dict:
        return loader.initial_params(
            {part: sources.get(part, "") for part in ("visual", "text", "logits")},
            jax.eval_shape(wanted.init, jax.random.key(0)),
            wanted.config,
            expected=expected,
            locate=Path,
        )

    everything = from_pretrained(loader.open_weights(directory), model.config)._params
    whole = initial(**dict.fromkeys(("visual", "text", "logits"), str(directory)))
    assert jax.tree.structure(whole) == jax.tree.structure(abstract)
    jax.tree.map(np.testing.assert_array_equal, whole, jax.device_get(everything))
    assert initial(text=str(directory)).keys() == {"text"}
    assert initial(logits=str(directory)).keys() == {"logit_scale"}
    assert initial() == {}

    wider = dual_encoder.build(small_config(embed_dim=40))
    with pytest.raises(UserError, match=r"visual\.proj is \(32, 24\) in the file, \(32, 40\) in"):
        initial(wanted=wider, visual=str(directory))
    partly = initial(("^visual.proj$",), wanted=wider, visual=str(directory))
    assert "proj" not in partly["visual"]
    assert "blocks" in partly["visual"]
