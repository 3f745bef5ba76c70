"""Trains any task from one config.

    unimed-jax train --config=configs/quickstart.py --workdir=runs/quickstart
    unimed-jax train --config=FILE[:variant] --workdir=DIR [--config.KEY=VALUE ...]

Every key of the config can be set on the command line (--config.optimizer.learning_rate=3e-4). The
same command, given again, resumes from the newest checkpoint in the work directory, with the same
losses as an uninterrupted run. The work directory receives config.json, metrics.jsonl,
tensorboard/, checkpoints/, results.json, report.html.
"""

import contextlib
import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import psutil
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from input_pipeline import device_prefetch
from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath, sorted_glob, to_path, write_text_atomically
from unimed_jax import config as config_lib
from unimed_jax import tasks
from unimed_jax.distributed import process, sharding, xla_options
from unimed_jax.distributed.watchdog import Watchdog
from unimed_jax.evals.failures import EvaluationFailed, Failures
from unimed_jax.evals.results import evaluate, named_metrics, write_results
from unimed_jax.monitoring import metrics, profiling
from unimed_jax.training import data_location, stages
from unimed_jax.training.data_loader import DataLoader
from unimed_jax.training.task import Evaluation, Task
from unimed_jax.training.train_step import State, TrainStep
from unimed_jax.weights.checkpoint import FOLDER, Checkpoints, make_meta

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="recipe: a name in configs/, or FILE.py; with :variant"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "directory of this run, or gs://BUCKET/DIR; the same one resumes it"
)
_STOPPED_STATUS = flags.DEFINE_integer(
    "stopped_status", 0, "exit status of a run that a signal stopped before its last step"
)


def claim_workdir(config: ConfigDict, workdir: AnyPath) -> None:
    """Writes config.json; refuses a directory with checkpoints of another config.

    Raises:
      UserError: the directory cannot be written, or belongs to another config.
    """
    path = workdir / "config.json"
    if path.is_file() and sorted_glob(workdir / FOLDER, "[0-9]*"):
        changed = config_lib.differences(config_lib.from_json(path.read_text()), config)
        if changed:
            raise UserError(
                f"{workdir} belongs to another config ({'; '.join(changed)}); choose another "
                "--workdir, or restore these keys"
            )
    write_text_atomically(path, config_lib.to_json(config) + "\n")


def prepare(config: ConfigDict, workdir: AnyPath, num_devices: int) -> None:
    """Checks the config, claims the work directory, and generates the corpus if it is missing.

    Raises:
      UserError: anything the user can fix.
    """
    config_lib.validate(config, num_devices, jax.process_count())
    if jax.process_index() == 0:
        claim_workdir(config, workdir)
        data_location.prepare(config, str(workdir))
    process.wait_for_all("work directory and corpus are ready")


def initial_state(task: Task, step: TrainStep) -> State:
    """The state before the first step: random parameters, the pretrained ones replaced."""
    state = jax.jit(
        step.init,
        out_shardings=step.shardings,
        compiler_options=xla_options.one_shot_options(step.mesh),
    )(step.key())
    abstract = step.abstract_state["params"]
    wanted = {
        sharding.path_string(path): (leaf.dtype, placement)
        for (path, leaf), placement in zip(
            jax.tree_util.tree_leaves_with_path(abstract),
            jax.tree.leaves(step.shardings["params"]),
            strict=True,
        )
    }

    def place(path: Any, value: Any) -> jax.Array:
        dtype, placement = wanted[sharding.path_string(path)]
        return sharding.place_like(np.asarray(value, dtype), placement)

    loaded = jax.tree_util.tree_map_with_path(place, task.pretrained(abstract))
    return {**state, "params": sharding.replace_leaves(state["params"], loaded)}


def is_multiple(step: int, every: int) -> bool:
    """Whether an action of every ``every`` steps (0: never) is due after ``step``."""
    return every > 0 and step % every == 0


def train(
    config: ConfigDict,
    workdir: AnyPath,
    devices: Sequence[jax.Device] | None = None,
    began: float | None = None,
) -> bool:
    """One run, from the config to the report; resumes the run in the work directory.

    Args:
      config: the config of a recipe.
      workdir: absolute path, local or in a bucket.
      devices: devices of all hosts; None: all that JAX finds.
      began: ``time.time()`` when the command was given; None: now.

    Returns:
      Whether the run is finished; False if a signal stopped it before the last step, after saving.

    Raises:
      EvaluationFailed: the run is finished, but some of its evaluators failed.
      UserError: anything the user can fix, as one line.
    """
    with process.exclusive(workdir):
        return _train(config, workdir, devices, began)


def _train(
    config: ConfigDict, workdir: AnyPath, devices: Sequence[jax.Device] | None, began: float | None
) -> bool:
    """``train``, in a work directory that is locked."""
    with contextlib.closing(process.make_watchdog(workdir, config.watchdog)) as watchdog:
        return _train_watched(config, workdir, devices, began, watchdog)


def _train_watched(
    config: ConfigDict,
    workdir: AnyPath,
    devices: Sequence[jax.Device] | None,
    began: float | None,
    watchdog: Watchdog,
) -> bool:
    """``train``, in a work directory that is locked, with a watchdog to start."""
    startup = profiling.StartupTimer(time.time() if began is None else began)
    startup.mark("imports")
    # --- checks, before anything is compiled
    num_devices = len(devices or jax.devices())
    prepare(config, workdir, num_devices)
    main_host = jax.process_index() == 0
    root = data_location.corpus_root(config, str(workdir))
    startup.mark("corpus")
    mesh = sharding.make_mesh(config_lib.mesh_shape(config, num_devices), devices)
    task = tasks.create(config, str(workdir))
    meta = make_meta(config, task.asset_fingerprints)
    loader = DataLoader(config, task, root, mesh)
    num_steps = config.num_train_steps or math.ceil(
        config.num_epochs * loader.num_samples / config.batch_size
    )
    evaluators = task.evaluators(mesh)
    if main_host:
        task.save_assets(str(workdir))

    # --- state: restored from a checkpoint, or initialized from the seed and pretrained weights
    train_step = TrainStep(task, config, num_steps, mesh)
    checkpoints = Checkpoints(
        workdir, keep=config.checkpoint.keep, best_metric=config.checkpoint.best_metric
    )
    restored = checkpoints.restore_newest(train_step.abstract_state, train_step.shardings)
    if restored is None:
        with process.announced("compiling the initialization"):
            start, state = 0, initial_state(task, train_step)
    else:
        start, state = restored.step, restored.state
        trained_with = restored.meta["identity"]
        if trained_with != dict(task.asset_fingerprints):
            raise UserError(
                f"{workdir} was trained with {trained_with}, but this run has "
                f"{task.asset_fingerprints}"
            )
        loader.check_position(restored.position, start)
    abstract_params = train_step.abstract_state["params"]
    num_params = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params))
    process.log(
        f"{config.task}: {num_params:,} parameters, {loader.num_samples:,} samples, "
        f"{num_steps} steps of {config.batch_size}, mesh {dict(mesh.shape)}, from step {start}"
    )
    if main_host and start == 0:
        for note in task.data_notes(loader.first_records()):
            process.log(note)
    jax.block_until_ready(state)
    startup.mark("state")

    # --- the step, compiled once, while the first batches are read
    watchdog.start()
    stream = device_prefetch.prefetch(loader.read(start, num_steps))
    with process.announced("compiling the train step"):
        compiled = train_step.lower().compile()
    key, step_flops = train_step.key(), train_step.model_flops()
    device_kind = jax.devices()[0].device_kind
    process.wait_for_all("the step is compiled")
    startup.mark("compilation")

    # --- the loop
    writer = metrics.MetricWriter(workdir, resume_step=start or None) if main_host else None
    speed = metrics.Throughput(config.batch_size)
    unchecked: tuple[int, list[str], dict[str, jax.Array]] | None = None
    evaluations: dict[str, Evaluation] = {}
    failures: Failures | None = None  # of the newest evaluation
    trace = profiling.StepTrace(workdir / "profile", start, config.profile and main_host)
    bar = tqdm(total=num_steps, initial=start, unit="step", disable=None, dynamic_ncols=True)

    def check(step: int, ids: list[str], values: Mapping[str, jax.Array]) -> dict[str, float]:
        """Fetches the metrics of a step; stops the run if its loss or gradient is not finite."""
        fetched = {name: float(x) for name, x in jax.device_get(dict(values)).items()}
        if not (math.isfinite(fetched["loss"]) and math.isfinite(fetched["grad_norm"])):
            checkpoints.wait()
            raise UserError(
                f"step {step}: loss {fetched['loss']}, gradient norm {fetched['grad_norm']}; "
                f"this step was not saved; last good checkpoint: {checkpoints.latest_step()}; "
                f"samples of the batch on this host: {', '.join(ids)}"
            )
        return fetched

    step = start
    stop_signal = process.StopSignal()
    # no implicit transfers between host and device: batches are placed in the prefetch thread,
    # metrics fetched in `check`
    with jax.transfer_guard("disallow"), contextlib.ExitStack() as ending:
        ends = (
            checkpoints.wait,
            bar.close,
            stream.close,
            trace.close,
            stop_signal.restore,
            functools.partial(watchdog.begin, "the end of the run"),
        )
        for end in ends:
            ending.callback(end)  # called in reverse order
        while step < num_steps and not stop_signal.received(step):
            trace.before(step)
            with speed.waiting_for_data():
                ids, batch = next(stream)
            if step == start:
                startup.mark("first batch")
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, values = compiled(state, batch, key)
            if step == start:
                jax.block_until_ready(values)
                startup.mark("first step")
                process.log(startup.line())
            trace.after(step, values)
            step += 1
            speed.step_done()
            # a step is checked while the next one runs, and before it is saved, logged or evaluated
            if unchecked:
                check(*unchecked)
            watchdog.step_done(step)
            unchecked = (step, ids, values)
            last = step == num_steps
            run_evals = last or is_multiple(step, config.eval_every_steps)
            log = run_evals or is_multiple(step, config.log_every_steps)
            save = last or is_multiple(step, config.checkpoint.every_steps)
            bar.update()
            if not (log or save):
                continue
            row, unchecked = check(*unchecked), None
            if log:
                row |= speed.window()
                used = metrics.mfu(step_flops, row["step_seconds"], device_kind, num_devices)
                row |= {} if used is None else {"mfu": used}
                bar.set_postfix(loss=row["loss"], images_s=row["images_per_sec"], refresh=False)
                process.log(metrics.format_line(step, row))
            with (
                watchdog.busy("evaluation or save"),
                speed.paused(),
                jax.transfer_guard("allow"),
            ):
                scores: dict[str, float] = {}
                if run_evals:
                    failures = Failures()
                    evaluations = evaluate(evaluators, state["params"], failures)
                    scores = named_metrics(evaluations)
                if log and writer:
                    writer.write(step, {**row, **metrics.memory(), **scores})
                if save or (scores and config.checkpoint.best_metric):
                    checkpoints.save(step, state, loader.position(step), meta, scores)

    if unchecked:
        check(*unchecked)
    if step < num_steps:
        checkpoints.save(step, state, loader.position(step), meta)
        checkpoints.close()
        process.log(
            f"stopped by {stop_signal.name}: step {step} is saved; the same command resumes the run"
        )
        return False
    checkpoints.close()

    # --- results and report
    if failures is None:
        failures = Failures()
        evaluations = evaluate(evaluators, state["params"], failures)
    if main_host:
        history = metrics.read_metrics(workdir / "metrics.jsonl")
        facts = {
            "trained": f"{num_params:,} parameters for {num_steps:,} steps of "
            f"{config.batch_size:,}, {_duration(history)}",
            "on": loader.description(),
            "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        }
        write_results(
            workdir,
            f"{config.task}: {workdir.name}",
            config,
            evaluations,
            failures,
            history,
            task.charts,
            facts,
        )
    process.wait_for_all("results are written")
    failures.raise_any(workdir / "results.json")
    return True


def _duration(history: Sequence[Mapping[str, Any]]) -> str:
    """The time in steps, over all interruptions, from the rows of metrics.jsonl."""
    seconds, before = 0.0, 0
    for row in history:
        seconds += (row["step"] - before) * row["step_seconds"]
        before = row["step"]
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min in steps"
    return f"{minutes} min in steps" if minutes else f"{seconds:.0f} s in steps"


def train_stages(
    config: ConfigDict,
    workdir: AnyPath,
    devices: Sequence[jax.Device] | None = None,
    began: float | None = None,
) -> bool:
    """Trains the stages of a run, one after the other, then the run itself; see ``stages.py``.

    Arguments and result are those of ``train``. Finished stages are skipped; a stopped one resumes.
    """
    with process.exclusive(workdir):
        return _train_stages(config, workdir, devices, began)


def _train_stages(
    config: ConfigDict, workdir: AnyPath, devices: Sequence[jax.Device] | None, began: float | None
) -> bool:
    """``train_stages``, in a work directory that is locked."""
    failed: list[str] = []
    if config.stages:
        num_devices = len(devices or jax.devices())
        prepare(config, workdir, num_devices)
        root = data_location.corpus_root(config, str(workdir))
        runs = {name: stages.derived(config, name, root) for name in config.stages}
        for stage in runs.values():
            config_lib.validate(stage, num_devices, jax.process_count())
        for name, stage in runs.items():
            directory = stages.directory(workdir, name)
            if stages.is_finished(stage, directory):
                continue
            process.log(f"\nstage {name}: {directory}")
            try:
                if not _train(stage, directory, devices, began):
                    return False
            except EvaluationFailed as error:  # its weights are there, which the next one needs
                process.log(f"stage {name}: {error}")
                failed.append(f"stage {name}: {error}")
            began = None
    finished = _train(config, workdir, devices, began)
    if finished and failed:
        raise EvaluationFailed("; ".join(failed))
    return finished


def _main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; keys are set by --config.KEY=VALUE")
    process.initialize()
    began = psutil.Process().create_time()
    workdir = to_path(process.required(_WORKDIR)).absolute()
    finished = train_stages(_CONFIG.value, workdir, began=began)
    return 0 if finished else _STOPPED_STATUS.value


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits; ``argv``: the arguments, None for those of the process."""
    flags.mark_flags_as_required(["config", "workdir"])
    process.run(_main, argv)


if __name__ == "__main__":
    main()
