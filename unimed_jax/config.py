"""The keys that all recipes share, and the checks that run before anything is compiled.

A recipe is a Python file with ``get_config(variant="") -> ConfigDict`` that starts from
``base_config`` and sets what differs. The ConfigDict is locked, so a misspelt key is an error;
``validate`` also refuses unknown keys that were added inside an ``edit`` block.
"""

import ast
import difflib
import importlib
import json
import runpy
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from input_pipeline.io.errors import ConfigError, UserError

# Keys that may change when a run resumes: they alter neither the weights (beyond rounding) nor the
# order of the data.
RUN_ONLY_KEYS = (
    "mesh",
    "evals",
    "checkpoint",
    "log_every_steps",
    "eval_every_steps",
    "profile",
    "watchdog",
    "data.root",
    "data.optional",  # what was left out because of it is data.left_out
    "data.num_threads",
    "data.verify_checksums",
    "data.accept_new_order",
    "init",
    "inference",
    "model.attention_impl",
    "model.remat",
)

# Sections whose keys a recipe makes up: corpora, conversions, evaluators, stages. Their entries
# are checked where they are used.
OPEN_SECTIONS = ("data.sources", "data.raw", "evals", "stages")


# Keys of configs that older versions wrote -> their names now.
RENAMED_KEYS = {
    "optimizer.kind": "optimizer.name",
    "optimizer.hold": "optimizer.hold_fraction",
}
# Keys that older versions wrote and that decide nothing any more. (A run in the order that
# data.num_streams belonged to is refused by ``DataLoader.check_position``, with what to do.)
REMOVED_KEYS = ("data.num_streams", "data.shuffle_block")


def base_config(task: str = "contrastive") -> ConfigDict:
    """All keys of the trainer and of one task, with their defaults.

    Args:
      task: a module of ``unimed_jax.tasks``; its ``default_config()`` adds the keys of the task.

    Returns:
      A locked ConfigDict. Where UniMed-CLIP publishes a value, it is the default.
    """
    config = ConfigDict()
    config.task = task
    config.seed = 0
    config.batch_size = 2048  # global: the sum over all devices
    config.num_train_steps = 0  # set this ...
    config.num_epochs = 0.0  # ... or this
    config.log_every_steps = 50
    config.eval_every_steps = 0  # 0: after the last step only
    config.profile = False  # write a trace of a few steps to WORKDIR/profile

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # or "adam", "sgd" (Nesterov), both with L2 decay
    config.optimizer.learning_rate = 5e-4  # peak
    config.optimizer.warmup_steps = 2000  # linear from learning_rate / warmup_steps
    # ((regex over parameter paths, factor), ...): the first match scales the learning rate, as in
    # (("^text/", 0.1),) for a pretrained text tower
    config.optimizer.learning_rate_factors = ()
    config.optimizer.schedule = "cosine"  # or "polynomial", "constant"
    config.optimizer.hold_fraction = 0.0  # fraction of the steps at the peak, after warm-up
    config.optimizer.power = 0.9  # exponent of the polynomial schedule
    config.optimizer.momentum = 0.99  # SGD
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2  # decoupled in AdamW
    # No decay for parameters of rank below 2 in the published model. They are listed by regex over
    # parameter paths, because blocks are stacked and heads split here.
    config.optimizer.no_decay = ("(^|/)(bias|scale|class_embedding|logit_scale|logit_bias)$",)
    config.optimizer.clip_norm = 0.0  # by global norm; 0: off
    # microbatches per step, with exact gradients of the full-batch loss: less memory for one more
    # forward pass (unimed_jax/losses/gradient_caching.py)
    config.optimizer.accumulate_steps = 1
    config.optimizer.frozen = ()  # regexes: parameters without updates, e.g. ("^text/",)
    # exponential moving average of all parameters, which is then what evaluations and exports take;
    # 0: off, else below 1: an average over about the last 1 / (1 - ema_decay) steps
    config.optimizer.ema_decay = 0.0

    config.mesh = ConfigDict()
    config.mesh.data = -1  # data parallelism; -1: all remaining devices
    config.mesh.fsdp = 1  # shards of parameters, optimizer state and batch
    config.mesh.tensor = 1  # shards of attention heads and MLP width

    config.data = ConfigDict()
    config.data.root = ""  # a corpus, or the parent of those in data.sources
    config.data.sources = ConfigDict()  # name -> source(...); at least one
    # names of sources that a run leaves out, and says so, if there is no such directory; those that
    # it left out: set at its start, so that it resumes with the same mixture
    config.data.optional = ()
    config.data.left_out = ()
    # consecutive records that are read together; they go to as many batches, one after the other
    config.data.block_size = 8
    config.data.num_threads = 0  # decoding threads; 0: tf.data decides
    config.data.on_bad_sample = "error"  # or "replace": log, count, use its neighbour
    config.data.verify_checksums = False  # hash all shards before training
    config.data.accept_new_order = False  # resume although the corpus or its order changed

    # name -> a source of `unimed-jax convert` and its flags: raw data below data.root that the run
    # first converts into its work directory
    config.data.raw = ConfigDict()

    config.data.phantoms = ConfigDict()  # used only if data.root is "phantoms"
    config.data.phantoms.num_train_per_class = 150
    config.data.phantoms.num_val_per_class = 30
    config.data.phantoms.image_size = 72
    config.data.phantoms.seed = 0

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep = 3  # number of newest checkpoints kept
    # the checkpoint with the best value is kept, too; e.g. "zero_shot/modality/balanced_accuracy"
    config.checkpoint.best_metric = ""

    # A run that hangs writes the stacks of its threads to WORKDIR/stacks and exits with status 75:
    # no step for `factor` times the slowest of the last 200 steps, and for `min_seconds` at least.
    config.watchdog = ConfigDict()
    config.watchdog.factor = 10.0
    config.watchdog.min_seconds = 600.0  # 0: no watchdog
    config.watchdog.busy_seconds = 14400.0  # limit of compilation, of an evaluation, of a save

    config.evals = ConfigDict()  # name -> evaluator(...)
    config.init = ConfigDict()  # part of the model -> weights to start from

    # name -> task and changed keys: runs that come first, see unimed_jax/training/stages.py
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
      split: split of the corpus to train on.
      weight: relative number of draws; None: proportional to the number of samples.
      caption_rule: how a caption is drawn, see ``input_pipeline/caption_sampling.py``.
    """
    entry = ConfigDict(
        {"path": path, "split": split, "weight": placeholder(float), "caption_rule": caption_rule}
    )
    entry.weight = weight
    return entry


def evaluator(kind: str, **settings: Any) -> ConfigDict:
    """One entry of ``config.evals``: the defaults of an evaluator with some of them changed.

    Args:
      kind: a name in ``unimed_jax/evals/registry.py``.
      settings: keys of its ``DEFAULTS``.

    Raises:
      ConfigError: the kind or a key is unknown, or a value has another type.
    """
    registry = importlib.import_module("unimed_jax.evals.registry")  # imported by recipes only
    return registry.complete(kind, {"kind": kind, **settings})


def recipe_file(recipe: str) -> str:
    """FILE.py[:variant] of a recipe that is given as such, or by its name in ``configs/``.

    ``configs/`` is looked for in the current directory, then beside the package (a checkout).

    Raises:
      ConfigError: there is no such recipe; the message lists those there are.
    """
    path, colon, variant = recipe.partition(":")
    if Path(path).is_file():
        return recipe
    folders = [Path("configs"), Path(__file__).parents[1] / "configs"]
    for folder in folders:
        if (file := folder / f"{path.removesuffix('.py')}.py").is_file():
            return f"{file}{colon}{variant}"
    names = [
        file.relative_to(folder).with_suffix("").as_posix()
        for folder in folders
        for file in sorted(folder.rglob("*.py"))
    ]
    close = difflib.get_close_matches(path.removeprefix("configs/").removesuffix(".py"), names, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    listed = ", ".join(dict.fromkeys(names)) or "none here"
    raise ConfigError(f"no recipe {path!r}: {hint}give FILE.py, or one of {listed}")


def load(recipe: str) -> ConfigDict:
    """The config of a recipe, FILE.py or FILE.py:variant, without overrides.

    Raises:
      ConfigError: there is no such recipe, it has no such variant, or it fails; the message names
        the line.
    """
    path, *variant = recipe_file(recipe).split(":", 1)
    try:
        return runpy.run_path(path)["get_config"](*variant)
    except UserError as error:
        raise ConfigError(f"{recipe}: {error}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == path), "?")
        # ml_collections lists the whole config after a key that does not exist
        text = str(error).strip("'").partition(" Other fields present")[0]
        raise ConfigError(f"{path}, line {line}: {type(error).__name__}: {text}") from error


def explain_override(recipe: str, overrides: Sequence[str]) -> str:
    """Explains the first override whose key the recipe does not have.

    Args:
      recipe: FILE.py or FILE.py:variant; must load.
      overrides: ``KEY=VALUE`` as on the command line, without ``--config.``.

    Returns:
      The message, or "" if every key exists.
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


def parse_variant(variant: str, **choices: Sequence[str]) -> dict[str, str]:
    """Reads a variant of several arguments: ``data=riga,smoke`` -> {"data": "riga", "smoke": "on"}.

    Args:
      variant: comma-separated ``KEY=VALUE``; ``KEY`` alone stands for ``KEY=on``.
      choices: key -> its valid values, the default first; no values: any text, by default "".

    Returns:
      A value for every key of ``choices``.

    Raises:
      ConfigError: an unknown key or value; the message lists the valid ones.
    """
    values = {key: valid[0] if valid else "" for key, valid in choices.items()}
    for argument in filter(None, variant.split(",")):
        key, equals, value = argument.partition("=")
        value = value if equals else "on"
        if key not in choices:
            known = ", ".join(choices)
            raise ConfigError(f"this recipe has no argument {key!r}; valid: {known}")
        if choices[key] and value not in choices[key]:
            known = ", ".join(choices[key])
            raise ConfigError(f"this recipe has no {key}={value}; valid: {known}")
        values[key] = value
    return values


def edit(config: ConfigDict) -> Any:
    """Context in which keys may be added to the open sections, such as data.sources or evals."""
    return config.unlocked()


def parse_assignment(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` -> (key, value); a value that is not a Python literal is a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def find(config: ConfigDict, key: str) -> Any:
    """The value of a dotted key; the config itself for "". Raises ConfigError for unknown keys."""
    node, seen = config, "config"
    for part in key.split(".") if key else ():
        if not isinstance(node, ConfigDict) or part not in node:
            keys = ", ".join(node) if isinstance(node, ConfigDict) else "none below it"
            raise ConfigError(f"unknown key config.{key}; the keys of {seen} are: {keys}")
        node, seen = node[part], f"{seen}.{part}"
    return node


def assign(config: ConfigDict, key: str, value: Any) -> None:
    """Sets an existing dotted key. Raises ConfigError for an unknown key or another type."""
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
    """The inverse of ``to_json``: a locked ConfigDict (lists stand where tuples stood).

    A config of an older version is updated: renamed keys (``RENAMED_KEYS`` here and in the module
    of its task) get their new names, ``REMOVED_KEYS`` are dropped, and keys that it lacks get their
    defaults.
    """
    content = json.loads(text)
    _rename_keys(content, content["task"])
    for stage in content.get("stages", {}).values():
        _rename_keys(stage, stage["task"])
    _add_defaults(content, json.loads(to_json(base_config(content["task"]))))
    return ConfigDict(content).lock()


def _rename_keys(config: dict[str, Any], task: str) -> None:
    """Moves the values of renamed dotted keys of a nested dict, and drops removed ones.

    Dicts that become empty are dropped, too.
    """
    module = importlib.import_module(f"unimed_jax.tasks.{task}")
    renamed = {**RENAMED_KEYS, **getattr(module, "RENAMED_KEYS", {})}
    for old in (*renamed, *REMOVED_KEYS):
        *outer, last = old.split(".")
        parents = [config]
        for part in outer:
            inner = parents[-1].get(part)
            parents.append(inner if isinstance(inner, dict) else {})
        if last not in parents[-1]:
            continue
        value = parents[-1].pop(last)
        for parent, part, inner in zip(parents, outer, parents[1:], strict=False):
            if not inner:
                del parent[part]
        new = renamed.get(old)
        if new is None:
            continue
        target = config
        *outer, last = new.split(".")
        for part in outer:
            target = target.setdefault(part, {})
        target[last] = value


def _add_defaults(config: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Adds the keys of ``defaults`` that a nested dict lacks."""
    for key, value in defaults.items():
        if key not in config:
            config[key] = value
        elif isinstance(value, dict) and isinstance(config[key], dict):
            _add_defaults(config[key], value)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf, in sorted order."""
    for key in sorted(config):
        value = config[key]
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lines ``key: old -> new`` for changed keys that a resumed run must not change.

    A key that the old config lacks, because it was added later, counts as its default.
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
    """Raises ConfigError with the key, its value and the valid values."""
    if not condition:
        raise ConfigError(f"config.{key}={value!r} is not possible; valid: {valid}")


def one_of(config: ConfigDict, key: str, choices: tuple[Any, ...]) -> None:
    """Raises ConfigError unless the value of the dotted ``key`` is one of ``choices``."""
    value = config
    for part in key.split("."):
        value = value[part]
    require(value in choices, key, value, ", ".join(map(repr, choices)))


def validate(config: ConfigDict, num_devices: int, num_hosts: int = 1) -> None:
    """Checks a config as far as possible without reading data.

    Raises:
      ConfigError: names the key, the value and the valid choices.
    """
    refuse_unknown_keys(config)
    counts = (
        "batch_size",
        "log_every_steps",
        "checkpoint.every_steps",
        "checkpoint.keep",
        "optimizer.accumulate_steps",
        "data.block_size",
    )
    keys = dict(flatten(config))
    for key in counts:
        require(keys[key] >= 1, key, keys[key], "a whole number of at least 1")
    require(
        (config.num_train_steps > 0) != (config.num_epochs > 0),
        "num_train_steps",
        config.num_train_steps,
        f"exactly one of num_train_steps and num_epochs (={config.num_epochs}) above 0",
    )
    one_of(config, "optimizer.name", ("adamw", "adam", "sgd"))
    one_of(config, "optimizer.schedule", ("cosine", "polynomial", "constant"))
    hold = config.optimizer.hold_fraction
    require(0 <= hold <= 1, "optimizer.hold_fraction", hold, "a share of the steps, 0 to 1")
    decay = config.optimizer.ema_decay
    require(0 <= decay < 1, "optimizer.ema_decay", decay, "at least 0 (off) and below 1, say 0.999")
    one_of(config, "data.on_bad_sample", ("error", "replace"))
    factor, seconds = config.watchdog.factor, config.watchdog.min_seconds
    require(factor >= 1, "watchdog.factor", factor, "at least 1")
    require(seconds >= 0, "watchdog.min_seconds", seconds, "seconds, or 0 for no watchdog")
    require(
        config.optimizer.learning_rate > 0,
        "optimizer.learning_rate",
        config.optimizer.learning_rate,
        "above 0",
    )
    require(
        bool(config.data.sources), "data.sources", {}, "at least one entry, see config.source()"
    )
    require(
        set(config.data.optional) <= set(config.data.sources),
        "data.optional",
        config.data.optional,
        f"names in data.sources: {', '.join(config.data.sources)}",
    )

    sizes = mesh_shape(config, num_devices)
    batch_shards = sizes["data"] * sizes["fsdp"] * config.optimizer.accumulate_steps
    require(
        config.batch_size % batch_shards == 0,
        "batch_size",
        config.batch_size,
        f"a multiple of mesh.data x mesh.fsdp x optimizer.accumulate_steps = {batch_shards}",
    )
    if keys.get("model.text.buckets"):  # of tasks with a text tower
        groups = sizes["data"] * sizes["fsdp"] * keys["model.text.bucket_groups"]
        require(
            config.batch_size % groups == 0,
            "batch_size",
            config.batch_size,
            f"a multiple of mesh.data x mesh.fsdp x model.text.bucket_groups = {groups}, or "
            "model.text.buckets=()",
        )
    require(
        config.batch_size % num_hosts == 0,
        "batch_size",
        config.batch_size,
        f"a multiple of the {num_hosts} hosts",
    )
    importlib.import_module(f"unimed_jax.tasks.{config.task}").validate(config)


def refuse_unknown_keys(config: ConfigDict) -> None:
    """Raises ConfigError for keys that no task knows, such as misspelt ones from an ``edit`` block.

    The open sections may hold any names; an entry of ``data.sources`` has the keys of ``source()``.
    """
    known = base_config(config.task)

    def check(found: ConfigDict, valid: ConfigDict, prefix: str) -> None:
        for key, value in found.items():
            name = f"{prefix}{key}"
            if key not in valid:
                keys = ", ".join(valid)
                raise ConfigError(f"unknown key config.{name}; the keys beside it are: {keys}")
            if isinstance(value, ConfigDict) and name not in OPEN_SECTIONS:
                if not isinstance(valid[key], ConfigDict):
                    raise ConfigError(f"config.{name} is a value, not a section")
                check(value, valid[key], f"{name}.")

    check(config, known, "")
    for name, entry in config.data.sources.items():
        check(entry, source(), f"data.sources.{name}.")


def mesh_shape(config: ConfigDict, num_devices: int) -> dict[str, int]:
    """Sizes of the mesh axes, with -1 resolved.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    sizes = {axis: config.mesh[axis] for axis in ("data", "fsdp", "tensor")}
    unknown = [axis for axis, size in sizes.items() if size == -1]
    for axis, size in sizes.items():
        require(size == -1 or size >= 1, f"mesh.{axis}", size, "at least 1, or -1 for the rest")
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
