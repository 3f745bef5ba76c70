"""Losses of segmentation beside float64 NumPy, written as the formulas are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimed_jax.losses import segmentation as losses


def alignment_in_numpy(feature_map, labels, text):
    """Loops over images, patches and classes; feature_map (B, *grid, D), labels (B, *space)."""
    text = text.astype(np.float64)
    grid = feature_map.shape[1:-1]
    total = 0.0
    for image, label_map in zip(feature_map.astype(np.float64), labels, strict=True):
        for cell in np.ndindex(*grid):
            window = tuple(
                slice(i * (n // g), (i + 1) * (n // g))
                for i, g, n in zip(cell, grid, label_map.shape, strict=True)
            )
            seen = set(label_map[window].ravel().tolist())
            z, pull, push = image[cell], [], []
            for k, t in enumerate(text, 1):
                cosine = z @ t / (np.sqrt(z @ z) * np.sqrt(t @ t))
                if k in seen:
                    pull.append(max(0.0, 1 - cosine))
                else:
                    push.append(max(0.0, 1 + cosine))
            total += sum(pull) / len(pull) if pull else 0.0
            total += sum(push) / len(push) if push else 0.0
    return total / (len(feature_map) * np.prod(grid))


@pytest.mark.parametrize("num_classes", [1, 2, 5])
@pytest.mark.parametrize(("grid", "space"), [((3, 4), (12, 8)), ((2, 3, 2), (4, 6, 10))])
@pytest.mark.parity
def test_alignment_is_the_formula_for_any_classes_and_dims(num_classes, grid, space):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, *grid, 16)).astype(np.float32)
    # sparse labels, so that patches with none, some and all of the classes occur
    labels = rng.integers(1, num_classes + 1, (3, *space)) * (rng.random((3, *space)) < 0.15)
    text = rng.normal(size=(num_classes, 16)).astype(np.float32)
    present = losses.classes_in_patches(jnp.asarray(labels), grid, num_classes)
    got = losses.text_alignment_loss(features.reshape(3, -1, 16), text, present)
    assert float(got) == pytest.approx(alignment_in_numpy(features, labels, text), abs=1e-6)


@pytest.mark.parity
def test_the_gradient_of_the_alignment_is_that_of_the_formula():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 2, 2, 6))
    labels = rng.integers(0, 4, (2, 4, 4))
    text = rng.normal(size=(3, 6))
    present = losses.classes_in_patches(jnp.asarray(labels), (2, 2), 3)

    def loss(x):
        return losses.text_alignment_loss(x.reshape(2, 4, 6), text, present)

    gradient = jax.grad(loss)(jnp.asarray(features, jnp.float32))
    assert np.abs(gradient).max() > 0.01
    for _ in range(5):
        direction, step = rng.normal(size=features.shape), 1e-5
        slope = (
            alignment_in_numpy(features + step * direction, labels, text)
            - alignment_in_numpy(features - step * direction, labels, text)
        ) / (2 * step)
        assert float(np.vdot(gradient, direction)) == pytest.approx(slope, abs=1e-5)


def test_a_token_of_zeros_has_a_finite_gradient():
    present = jnp.zeros((1, 2, 3), bool)
    text = np.eye(3, 4, dtype=np.float32)
    gradient = jax.grad(losses.text_alignment_loss)(jnp.zeros((1, 2, 4)), text, present)
    assert np.isfinite(gradient).all()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("space", [(5, 6), (3, 4, 2)])
@pytest.mark.parity
def test_dice_and_cross_entropy_are_the_formulas(space):
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(2, *space, 4)), rng.integers(0, 3, (2, *space))
    p = softmax(logits)
    terms = []
    for b in range(2):
        for k in range(4):
            g = (labels[b] == k).astype(float)
            pk = p[b, ..., k]
            terms.append(1 - 2 * (pk * g).sum() / ((pk**2).sum() + (g**2).sum() + 1e-6))
    assert float(losses.dice_loss(logits, labels)) == pytest.approx(np.mean(terms), abs=1e-6)
    chosen = np.take_along_axis(p, labels[..., None], -1)
    expected = -np.log(chosen).mean()
    assert float(losses.cross_entropy(logits, labels)) == pytest.approx(expected, abs=1e-6)
    head = losses.Exclusive(3)
    assert float(head.loss(logits, labels)) == pytest.approx(np.mean(terms) + expected, abs=1e-5)


def test_nested_classes_are_binary_and_contain_each_other():
    rng = np.random.default_rng(3)
    logits, labels = 3 * rng.normal(size=(2, 4, 5, 2)), rng.integers(0, 3, (2, 4, 5))
    head = losses.Nested(2)
    expected = 0.0
    for k in (1, 2):
        p = 1 / (1 + np.exp(-logits[..., k - 1]))
        target = labels >= k
        expected += -np.log(np.where(target, p, 1 - p)).mean()
    assert float(head.loss(logits, labels)) == pytest.approx(expected, rel=1e-5)
    masks = head.masks_of_labels(labels)
    np.testing.assert_array_equal(masks[..., 0], labels > 0)
    np.testing.assert_array_equal(masks[..., 1], labels == 2)
    said = head.masks(np.asarray(head.probabilities(logits)))
    np.testing.assert_array_equal(said, logits > 0)


def test_masks_of_exclusive_classes_are_the_label_map():
    labels = np.random.default_rng(4).integers(0, 4, (3, 5, 5))
    head = losses.Exclusive(3)
    masks = head.masks(np.eye(4)[labels])
    np.testing.assert_array_equal(masks, head.masks_of_labels(labels))
    assert (masks.sum(-1) == (labels > 0)).all()


@pytest.mark.parity
def test_the_dice_of_the_foreground_is_the_formula():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 3, 4, 5, 3))
    labels = rng.integers(0, 2, (2, 3, 4, 5))  # class 2 is absent
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    terms = []
    for b in range(2):
        for k in (1, 2):
            truth = labels[b] == k
            tp, fp = p[b, ..., k][truth].sum(), p[b, ..., k][~truth].sum()
            fn = (1 - p[b, ..., k])[truth].sum()
            terms.append(1 - (2 * tp + 1e-5) / (2 * tp + fp + fn + 1e-5 + 1e-8))
    got = losses.foreground_dice_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    assert float(got) == pytest.approx(np.mean(terms), abs=1e-6)
    head = losses.Exclusive(2, losses.foreground_dice_loss)
    both = head.loss(jnp.asarray(logits), jnp.asarray(labels))
    entropy = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    assert float(both) == pytest.approx(np.mean(terms) + float(entropy), abs=1e-5)
