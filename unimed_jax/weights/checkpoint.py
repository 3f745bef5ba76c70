"""Checkpoints: one folder per step with state, data position and metadata, written by Orbax.

    WORKDIR/checkpoints/STEP/{state, data, meta}

``state`` is {params, opt_state, step}, and with optimizer.ema_decay ``ema``; ``data`` is the
position of the input stream; ``meta`` holds the resolved config, versions and, as ``identity``, the
fingerprints of the task's assets (say, its tokenizer), so that a checkpoint can be opened without
its config, and the fingerprints of all arrays. A step folder gets its name only when it is
complete; one that is damaged afterwards is skipped and renamed to ``damaged-STEP``.
"""

import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath, PathLike, to_path
from input_pipeline.io.library_errors import LibraryError, brief
from unimed_jax import config as config_lib
from unimed_jax.distributed import process, sharding
from unimed_jax.version import __version__
from unimed_jax.weights import checkpoint_folders, fingerprints, step_folder

FOLDER = "checkpoints"
WEIGHTS = ("ema", "raw")
"""The weights that a checkpoint holds: their moving average, if the run has one, and the newest."""


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves the check for a preemption to the training loop.

    JAX agrees on the step to stop at by the last step that each host asked for, and Orbax would ask
    for older steps, from its background thread.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


@dataclass(frozen=True)
class Restored:
    """A checkpoint in memory; its parts are described at the top of this module."""

    step: int
    state: Any
    position: Mapping[str, Any]
    meta: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one work directory."""

    def __init__(
        self,
        workdir: PathLike,
        *,
        keep: int = 1,
        best_metric: str = "",
        read_only: bool = False,
        asynchronous: bool = True,
    ) -> None:
        """Opens the directory. Raises UserError if its name is not possible.

        Args:
          workdir: holds ``checkpoints/``.
          keep: number of newest checkpoints to keep.
          best_metric: name of an evaluation metric; the checkpoint with the highest value is kept
            as well.
          read_only: create and remove nothing.
          asynchronous: ``save`` returns before everything is on disk, at the cost of a second copy
            of the state in host memory.
        """
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if best_metric:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._best_metric = best_metric
        self._was_read_back = False
        workdir = to_path(workdir).absolute()
        checkpoint_folders.check_name(workdir)
        directory = workdir / FOLDER
        # before the manager removes the remains of an interrupted save
        self._found = [path.name for path in directory.iterdir()] if directory.is_dir() else []
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            create=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            enable_async_checkpointing=asynchronous,
            cleanup_tmp_directories=not read_only,
        )
        with _without_warnings():  # it warns that a directory opened for reading is read only
            self._manager = _Manager(
                str(directory), options=options, item_names=("state", "data", "meta")
            )

    def latest_step(self) -> int | None:
        """The newest complete step."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        position: Mapping[str, Any],
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to write a step, unless it exists; returns when the state has left the devices.

        The first one is awaited and read back, so that a run does not train for days into a
        directory that cannot keep it.

        Raises:
          UserError: what was written cannot be read.
          Exception: of Orbax or TensorStore, as when the disk is full; of this or the last save.
        """
        if step in self._manager.all_steps():
            return
        metrics = dict(metrics or {})
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),
                data=ocp.args.JsonSave(dict(position)),
                meta=ocp.args.JsonSave({**meta, step_folder.ARRAYS: fingerprints.of(state)}),
            ),
            metrics=metrics if self._best_metric in metrics else None,
        )
        if not self._was_read_back:
            self.wait()
            self._read_back(step, state)
            self._was_read_back = True

    def _read_back(self, step: int, state: Any) -> None:
        """Reads ``meta`` and the smallest parameter of a step. Raises UserError if it cannot."""
        path = self._manager.directory / str(step)
        sizes = {
            sharding.path_string(key): leaf.size
            for key, leaf in jax.tree_util.tree_leaves_with_path(state["params"])
        }
        smallest = min(sizes, key=lambda name: sizes[name])
        part = {"params": sharding.select_leaves(state["params"], lambda name: name == smallest)}
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), part)
        here = SingleDeviceSharding(jax.local_devices()[0])  # of arrays that are on the host
        shardings = jax.tree.map(lambda x: getattr(x, "sharding", here), part)
        try:
            step_folder.read_state(path, abstract, shardings)
            step_folder.read_meta(path)
        except Exception as error:
            raise UserError(
                f"{path} was saved, but cannot be read: {brief(error)}; choose another --workdir"
            ) from error

    def restore_newest(self, abstract_state: Any, shardings: Any) -> Restored | None:
        """The newest checkpoint that every host can read; None if there is none at all.

        Logs which one it is, and which newer ones are skipped: the remains of interrupted saves,
        which Orbax removes, and checkpoints with missing or damaged files, which are renamed, so
        that their step can be saved again.

        Raises:
          UserError: a checkpoint does not fit the model, or there are some and none can be read.
        """
        complete, folder = self.steps(), self._manager.directory
        for name in sorted(self._found):
            if name.partition(".")[0].isdigit() and not (name.isdigit() and int(name) in complete):
                process.log(f"skipping {folder / name}: its save was interrupted")
        for step in reversed(complete):
            restored, problem = None, "another host cannot read it"
            try:
                path = folder / str(step)
                state = step_folder.read_state(path, abstract_state, shardings)
                position, (meta, stored) = (
                    step_folder.read_json(path, "data"),
                    step_folder.read_meta(path),
                )
                restored = Restored(step, state, position, meta)
            except UserError:
                raise  # the same on every host
            except Exception as error:
                problem = brief(error)
            process.wait_for_all(f"checkpoint {step} is read")
            if np.all(multihost_utils.process_allgather(np.array(restored is not None))):
                assert restored is not None
                changed = fingerprints.differing(restored.state, stored)
                problem = f"{changed[0]} is not what was saved" if changed else ""
            if not problem:
                process.log(f"resuming from {folder / str(step)}")
                return restored
            self._quarantine(step)
            process.log(
                f"skipping {folder / str(step)}, renamed to damaged-{step}: it cannot be read "
                f"({problem})"
            )
        if complete:
            raise UserError(
                f"none of the checkpoints in {folder} can be read; restore one of them, or choose "
                "another --workdir"
            )
        return None

    def _quarantine(self, step: int) -> None:
        folder = self._manager.directory
        if jax.process_index() == 0:
            (folder / str(step)).rename(folder / f"damaged-{step}")
        process.wait_for_all(f"checkpoint {step} is quarantined")
        self._manager.reload()

    def wait(self) -> None:
        """Blocks until all saves are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def make_meta(config: ConfigDict, asset_fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """The ``meta`` of a checkpoint."""
    return {
        "config": json.loads(config_lib.to_json(config)),
        "identity": dict(asset_fingerprints),
        "versions": {"unimed_jax": __version__, "jax": jax.__version__},
    }


def is_ours(path: AnyPath) -> bool:
    """Whether ``CheckpointReader`` would look for a checkpoint in a path."""
    return (_workdir_of(path) / FOLDER).is_dir()


class CheckpointReader:
    """One complete checkpoint; reading it takes neither its config nor its devices.

    Attributes:
      workdir: the work directory that holds the checkpoint.
      steps: the complete steps of the work directory, ascending.
      step: the training step of the checkpoint.
      path: the checkpoint, WORKDIR/checkpoints/STEP.
    """

    def __init__(self, path: PathLike, step: int | None = None, weights: str | None = None) -> None:
        """Finds a checkpoint.

        Args:
          path: a work directory, its ``checkpoints`` folder, or one step folder.
          step: the step wanted; None: the step that ``path`` names, else the newest.
          weights: one of WEIGHTS; None: the moving average if there is one.

        Raises:
          UserError: there is no complete checkpoint.
        """
        path = to_path(path).absolute()
        self.workdir: AnyPath = _workdir_of(path)
        if step is None and path.name.isdigit() and path.parent.name == FOLDER:
            step = int(path.name)
        if not (self.workdir / FOLDER).is_dir():
            raise UserError(
                f"no checkpoint in {path}: expected a work directory with {FOLDER}/, or "
                f"{FOLDER}/STEP"
            )
        checkpoints = Checkpoints(self.workdir, read_only=True)
        steps = checkpoints.steps()
        checkpoints.close()
        if not steps or (step is not None and step not in steps):
            wanted = "" if step is None else f" of step {step}"
            raise UserError(
                f"no complete checkpoint{wanted} in {self.workdir}; complete steps: "
                f"{steps or 'none'}"
            )
        self.steps: list[int] = steps
        self.step: int = steps[-1] if step is None else step
        self.path: AnyPath = self.workdir / FOLDER / str(self.step)
        self._wanted = weights

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns what is raised by missing and damaged files into UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of Orbax, TensorStore and JSON, of many kinds
            others = ", ".join(str(step) for step in self.steps if step != self.step) or "none"
            raise LibraryError(
                f"checkpoint {self.path} is damaged: {brief(error)}; restore its files, or take "
                f"another step (there are: {others})"
            ) from error

    @property
    def meta(self) -> Mapping[str, Any]:
        """What ``make_meta`` returned. Raises UserError if its file is damaged."""
        return self._meta[0]

    @functools.cached_property
    def _meta(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        with self._reading():
            meta, stored = step_folder.read_meta(self.path)
            if "task" not in meta["config"]:
                raise KeyError("task")
        return meta, stored

    @property
    def config(self) -> ConfigDict:
        """The resolved config that the checkpoint was trained with."""
        with self._reading():
            return config_lib.from_json(json.dumps(self.meta["config"]))

    @functools.cached_property
    def holds_ema(self) -> bool:
        """Whether the run keeps a moving average of its weights. Raises UserError if damaged."""
        with self._reading():
            return any(key.startswith("ema/") for key in step_folder.stored_shapes(self.path))

    @property
    def weights(self) -> str:
        """The one of WEIGHTS that is read.

        Raises:
          UserError: a moving average is wanted, and there is none; or a file is damaged.
        """
        if self._wanted == "ema" and not self.holds_ema:
            raise UserError(
                f"{self.path} holds no moving average, which a run with optimizer.ema_decay has; "
                "take the weights 'raw'"
            )
        return self._wanted or ("ema" if self.holds_ema else "raw")

    @property
    def _item(self) -> str:
        return "ema" if self.weights == "ema" else "params"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of every parameter."""
        prefix = f"{self._item}/"
        with self._reading():
            stored = step_folder.stored_shapes(self.path)
        return {key.removeprefix(prefix): s for key, s in stored.items() if key.startswith(prefix)}

    def params(self, abstract_params: Any, shardings: Any = None) -> Any:
        """The parameters, those that ``weights`` says, without optimizer state.

        Args:
          abstract_params: shapes and dtypes; of a sub-tree, that part alone is read.
          shardings: a tree of the same structure, on any mesh; None: in host memory.

        Raises:
          UserError: names the parameters that are absent or have another shape; or a file of the
            checkpoint is missing or damaged.
        """
        if shardings is None:
            host = SingleDeviceSharding(sharding.host_device())
            shardings = jax.tree.map(lambda _: host, abstract_params)
        with self._reading():
            state = step_folder.read_state(
                self.path, {self._item: abstract_params}, {self._item: shardings}
            )
            _, stored = step_folder.read_meta(self.path)
            if changed := fingerprints.differing(state, stored):
                raise ValueError(f"{changed[0]} is not what was saved")
        logging.info("restored parameters (%s) from %s", self.weights, self.path)
        return state[self._item]


def _workdir_of(path: AnyPath) -> AnyPath:
    if path.name.isdigit() and path.parent.name == FOLDER:
        path = path.parent
    return path.parent if path.name == FOLDER else path
