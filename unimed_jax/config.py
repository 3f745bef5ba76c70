"""The keys that every recipe shares, and the checks that run before anything is compiled.

A recipe is a Python file with ``get_config(variant="") -> ConfigDict`` that starts from
``base_config`` and sets what differs. The dictionary is locked: a key that is not here cannot be
set by mistake.
"""

import ast
import importlib
import json
import runpy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from input_pipeline.io.errors import ConfigError

# Keys that may change between the runs of one work directory: they alter neither weights
# (beyond rounding) nor order.
RUN_ONLY_KEYS = (
    "mesh",
    "evals",
    "checkpoint",
    "log_every_steps",
    "eval_every_steps",
    "profile",
    "data.root",
    "data.num_threads",
    "data.verify_checksums",
    "data.accept_new_order",
    "init",
    "model.attention",
    "model.remat",
)


def base_config(task: str = "contrastive") -> ConfigDict:
    """Every key of the trainer with its default, and the keys of one task.

    Args:
      task: a module of ``unimed_jax.tasks``; its ``default_config()`` adds the keys that only it
        knows.

    Returns:
      A locked ConfigDict. The defaults are the published recipe of UniMed-CLIP wherever it states
      one.
    """
    config = ConfigDict()
    config.task = task
    config.seed = 0
    config.batch_size = 2048  # global, over all devices
    config.num_train_steps = 0  # set this ...
    config.num_epochs = 0.0  # ... or this
    config.log_every_steps = 50
    config.eval_every_steps = 0  # 0: only after the last step
    config.profile = False  # a trace of a few steps in WORKDIR/profile (docs/performance.md)

    config.optimizer = ConfigDict()
    config.optimizer.kind = "adamw"  # or "adam", or "sgd" with Nesterov's momentum: L2 decay
    config.optimizer.learning_rate = 5e-4  # peak
    config.optimizer.warmup_steps = 2000  # linear from learning_rate / warmup_steps
    # (regular expression over parameter paths, factor of learning_rate), the first that matches;
    # e.g. (("^text/", 0.1),) where only the text tower was pretrained
    config.optimizer.learning_rate_factors = ()
    config.optimizer.schedule = "cosine"  # or "polynomial", to 0 at the last step; or "constant"
    config.optimizer.hold = 0.0  # share of the steps after the warm-up that stay at the peak
    config.optimizer.power = 0.9  # of "polynomial"
    config.optimizer.momentum = 0.99  # of SGD
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2  # decoupled from the gradient in AdamW
    # Exempt from decay: what has rank below 2 in the published model. It is named by regular
    # expressions over parameter paths, because here blocks are stacked and heads split.
    config.optimizer.no_decay = ("(^|/)(bias|scale|class_embedding|logit_scale|logit_bias)$",)
    config.optimizer.clip_norm = 0.0  # global norm; 0: no clipping
    # microbatches whose gradients are added up in one step, for the loss of the whole batch: less
    # memory, one more forward pass (unimed_jax/microbatches.py)
    config.optimizer.accumulate_steps = 1
    config.optimizer.frozen = ()  # likewise: parameters that stay as they are, e.g. ("^text/",)

    config.mesh = ConfigDict()
    config.mesh.data = -1  # copies of the model, each with its share of the batch; -1: what is left
    config.mesh.fsdp = 1  # shards of parameters and optimiser state, also dividing the batch
    config.mesh.tensor = 1  # shards of heads and of MLP width

    config.data = ConfigDict()
    config.data.root = ""  # a corpus directory, or the parent of those named in data.sources
    config.data.sources = ConfigDict()  # name -> source(...); at least one
    config.data.num_streams = 64  # logical streams; hosts and batch_size must divide evenly by it
    config.data.shuffle_block = 1024  # records that are shuffled together, per stream and source
    config.data.num_threads = 0  # of the decoding pool; 0: tf.data decides
    config.data.on_bad_sample = "error"  # or "replace": log, count, take its neighbour
    config.data.verify_checksums = False  # hash every shard before training
    config.data.accept_new_order = False  # resume although the corpus or its order has changed

    # name -> a source of tools/convert_corpus.py and its flags: raw data of data.root that the run
    # converts into its work directory first
    config.data.raw = ConfigDict()

    config.data.phantoms = ConfigDict()  # read only where data.root is "phantoms"
    config.data.phantoms.num_train_per_class = 150
    config.data.phantoms.num_val_per_class = 30
    config.data.phantoms.image_size = 72
    config.data.phantoms.seed = 0

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep = 3  # newest checkpoints that are kept
    config.checkpoint.best_metric = ""  # e.g. "zero_shot/modality/balanced_accuracy": kept as well

    config.evals = ConfigDict()  # name -> settings of an evaluator of the task
    config.init = ConfigDict()  # part of the model -> weights to start from

    # name -> its task and what else differs: runs that are made first, see unimed_jax/stages.py
    config.stages = ConfigDict()

    defaults = importlib.import_module(f"unimed_jax.tasks.{task}").default_config()
    config.update(defaults)
    config.lock()
    return config


def source(
    path: str = ".",
    split: str = "train",
    weight: float | None = None,
    caption_rule: str = "uniform",
) -> ConfigDict:
    """One entry of ``config.data.sources``.

    Args:
      path: corpus directory, relative to ``data.root``.
      split: split of the corpus that is drawn from.
      weight: relative number of draws; None: the number of its samples.
      caption_rule: how one of a sample's captions is drawn (see input_pipeline/captions.py).
    """
    entry = ConfigDict(
        {"path": path, "split": split, "weight": placeholder(float), "caption_rule": caption_rule}
    )
    entry.weight = weight
    return entry


def load(recipe: str) -> ConfigDict:
    """The config of a recipe, FILE.py or FILE.py:variant, without overrides."""
    path, *variant = recipe.split(":", 1)
    return runpy.run_path(path)["get_config"](*variant)


def explain_override(recipe: str, overrides: Sequence[str]) -> str:
    """What is wrong with the first ``KEY=VALUE`` whose key the recipe does not have; "" if none is.

    Args:
      recipe: FILE.py or FILE.py:variant, which loads.
      overrides: as on the command line, without ``--config.``.
    """
    config = load(recipe)
    for override in overrides:
        key = override.partition("=")[0]
        try:
            find(config, key)
        except ConfigError as error:
            return str(error)
    return ""


def choose_variant(variant: str, choices: tuple[str, ...]) -> str:
    """The part after the colon in --config=FILE:variant. Raises ConfigError for an unknown one."""
    if variant not in choices:
        known = ", ".join(repr(choice) for choice in choices if choice) or "none"
        raise ConfigError(f"this recipe has no variant {variant!r}; valid: {known}")
    return variant


def edit(config: ConfigDict) -> Any:
    """Context in which keys may be added to open dictionaries, such as data.sources or evals."""
    return config.unlocked()


def parse_assignment(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` -> (key, value); a value that is no Python literal is text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def find(config: ConfigDict, key: str) -> Any:
    """The value of a dotted key, of '' the config itself. Raises ConfigError if there is none."""
    node, seen = config, "config"
    for part in key.split(".") if key else ():
        if not isinstance(node, ConfigDict) or part not in node:
            keys = ", ".join(node) if isinstance(node, ConfigDict) else "none below it"
            raise ConfigError(f"unknown key config.{key}; the keys of {seen} are: {keys}")
        node, seen = node[part], f"{seen}.{part}"
    return node


def assign(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key that is there. Raises ConfigError for one that is not, or another type."""
    parent, _, last = key.rpartition(".")
    find(config, key)
    try:
        find(config, parent)[last] = value
    except TypeError as error:
        raise ConfigError(f"config.{key}={value!r}: {error}") from error


def to_json(config: ConfigDict) -> str:
    """The resolved config as stored in ``config.json`` and in every checkpoint."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The inverse of ``to_json``: a locked ConfigDict (lists stand where tuples stood)."""
    return ConfigDict(json.loads(text)).lock()


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf, in sorted order."""
    for key in sorted(config):
        value = config[key]
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lines ``key: old -> new`` for the keys that a continued run may not change.

    A key that the old config lacks because it is newer had its default.
    """
    after = dict(flatten(json.loads(to_json(new))))
    defaults = dict(flatten(json.loads(to_json(base_config(new.task)))))
    before = {key: value for key, value in defaults.items() if key in after}
    before |= flatten(json.loads(to_json(old)))
    return [
        f"{key}: {before.get(key, 'absent')!r} -> {after.get(key, 'absent')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not any(key == k or key.startswith(f"{k}.") for k in RUN_ONLY_KEYS)
    ]


def require(condition: bool, key: str, value: Any, valid: str) -> None:
    """Raises ConfigError naming the key, its value, and what would be right."""
    if not condition:
        raise ConfigError(f"config.{key}={value!r} is not possible; valid: {valid}")


def one_of(config: ConfigDict, key: str, choices: tuple[Any, ...]) -> None:
    """Raises ConfigError unless the value of the dotted ``key`` is one of ``choices``."""
    value = config
    for part in key.split("."):
        value = value[part]
    require(value in choices, key, value, ", ".join(map(repr, choices)))


def validate(config: ConfigDict, num_devices: int, num_hosts: int = 1) -> None:
    """Checks everything of a config that can be checked without reading data.

    Raises:
      ConfigError: names the key, the value and the valid choices.
    """
    counts = (
        "batch_size",
        "log_every_steps",
        "checkpoint.every_steps",
        "checkpoint.keep",
        "optimizer.accumulate_steps",
        "data.num_streams",
        "data.shuffle_block",
    )
    for key in counts:
        value = dict(flatten(config))[key]
        require(value >= 1, key, value, "a whole number of at least 1")
    require(
        (config.num_train_steps > 0) != (config.num_epochs > 0),
        "num_train_steps",
        config.num_train_steps,
        f"exactly one of num_train_steps and num_epochs (={config.num_epochs}) above 0",
    )
    one_of(config, "optimizer.kind", ("adamw", "adam", "sgd"))
    one_of(config, "optimizer.schedule", ("cosine", "polynomial", "constant"))
    hold = config.optimizer.hold
    require(0 <= hold <= 1, "optimizer.hold", hold, "a share of the steps, 0 to 1")
    one_of(config, "data.on_bad_sample", ("error", "replace"))
    require(
        config.optimizer.learning_rate > 0,
        "optimizer.learning_rate",
        config.optimizer.learning_rate,
        "above 0",
    )
    require(
        bool(config.data.sources), "data.sources", {}, "at least one entry, see config.source()"
    )

    sizes = mesh_shape(config, num_devices)
    batch_shards = sizes["data"] * sizes["fsdp"] * config.optimizer.accumulate_steps
    require(
        config.batch_size % batch_shards == 0,
        "batch_size",
        config.batch_size,
        f"a multiple of mesh.data x mesh.fsdp x optimizer.accumulate_steps = {batch_shards}",
    )
    streams = config.data.num_streams
    require(
        config.batch_size % streams == 0, "batch_size", config.batch_size,
        f"a multiple of data.num_streams = {streams}",
    )  # fmt: skip
    require(
        streams % num_hosts == 0,
        "data.num_streams",
        streams,
        f"a multiple of the {num_hosts} hosts",
    )
    importlib.import_module(f"unimed_jax.tasks.{config.task}").validate(config)


def mesh_shape(config: ConfigDict, num_devices: int) -> dict[str, int]:
    """Sizes of the mesh axes, with -1 resolved.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    sizes = {axis: config.mesh[axis] for axis in ("data", "fsdp", "tensor")}
    unknown = [axis for axis, size in sizes.items() if size == -1]
    for axis, size in sizes.items():
        require(size == -1 or size >= 1, f"mesh.{axis}", size, "at least 1, or -1 for what is left")
    known = 1
    for size in sizes.values():
        known *= max(size, 1)
    if len(unknown) == 1 and num_devices % known == 0:
        sizes[unknown[0]] = num_devices // known
    product = sizes["data"] * sizes["fsdp"] * sizes["tensor"]
    shown = " x ".join(f"{axis}={config.mesh[axis]}" for axis in sizes)
    if product != num_devices or len(unknown) > 1:
        raise ConfigError(
            f"config.mesh ({shown}) does not fit the {num_devices} devices; valid: sizes whose "
            f"product is {num_devices}, at most one of them -1"
        )
    return sizes
