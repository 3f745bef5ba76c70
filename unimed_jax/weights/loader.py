"""Opens weights by name: our checkpoints, and every format that ``formats`` recognizes."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath, PathLike, local_copy
from unimed_jax.distributed import sharding
from unimed_jax.models import dual_encoder
from unimed_jax.models.config import ModelConfig
from unimed_jax.monitoring import metrics
from unimed_jax.weights import formats, layouts
from unimed_jax.weights.checkpoint import CheckpointReader, is_ours
from unimed_jax.weights.mapping import to_tensors
from unimed_jax.weights.pretrained import PARTS, Part, Pretrained, part_of
from unimed_jax.weights.uri import resolve


def open_weights(uri: PathLike, step: int | None = None, weights: str | None = None) -> Pretrained:
    """Opens a work directory or checkpoint of ours, or any weights that formats.py recognises.

    Args:
        uri: a path, pkg:PACKAGE/PATH, hf:ORG/NAME or ORG/NAME.
        step: the step of a work directory; None: the newest.
        weights: "ema" or "raw", of a checkpoint of ours; None: the moving average if there is one.

    Raises:
        WeightsError, UserError: the weights are missing or invalid.
    """
    path = resolve(str(uri))
    if is_ours(path):
        return _open_checkpoint(CheckpointReader(path, step, weights))
    if weights == "ema":
        raise UserError(f"{path} is no checkpoint of ours and holds no moving average")
    return formats.open_pretrained(local_copy(path))


def _open_checkpoint(reader: CheckpointReader) -> Pretrained:
    config = reader.meta["config"]
    if config["task"] != "contrastive":
        raise UserError(
            f"{reader.path} is a checkpoint of the task {config['task']!r}; valid here: "
            "'contrastive', whose model is a dual encoder"
        )
    model_config = ModelConfig.from_mapping(reader.config.model)
    abstract = jax.eval_shape(dual_encoder.build(model_config).init, jax.random.key(0))
    held = reader.meta.get("parts", PARTS)
    abstract = {key: value for key, value in abstract.items() if part_of(key) in held}
    return of_params(
        reader.params(abstract),
        model_config,
        source=str(reader.path),
        tokenizer=str(reader.workdir / "tokenizer") if "text" in held else "",
        record={
            "step": reader.step,
            "config": config,
            "weights": reader.weights,
            "average": reader.meta.get("average", {}),
            "scores": _scores(reader),
        },
    )


def of_params(
    params: Mapping[str, Any],
    config: ModelConfig,
    *,
    source: str,
    tokenizer: str,
    record: Mapping[str, Any] | None = None,
) -> Pretrained:
    """Our parameters, or some parts of them, as if read from a file of open_clip."""
    tables = {
        "visual": layouts.VISUAL[config.visual.variant],
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


def _scores(reader: CheckpointReader) -> dict[str, float]:
    """The evaluation metrics of the weights of a checkpoint; empty if no evaluator ran."""
    if "average" in reader.meta:
        return reader.meta["average"].get("scores", {})
    if reader.holds_ema and reader.weights == "raw":  # the run scored its moving average
        return {}
    path = reader.workdir / "metrics.jsonl"
    rows = metrics.read_metrics(path) if path.is_file() else []
    row = next((row for row in rows if row["step"] == reader.step), {})
    return {key: value for key, value in row.items() if "/" in key}


def initial_params(
    sources: Mapping[str, str],
    abstract_params: Mapping[str, Any],
    config: ModelConfig,
    *,
    expected: Sequence[str],
    locate: Callable[[str], AnyPath],
    position_rule: str = "open_clip",
) -> dict[str, Any]:
    """The parameters that training starts from, except random ones.

    Args:
        sources: part -> URI, empty for a random part.
        abstract_params: shapes and dtypes of the whole model.
        config: the config of the model.
        expected: see Pretrained.params.
        locate: returns the path of a URI.
        position_rule: see Pretrained.params.
    """
    params: dict[str, Any] = {}
    for uri in dict.fromkeys(filter(None, sources.values())):
        parts = {part for part, source in sources.items() if source == uri}
        wanted = {k: v for k, v in abstract_params.items() if part_of(k) in parts}
        params |= open_weights(locate(uri)).params(wanted, config, expected, position_rule)
    return params


@dataclasses.dataclass(frozen=True)
class PartialRestore:
    """Parameters of one run that another run starts from.

    Attributes:
        source: the checkpoint.
        params: host arrays, a sub-tree of the new run's parameters.
        restored: paths of the parameters in ``params``.
        initialized: paths of the new run's other parameters, which start at random.
        unused: paths of the checkpoint's other parameters.
    """

    source: str
    params: dict[str, Any]
    restored: list[str]
    initialized: list[str]
    unused: list[str]


def restore_matching(
    path: AnyPath, abstract_params: Mapping[str, Any], expected: Sequence[str]
) -> PartialRestore:
    """Reads the parameters whose path and shape a checkpoint shares, whatever its task.

    Args:
        path: a work directory, or a checkpoint in it.
        abstract_params: shapes and dtypes of the new run's parameters.
        expected: regular expressions over paths; a parameter that matches one may be absent from
            the checkpoint, or have another shape there.

    Raises:
        UserError: there is no checkpoint, or a parameter that matches none of ``expected`` is
            absent from it or has another shape there.
    """
    reader = CheckpointReader(path)
    stored = reader.shapes()
    wanted = {
        sharding.path_string(key): tuple(leaf.shape)
        for key, leaf in jax.tree_util.tree_leaves_with_path(abstract_params)
    }
    restored = [name for name, shape in wanted.items() if stored.get(name) == shape]
    initialized = [name for name in wanted if name not in restored]
    misfits = [n for n in initialized if not any(re.search(pattern, n) for pattern in expected)]
    if misfits:
        shape = stored.get(misfits[0], "absent")
        raise UserError(
            f"{reader.path} does not fit: {misfits[0]} has shape {shape}, the model needs "
            f"{wanted[misfits[0]]} ({len(misfits)} such parameters); take a run of the same "
            "network and crop, or name them in config.init.expected"
        )
    names = set(restored)
    params = reader.params(sharding.select_leaves(abstract_params, lambda name: name in names))
    return PartialRestore(
        str(reader.path), params, restored, initialized, sorted(stored.keys() - names)
    )
