"""Weights by name: our own checkpoints and everything that porting/ can read, opened one way."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath, PathLike, local_copy
from unimed_jax import trees
from unimed_jax.distributed import sharding
from unimed_jax.models import dual_encoder
from unimed_jax.models.config import ModelConfig
from unimed_jax.monitoring import metrics
from unimed_jax.weights import checkpoint, formats, layouts
from unimed_jax.weights.mapping import to_tensors
from unimed_jax.weights.pretrained import PARTS, Part, Pretrained, part_of
from unimed_jax.weights.uri import resolve


def open_weights(uri: PathLike, step: int | None = None) -> Pretrained:
    """Opens a work directory or checkpoint of ours, or any weights that formats.py recognises.

    Args:
        uri: a path, pkg:PACKAGE/PATH, hf:ORG/NAME or ORG/NAME.
        step: of a work directory; None: the newest.

    Raises:
        WeightsError, UserError: nothing there, or not what it should be.
    """
    path = resolve(str(uri))
    if checkpoint.is_ours(path):
        return _open_checkpoint(path, step)
    return formats.open_pretrained(local_copy(path))


def _open_checkpoint(path: AnyPath, step: int | None) -> Pretrained:
    workdir, step = checkpoint.find(path, step)
    meta = checkpoint.load_meta(workdir, step)
    if meta["config"]["task"] != "contrastive":
        raise UserError(f"{workdir} holds a {meta['config']['task']!r} model, not a dual encoder")
    config = ModelConfig.from_mapping(meta["config"]["model"])
    abstract = jax.eval_shape(dual_encoder.build(config).init, jax.random.key(0))
    held = meta.get("parts", PARTS)
    abstract = {key: value for key, value in abstract.items() if part_of(key) in held}
    return of_params(
        checkpoint.load_params(workdir, step, abstract),
        config,
        source=str(workdir / checkpoint.FOLDER / str(step)),
        tokenizer=str(workdir / "tokenizer") if "text" in held else "",
        record={"step": step, "config": meta["config"], "scores": _scores(workdir, step)},
    )


def of_params(
    params: Mapping[str, Any],
    config: ModelConfig,
    *,
    source: str,
    tokenizer: str,
    record: Mapping[str, Any] | None = None,
) -> Pretrained:
    """Parameters of ours, or some parts of them, as if read from a file of open_clip's."""
    tables = {
        "visual": layouts.VISUAL[config.visual.form],
        "text": layouts.HF_TEXT,
        "logits": layouts.LOGITS,
    }
    trees = {name: params[name] for name in ("visual", "text") if name in params}
    trees["logits"] = {key: value for key, value in params.items() if part_of(key) == "logits"}
    mapping = dataclasses.asdict(config)
    return Pretrained(
        source=source,
        kind="unimed_jax checkpoint",
        parts={
            name: Part(
                tables[name],
                to_tensors(tree, tables[name]),
                config=mapping.get(name, {}),
                ours=tree,
            )
            for name, tree in trees.items()
            if tree
        },
        config={key: value for key, value in mapping.items() if key not in trees},
        tokenizer=tokenizer,
        record=record or {},
    )


def _scores(workdir: AnyPath, step: int) -> dict[str, float]:
    """What the evaluators found at a step of a run; empty if they did not run then."""
    path = workdir / "metrics.jsonl"
    rows = metrics.read_metrics(path) if path.is_file() else []
    row = next((row for row in rows if row["step"] == step), {})
    return {key: value for key, value in row.items() if "/" in key}


def initial_params(
    sources: Mapping[str, str],
    abstract_params: Mapping[str, Any],
    config: ModelConfig,
    *,
    expected: Sequence[str],
    locate: Callable[[str], AnyPath],
) -> dict[str, Any]:
    """The parameters that training starts from, as far as they are not random.

    Args:
        sources: part -> URI, empty for a random part.
        abstract_params: shapes and dtypes of the whole model.
        config: of the model.
        expected: see Pretrained.params.
        locate: path of a URI.
    """
    params: dict[str, Any] = {}
    for uri in dict.fromkeys(filter(None, sources.values())):
        parts = {part for part, source in sources.items() if source == uri}
        wanted = {k: v for k, v in abstract_params.items() if part_of(k) in parts}
        params |= open_weights(locate(uri)).params(wanted, config, expected)
    return params


@dataclasses.dataclass(frozen=True)
class SameNamed:
    """Parameters of one run that another starts from.

    Attributes:
        source: the checkpoint.
        params: host arrays, a sub-tree of the other's parameters.
        taken, new, left: paths of those, of the other's own, and of what the run has besides.
    """

    source: str
    params: dict[str, Any]
    taken: list[str]
    new: list[str]
    left: list[str]


def same_named(
    path: AnyPath, abstract_params: Mapping[str, Any], expected: Sequence[str]
) -> SameNamed:
    """What a run of ours, of whatever task, has under the same name and in the same shape.

    Args:
        path: a work directory, or a checkpoint in it.
        abstract_params: shapes and dtypes of the parameters that are wanted.
        expected: regular expressions over their paths: those that may be absent there, or have
            another shape.

    Raises:
        UserError: there is no checkpoint, or something is absent that is not expected to be.
    """
    workdir, step = checkpoint.find(path)
    source = str(workdir / checkpoint.FOLDER / str(step))
    stored = checkpoint.param_shapes(workdir, step)
    wanted = {
        sharding.path_string(key): tuple(leaf.shape)
        for key, leaf in jax.tree_util.tree_leaves_with_path(abstract_params)
    }
    taken = [name for name, shape in wanted.items() if stored.get(name) == shape]
    new = [name for name in wanted if name not in taken]
    strange = [n for n in new if not any(re.search(pattern, n) for pattern in expected)]
    if strange:
        shape = stored.get(strange[0], "absent")
        raise UserError(
            f"{source} does not fit: {strange[0]} has shape {shape}, the model needs "
            f"{wanted[strange[0]]} ({len(strange)} such parameters); take a run of the same "
            "network and crop, or name them in config.init.expected"
        )
    kept = set(taken)
    params = checkpoint.load_params(
        workdir, step, trees.part(abstract_params, lambda name: name in kept)
    )
    return SameNamed(source, params, taken, new, sorted(stored.keys() - kept))
