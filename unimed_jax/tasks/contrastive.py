"""Contrastive image-text pretraining: a CLIP-style dual encoder on TFRecord corpora."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from input_pipeline import records as records_lib
from input_pipeline.io.errors import ConfigError
from input_pipeline.io.files import AnyPath, to_path
from input_pipeline.tokenizer import Tokenizer
from unimed_jax import config as config_lib
from unimed_jax.evals import registry as evaluator_registry
from unimed_jax.evals.embeddings import CorpusEmbedder
from unimed_jax.losses import registry as loss_registry
from unimed_jax.losses.contrastive import SAME_LABEL, normalize
from unimed_jax.losses.gradient_caching import map_rows
from unimed_jax.models import dual_encoder, text_buckets
from unimed_jax.models.config import ModelConfig
from unimed_jax.models.functional import Params
from unimed_jax.monitoring import flops
from unimed_jax.reporting.html_report import Chart
from unimed_jax.training.data_location import locate
from unimed_jax.training.task import Evaluator
from unimed_jax.weights import loader
from unimed_jax.weights.pretrained import PARTS, POSITION_RULES

if TYPE_CHECKING:
    import tensorflow as tf


RENAMED_KEYS = {
    "loss.kind": "loss.name",
    "model.visual.form": "model.visual.variant",
    "model.attention": "model.attention_impl",
}
"""Keys in configs of older versions -> current keys; see ``config.from_json``."""


def default_config() -> dict[str, Any]:
    """The keys of this task; the model is UniMed-CLIP's ViT-B/16 with BiomedBERT-base."""
    model = dataclasses.asdict(ModelConfig()) | {"logit_bias_init": placeholder(float)}
    return {
        "model": model,
        # a directory or file with tokenizer.json or vocab.txt, or a URI: pkg:PACKAGE/PATH,
        # hf:ORG/NAME, or root:PATH relative to data.root
        "tokenizer": "hf:microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "loss": {
            "name": "softmax",  # or "sigmoid"
            "logit_scale_max": 100.0,  # exp(logit_scale) is clamped to [1, this] after every step
            # what pairs with common labels are to each other: "negative" (CLIP), "ignored",
            # "positive", or positive by "overlap" of their labels (losses/contrastive.py)
            "same_label": "negative",
            "max_labels": 16,  # of a record that are looked at
        },
        "augmentation": {"min_area": 0.9},  # random resized crop: area in [min_area, 1]
        "captions": {
            "sentence_share": 0.0,  # of the captions drawn are cut to some of their sentences
            "label_share": 0.0,  # are replaced by the labels or the modality in words
        },
        # weights to start from, each a file, a directory or a URI as above, in any format of
        # docs/guides/weights.md; parts that stay empty are initialized at random
        "init": {
            "model": "",  # all parts, except those set below
            "visual": "",
            "text": "",
            "logits": "",  # logit_scale and logit_bias
            # regular expressions over tensors that may be missing, extra or of another shape
            "expected": (),
            # position embeddings of another grid: "open_clip", or "corners" as UniMed-CLIP did
            "position_rule": "open_clip",
        },
    }


def validate(config: ConfigDict) -> None:
    """Raises ConfigError naming the first invalid key of this task."""
    from input_pipeline import caption_sampling

    evaluator_registry.validate(config.evals, Contrastive.evaluator_classes)
    model = ModelConfig.from_mapping(config.model)
    config_lib.one_of(config, "loss.name", tuple(loss_registry.CONTRASTIVE))
    config_lib.one_of(config, "init.position_rule", POSITION_RULES)
    config_lib.one_of(config, "loss.same_label", SAME_LABEL)
    config_lib.require(
        config.loss.same_label == "negative"
        or loss_registry.CONTRASTIVE[config.loss.name].has_labels,
        "loss.same_label",
        config.loss.same_label,
        f"'negative' for loss.name={config.loss.name!r}, which does not look at labels",
    )
    config_lib.require(
        config.loss.max_labels >= 1, "loss.max_labels", config.loss.max_labels, "at least 1"
    )
    needs_bias = loss_registry.CONTRASTIVE[config.loss.name].has_bias
    config_lib.require(
        needs_bias == (model.logit_bias_init is not None),
        "model.logit_bias_init",
        model.logit_bias_init,
        "a number for loss.name='sigmoid' (SigLIP: -10.0), None for 'softmax'",
    )
    config_lib.require(
        0 < config.augmentation.min_area <= 1,
        "augmentation.min_area",
        config.augmentation.min_area,
        "above 0, at most 1",
    )
    for key, share in config.captions.items():
        config_lib.require(0 <= share <= 1, f"captions.{key}", share, "between 0 and 1")
    groups = model.text.bucket_groups
    config_lib.require(
        not model.text.buckets or groups >= config.optimizer.accumulate_steps,
        "model.text.bucket_groups",
        groups,
        f"at least optimizer.accumulate_steps = {config.optimizer.accumulate_steps}",
    )
    for source in config.data.sources.values():
        caption_sampling.original_probability(source.caption_rule)


class Contrastive:
    """The contrastive task; ``training.task.Task`` documents the methods."""

    record_schema = records_lib.SCHEMA.name
    evaluator_classes = evaluator_registry.DUAL_ENCODER
    charts = (
        Chart("Balanced accuracy", "zero_shot/*/balanced_accuracy", (0.0, 1.0)),
        Chart("Logit scale", "logit_scale"),
    )

    def __init__(self, config: ConfigDict, workdir: str) -> None:
        self._config = config
        self._workdir = workdir
        self.model = dual_encoder.build(config.model)
        self.parameter_axes = self.model.parameter_axes
        self._uses_labels = config.loss.same_label != "negative"
        self._contrastive_loss = loss_registry.CONTRASTIVE[config.loss.name]
        self._rules = tuple(
            config.data.sources[k].caption_rule for k in sorted(config.data.sources)
        )

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: the copy in the work directory if there is one, else ``config.tokenizer``.

        It is read on first use: compiling the step, or evaluating an image tower alone, needs no
        file.

        Raises:
          ConfigError: the tokenizer contradicts ``config.model.text``.
        """
        text = self._config.model.text
        path = to_path(self._workdir) / "tokenizer"
        if not path.is_dir():
            uri = self._config.tokenizer
            path = locate(uri, self._config, self._workdir, weights=False)
        tokenizer = Tokenizer(path, text.context_length)
        for key, value in (("vocab_size", tokenizer.vocab_size), ("pad_id", tokenizer.pad_id)):
            if text[key] != value:
                raise ConfigError(
                    f"config.model.text.{key}={text[key]} contradicts the tokenizer {path}, "
                    f"which has {value}"
                )
        return tokenizer

    @property
    def asset_fingerprints(self) -> Mapping[str, Any]:
        return {"tokenizer_sha256": self.tokenizer.sha256}

    def save_assets(self, workdir: str) -> None:
        self.tokenizer.save(to_path(workdir) / "tokenizer")

    # --- parameters -------------------------------------------------------------------------------

    def init(self, key: jax.Array) -> Params:
        return self.model.init(key)

    def pretrained(self, abstract_params: Params) -> Params:
        init = self._config.init
        return loader.initial_params(
            {part: init[part] or init.model for part in PARTS},
            abstract_params,
            self.model.config,
            expected=tuple(init.expected),
            position_rule=init.position_rule,
            locate=lambda uri: locate(uri, self._config, self._workdir),
        )

    def constrain(self, params: Params) -> Params:
        upper = math.log(self._config.loss.logit_scale_max)
        return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, upper)}

    # --- training ---------------------------------------------------------------------------------

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        drops_patches = self.model.config.visual.patch_dropout > 0

        def images_of(images: jax.Array, rng: jax.Array) -> jax.Array:
            # another key than that of the texts
            key = jax.random.fold_in(rng, 1) if drops_patches else None
            return normalize(self.model.encode_image(params, images, dropout_rng=key))

        def texts_of(params: Params, ids: jax.Array, rng: jax.Array) -> jax.Array:
            return normalize(self.model.encode_text(params, ids, dropout_rng=rng))

        # one tower after the other, so that the activations of both are never in memory at once
        count = self._config.optimizer.accumulate_steps
        images = map_rows(images_of, batch["image"], rng, count)
        scale = jnp.exp(params["logit_scale"])
        metrics = {"logit_scale": scale}
        text, ids = self.model.config.text, batch["text"]
        if text.buckets:
            tower = {"text": params["text"]}
            texts, groups = text_buckets.encode(texts_of, tower, ids, rng, text)
            saved = jnp.array(self._padding_saved, jnp.float32)
            metrics["text_padding_saved"] = jnp.sum(groups * saved)
        else:
            texts = map_rows(functools.partial(texts_of, params), ids, rng, count)
        bias = (params["logit_bias"],) if self._contrastive_loss.has_bias else ()
        sets = {}
        if self._uses_labels:
            sets = {"labels": batch["labels"], "same_label": self._config.loss.same_label}
        loss = self._contrastive_loss.function(images, texts, scale, *bias, **sets)
        return loss, metrics

    @functools.cached_property
    def _padding_saved(self) -> tuple[float, ...]:
        """Share of the FLOPs of a padded step that a group in each bucket saves."""
        text, key = self.model.config.text, jax.random.key(0)
        padded = self._config.copy_and_resolve_references()
        padded.model.text.buckets = ()
        params = jax.eval_shape(self.init, key)
        rows = self._config.batch_size
        whole = flops.matmul_flops(
            Contrastive(padded, self._workdir).loss, params, self.batch_spec(rows), key
        )

        def of_group(length: int) -> float:
            ids = jax.ShapeDtypeStruct((rows // text.bucket_groups, length), jnp.int32)
            return flops.matmul_flops(self.model.encode_text, params, ids)

        full = of_group(text.context_length)
        return tuple((full - of_group(length)) / whole for length in text.buckets)

    def expected_padding_saved(self, lengths: Sequence[int], shares: Sequence[float]) -> float:
        """The metric ``text_padding_saved`` to expect, 0 without ``model.text.buckets``.

        Args:
          lengths: tokens of captions, ascending, at most ``model.text.context_length``.
          shares: share of captions of each length.
        """
        text = self.model.config.text
        if not text.buckets:
            return 0.0
        groups = text_buckets.expected_groups(lengths, shares, text)
        return float(groups @ self._padding_saved)

    # --- data -------------------------------------------------------------------------------------

    def decode(
        self, serialized: tf.Tensor, seeds: tf.Tensor, sources: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        from input_pipeline import caption_sampling, label_numbers, text_variants, transforms

        def other_seeds(number: int) -> tf.Tensor:
            return seeds + tf.constant([0, number << 60], tf.int64)

        samples = records_lib.parse(serialized)
        max_labels = self._config.loss.max_labels
        sets = {"labels": label_numbers.of(samples, max_labels)} if self._uses_labels else {}
        captions = caption_sampling.draw_captions(
            samples["captions"],
            samples["num_original_captions"],
            self._rules,
            sources,
            other_seeds(4),
        )
        shares = self._config.captions
        if shares.sentence_share:
            captions = text_variants.some_sentences(captions, shares.sentence_share, other_seeds(1))
        if shares.label_share:
            captions = text_variants.labels_in_words(
                captions, samples, shares.label_share, other_seeds(2)
            )
        return {
            "id": samples["id"],
            "image": transforms.random_resized_crops(
                samples["image"],
                self._config.model.visual.image_size,
                seeds,
                (self._config.augmentation.min_area, 1.0),
            ),
            "caption": captions,
            **sets,
        }

    def data_notes(self, records: Iterable[bytes]) -> Sequence[str]:
        samples = [records_lib.decode(record) for record in records]
        notes = []
        most = max((len(sample.labels) for sample in samples), default=0)
        if self._uses_labels and most > self._config.loss.max_labels:
            notes.append(
                f"loss.max_labels={self._config.loss.max_labels} is less than the {most} labels of "
                "some records: their last ones are not looked at"
            )
        limit = self._config.model.text.context_length
        captions = [caption for sample in samples for caption in sample.captions]
        lengths = self.tokenizer.lengths(captions)
        if not (lengths > limit).any():
            return notes
        return [
            *notes,
            f"captions longer than model.text.context_length={limit} tokens are cut: "
            f"{(lengths > limit).sum():,} of the first {len(captions):,} "
            f"({(lengths > limit).mean():.1%}), the longest has {lengths.max()}",
        ]

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        texts = [caption.decode() for caption in batch["caption"]]
        sets = {"labels": batch["labels"]} if self._uses_labels else {}
        return {"image": batch["image"], "text": self.tokenizer(texts), **sets}

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        size = self._config.model.visual.image_size
        length = self._config.model.text.context_length
        labels = jax.ShapeDtypeStruct((batch_size, self._config.loss.max_labels), jnp.uint32)
        sets = {"labels": labels} if self._uses_labels else {}
        return {
            "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((batch_size, length), jnp.int32),
            **sets,
        }

    # --- evaluation -------------------------------------------------------------------------------

    def evaluators(self, mesh: Mesh, cache: AnyPath | None = None) -> dict[str, Evaluator]:
        root = locate("root:", self._config, self._workdir)
        embedder = CorpusEmbedder(
            self.model, lambda texts: self.tokenizer(texts), root, mesh, cache
        )
        return evaluator_registry.create(self._config.evals, self.evaluator_classes, embedder)


TASK = Contrastive
