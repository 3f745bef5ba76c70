"""A model for notebooks: images and texts in, embeddings and probabilities out.

import unimed_jax
model = unimed_jax.load("runs/quickstart")
model.classify("scan.png", ["a CT slice", "an MRI slice"])
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from input_pipeline.io.errors import UserError, WeightsError
from input_pipeline.io.files import read_bytes, reason, to_path
from input_pipeline.io.grey_levels import grey_to_8_bit
from input_pipeline.io.image_size import check_aspect_ratio, check_size
from input_pipeline.io.images import decode
from input_pipeline.io.library_errors import user_errors
from input_pipeline.io.threads import map_ahead
from input_pipeline.tokenizer import Tokenizer
from unimed_jax.distributed import sharding
from unimed_jax.inference import embedding_cache
from unimed_jax.inference.class_prompts import Labels, class_prompts
from unimed_jax.inference.embedding_engine import EmbeddingEngine
from unimed_jax.losses import contrastive
from unimed_jax.models import dual_encoder, text_buckets
from unimed_jax.models.config import ModelConfig
from unimed_jax.models.functional import Params
from unimed_jax.weights.loader import open_weights
from unimed_jax.weights.pretrained import Pretrained, part_of
from unimed_jax.weights.uri import resolve

_CPU_TOKENS = 1024  # tokens per step on a CPU (docs/log/measurements.md, "Speed of evaluation")
_DECODE_AHEAD = 64  # images

ImageLike = Image.Image | np.ndarray | str | PathLike[str]


@user_errors()
def load(
    path_or_hub_id: str | PathLike[str],
    *,
    step: int | None = None,
    weights: str | None = None,
    tokenizer: str | PathLike[str] = "",
    overrides: Mapping[str, Any] | None = None,
) -> "Model":
    """Loads a dual encoder of any kind that can be read (docs/guides/weights.md), onto all devices.

    Args:
        path_or_hub_id: a work directory or checkpoint of ours, a weights file or directory of CLIP,
            open_clip, UniMed-CLIP, BiomedCLIP or BERT, pkg:PACKAGE/PATH, hf:ORG/NAME or ORG/NAME.
        step: the step of a work directory; None: the newest.
        weights: of a run with a moving average of its weights, "ema" or "raw"; None: the average.
        tokenizer: directory, file or URI; replaces the one that the weights name.
        overrides: dotted keys of the model's config that the weights do not determine, such as
            {"visual.activation": "quick_gelu"}, or that should differ, such as
            {"compute_dtype": "bfloat16"}.

    Raises:
        UserError: the weights are missing, invalid or damaged; the message names the file or
            tensor.
    """
    pretrained = open_weights(path_or_hub_id, step, weights)
    return from_pretrained(pretrained, pretrained.model_config(overrides), str(tokenizer))


def from_pretrained(pretrained: Pretrained, config: ModelConfig, tokenizer: str = "") -> "Model":
    """A model from opened weights; see `load`."""
    model = dual_encoder.build(config)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    abstract = {k: v for k, v in abstract.items() if part_of(k) in pretrained.parts}
    params = pretrained.params(abstract, config)
    return Model(model, params, tokenizer or pretrained.tokenizer, pretrained.source)


class Model:
    """A loaded dual encoder.

    Attributes:
        config: the config of the model; `config.embed_dim` is the width E of the embeddings.
        logit_scale: exp(s), the factor of cosines in `classify`; 1 if the weights have none.
    """

    def __init__(
        self,
        model: dual_encoder.DualEncoder,
        params: Params,
        tokenizer: str,
        source: str,
    ) -> None:
        """Use `load`. `tokenizer` is a path or URI, opened on first use."""
        self.config: ModelConfig = model.config
        self.logit_scale = float(np.exp(params["logit_scale"])) if "logit_scale" in params else 1.0
        self._source, self._tokenizer_uri = source, tokenizer
        self._tokenizer: Tokenizer | None = None
        devices = jax.local_devices()
        mesh = sharding.make_mesh({"data": len(devices), "fsdp": 1, "tensor": 1}, devices)
        self._params = jax.device_put(params, sharding.replicated(mesh))
        self._engine = EmbeddingEngine(model, mesh)

    def encode_image(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        normalize: bool = True,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Embeddings of images, float32 (N, E).

        Images are resized (bicubic, antialiased) so that the shorter side is the model's size, and
        cropped to the central square, as open_clip does.

        Args:
            images: one or any number of PIL images, arrays (uint8 (H, W) or (H, W, 3), or grey of
                more bits), or paths of any format that can be converted, DICOM too.
            normalize: scale the embeddings to unit length.
            batch_size: images per device and step; None: chosen for speed.
        """
        many: Iterable[ImageLike]
        if isinstance(images, Image.Image | np.ndarray | str | PathLike):
            many = [images]
        else:
            many = images
        size = self.config.visual.image_size
        pixels = map_ahead(lambda image: preprocess(image, size), many, depth=_DECODE_AHEAD)
        return self.encode_pixels(pixels, normalize=normalize, batch_size=batch_size)

    def encode_pixels(
        self,
        pixels: Iterable[np.ndarray],
        *,
        normalize: bool = True,
        batch_size: int | None = None,
        whole_batches: bool = False,
    ) -> np.ndarray:
        """Embeddings of preprocessed images, uint8 (S, S, 3); like `encode_image`.

        Args:
            pixels: any number of images from `preprocess`, iterated while the devices are busy.
            normalize: scale the embeddings to unit length.
            batch_size: as in `encode_image`.
            whole_batches: pad the last batch to full size, so that all steps have the same shape
                and no digit of an embedding depends on the number of images or devices.
        """
        batch_size = batch_size or self._fast_batch_size(self.config.visual.num_tokens)
        return self._run("visual", pixels, normalize, batch_size, whole_batches)

    def encode_text(
        self,
        texts: str | Iterable[str],
        *,
        normalize: bool = True,
        batch_size: int | None = None,
        whole_batches: bool = False,
    ) -> np.ndarray:
        """Embeddings of one or any number of texts, float32 (N, E); like `encode_pixels`."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = self.tokenizer(texts) if texts else np.zeros((0, 1), np.int32)
        ids = text_buckets.cut(ids, self.config.text)
        batch_size = batch_size or self._fast_batch_size(ids.shape[1])
        return self._run("text", ids, normalize, batch_size, whole_batches)

    def classify(
        self,
        images: ImageLike | Iterable[ImageLike],
        labels: Labels,
        *,
        batch_size: int | None = None,
    ) -> list[dict[str, float]]:
        """Zero-shot class probabilities by name: one dict per image, in the order of `labels`.

        Args:
            images: as in `encode_image`.
            labels: a list of labels, each its own prompt, or name -> prompt or prompts.
            batch_size: as in `encode_image`.

        Raises:
            UserError: fewer than two labels, one without text or twice, or an image that cannot be
                read.
        """
        names = list(class_prompts(labels))
        rows = self.class_probabilities(images, labels, batch_size=batch_size)
        return [dict(zip(names, map(float, row), strict=True)) for row in rows]

    def class_probabilities(
        self,
        images: ImageLike | Iterable[ImageLike],
        labels: Labels,
        *,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """The probabilities of `classify` as an array, float32 (N, C).

        The embedding of a class is the normalized mean of the unit embeddings of its prompts;
        probabilities are the softmax of logit_scale times the cosines (arXiv 2103.00020, section
        3.1).
        """
        groups = class_prompts(labels).values()
        vectors = self.encode_text([prompt for group in groups for prompt in group])
        ends = np.cumsum([len(group) for group in groups])
        means = [part.mean(0) for part in np.split(vectors, ends[:-1])]
        centres = np.asarray(contrastive.normalize(jnp.stack(means)))
        logits = self.logit_scale * self.encode_image(images, batch_size=batch_size) @ centres.T
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    @property
    def architecture(self) -> str:
        """The image tower in the naming of open_clip: 'ViT-B-16', 'ViT-L-14-336'."""
        sizes = self.config.visual
        letters = {192: "Ti", 384: "S", 768: "B", 1024: "L", 1280: "H"}
        size = letters.get(sizes.width, f"W{sizes.width}")
        resolution = "" if sizes.image_size == 224 else f"-{sizes.image_size}"
        return f"ViT-{size}-{sizes.patch_size}{resolution}"

    @property
    def source(self) -> str:
        """The source of the weights."""
        return self._source

    def image_tower_digest(self) -> str:
        """SHA-256 of the config and parameters that image embeddings depend on."""
        if "visual" not in self._params:
            raise UserError(f"{self._source} has no visual tower")
        return embedding_cache.tower_digest(self.config, self._params, "visual")

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts -> ids, int32 (N, context_length)."""
        if self._tokenizer is None:
            if not self._tokenizer_uri:
                raise UserError(
                    f"{self._source} has no tokenizer: give load(..., tokenizer=DIRECTORY)"
                )
            text = self.config.text
            tokenizer = Tokenizer(resolve(self._tokenizer_uri, weights=False), text.context_length)
            if (tokenizer.vocab_size, tokenizer.pad_id) != (text.vocab_size, text.pad_id):
                raise WeightsError(
                    f"the tokenizer {self._tokenizer_uri} has {tokenizer.vocab_size} entries and "
                    f"pad id {tokenizer.pad_id}, the model {text.vocab_size} and {text.pad_id}"
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    @staticmethod
    def _fast_batch_size(tokens: int) -> int:
        """Rows per device and step. A CPU is faster with matrices that fit into its caches."""
        if jax.default_backend() != "cpu":
            return 64
        return 1 << (max(_CPU_TOKENS // tokens, 1).bit_length() - 1)

    @user_errors()
    def _run(
        self,
        tower: str,
        rows: Iterable[np.ndarray],
        normalize: bool,
        batch_size: int,
        whole_batches: bool,
    ) -> np.ndarray:
        if tower not in self._params:
            raise UserError(f"{self._source} has no {tower} tower")
        counts: list[int] = []

        def place(batch: list[np.ndarray]) -> jax.Array:
            # The next power of two per device: few shapes, so few compilations, little padding.
            per_device = -(-len(batch) // self._engine.num_shards)
            per_device = min(1 << (per_device - 1).bit_length(), batch_size)
            length = (batch_size if whole_batches else per_device) * self._engine.num_shards
            counts.append(len(batch))
            return self._engine.place(np.stack(batch + [batch[-1]] * (length - len(batch))))

        batches = map(place, _batched(rows, batch_size * self._engine.num_shards))
        embedded = self._engine.embed(tower, self._params, batches, normalize=normalize)
        parts = [embeddings[:count] for embeddings, count in zip(embedded, counts, strict=True)]
        if not parts:
            return np.zeros((0, self.config.embed_dim), np.float32)
        return np.concatenate(parts)


def _batched(rows: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def preprocess(image: ImageLike, size: int) -> np.ndarray:
    """Preprocesses one image for the image tower: uint8 (size, size, 3).

    Files are decoded as conversion decodes them: DICOM and 16 bits become 8-bit grey, EXIF data
    turn an image upright.

    Raises:
      UserError: a file cannot be read, an array is neither 8-bit nor grey of 16 bits, or the image
        is too large or too elongated; the message names the file.
    """
    name = str(image) if isinstance(image, str | PathLike) else "the image"
    try:
        image = _opened(image)
        check_size(*image.size)
        check_aspect_ratio(*image.size)
    except (ValueError, OSError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        raise UserError(f"cannot read {name}: {why}") from error
    return np.asarray(resize_and_crop(image.convert("RGB"), size))


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of `size` pixels after resizing the shorter side to it, in any mode."""
    width, height = image.size
    short = min(width, height)
    width, height = size * width // short, size * height // short
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _opened(image: ImageLike) -> Image.Image:
    """An image of 8 bits per channel. Raises ValueError or OSError."""
    if isinstance(image, str | PathLike):
        return decode(read_bytes(to_path(image)))[0]
    if isinstance(image, Image.Image) and image.mode.startswith(("I", "F")):
        image = np.asarray(image)
    if isinstance(image, Image.Image):
        return image
    if image.ndim == 2 and image.dtype in (np.uint16, np.int32, np.float32) and image.size:
        return Image.fromarray(grey_to_8_bit(image))
    grey = image.ndim == 2
    if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(
            "expected uint8 (H, W) or (H, W, 3), or grey of more bits (H, W), got "
            f"{image.dtype} {image.shape}"
        )
    return Image.fromarray(image)
