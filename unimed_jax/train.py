"""Trains any task from one config.

    unimed-jax train --config=configs/quickstart.py --workdir=runs/quickstart
    unimed-jax train --config=FILE[:variant] --workdir=DIR [--config.KEY=VALUE ...]

Every key of the config can be set on the command line (--config.optimizer.learning_rate=3e-4). The
same command, given again, resumes from the newest checkpoint in the work directory, with the same
losses as an uninterrupted run. The work directory receives config.json, metrics.jsonl,
tensorboard/, checkpoints/, timeline.jsonl, results.json, goodput.json, report.html.
"""

import contextlib
import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import psutil
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from input_pipeline import device_prefetch
from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath, sorted_glob, to_path, write_text_atomically
from unimed_jax import config as config_lib
from unimed_jax import tasks
from unimed_jax.distributed import process, sharding
from unimed_jax.distributed.watchdog import Watchdog
from unimed_jax.evals.failures import EvaluationFailed, Failures
from unimed_jax.evals.results import evaluate, named_metrics, write_results
from unimed_jax.monitoring import metrics, profiling
from unimed_jax.monitoring.goodput import Timeline, duration
from unimed_jax.monitoring.phases import WAITS, PhaseClock, Window
from unimed_jax.training import data_location, ema, stages
from unimed_jax.training.data_loader import DataLoader
from unimed_jax.training.task import Evaluation
from unimed_jax.training.train_step import State, TrainStep, initial_state
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
    began = time.time() if began is None else began
    clock = PhaseClock("start_up", elapsed=time.time() - began)
    startup = profiling.StartupTimer(began)
    startup.mark("imports")
    config = data_location.without_missing(config, str(workdir))
    prepare(config, workdir, len(devices or jax.devices()))
    startup.mark("corpus")
    with contextlib.ExitStack() as closing:
        watchdog = process.make_watchdog(workdir, config.watchdog)
        closing.callback(watchdog.close)
        timeline = Timeline(workdir, clock, began) if jax.process_index() == 0 else None
        if timeline:
            closing.callback(timeline.close)
        compiling = functools.partial(clock.attribute, "compilation")
        closing.callback(profiling.listen_to_compiler(compiling))
        run = _Run(config, workdir, devices, clock, timeline, watchdog)
        finished = run.train(startup)
        if finished:
            run.report()
        return finished


class _Due(NamedTuple):
    """What is due after a step."""

    log: bool
    evaluation: bool
    save: bool


class _Run:
    """A run in a locked work directory with a corpus: ``train`` it, then ``report``."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: AnyPath,
        devices: Sequence[jax.Device] | None,
        clock: PhaseClock,
        timeline: Timeline | None,
        watchdog: Watchdog,
    ) -> None:
        """Makes what the run consists of; only ``train`` compiles and restores.

        Args:
          config, workdir, devices: see ``train``.
          clock: the time of this process.
          timeline: its record; None except on the main process.
          watchdog: is started when the step is compiled.
        """
        self.config, self.workdir = config, workdir
        self.clock, self.timeline, self.watchdog = clock, timeline, watchdog
        self.main_host = jax.process_index() == 0
        self.num_devices = len(devices or jax.devices())
        self.mesh = sharding.make_mesh(config_lib.mesh_shape(config, self.num_devices), devices)
        self.task = tasks.create(config, str(workdir))
        self.meta = make_meta(config, self.task.asset_fingerprints)
        root = data_location.corpus_root(config, str(workdir))
        self.loader = DataLoader(config, self.task, root, self.mesh)
        self.num_steps: int = config.num_train_steps or math.ceil(
            config.num_epochs * self.loader.num_samples / config.batch_size
        )
        self.evaluators = self.task.evaluators(self.mesh)
        if self.main_host:
            self.task.save_assets(str(workdir))
        self.train_step = TrainStep(self.task, config, self.num_steps, self.mesh)
        abstract_params = self.train_step.abstract_state["params"]
        self.num_params = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params))
        self.checkpoints = Checkpoints(
            workdir, keep=config.checkpoint.keep, best_metric=config.checkpoint.best_metric
        )
        decay = config.optimizer.ema_decay
        self.scored = f"the EMA of the weights, decay {decay:g}" if decay else ""
        self.state: State = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.failures: Failures | None = None  # of the newest evaluation

    def train(self, startup: profiling.StartupTimer) -> bool:
        """Trains to the last step or until a signal; returns whether the last step is done."""
        start = self._first_state()
        startup.mark("state")

        # --- the step, compiled once, while the first batches are read
        self.clock.begin("compilation")
        self.watchdog.start()
        stream = device_prefetch.prefetch(
            self.loader.read(start, self.num_steps, self.clock.stages), stages=self.clock.stages
        )
        with process.announced("compiling the train step"):
            compiled = self.train_step.lower().compile()
        key, step_flops = self.train_step.key(), self.train_step.model_flops()
        device_kind = jax.devices()[0].device_kind
        process.wait_for_all("the step is compiled")
        startup.mark("compilation")

        # --- the loop
        writer = None
        if self.main_host:
            writer = metrics.MetricWriter(self.workdir, resume_step=start or None)
        self.clock.begin("steps")
        self._record()
        window = Window(self.clock)
        unchecked: tuple[int, list[str], dict[str, jax.Array]] | None = None
        traced = self.config.profile and self.main_host
        trace = profiling.StepTrace(self.workdir / "profile", start, traced)
        bar = tqdm(
            total=self.num_steps, initial=start, unit="step", disable=None, dynamic_ncols=True
        )
        step = start
        stop_signal = process.StopSignal()
        # no implicit transfers between host and device: batches are placed in the prefetch thread,
        # metrics fetched in `_check`
        with jax.transfer_guard("disallow"), contextlib.ExitStack() as ending:
            ends = (
                self.checkpoints.wait,
                bar.close,
                stream.close,
                trace.close,
                stop_signal.restore,
                functools.partial(self.clock.begin, "checkpoints"),
                functools.partial(self.watchdog.begin, "the end of the run"),
            )
            for end in ends:
                ending.callback(end)  # called in reverse order
            while step < self.num_steps and not stop_signal.received(step):
                trace.before(step)
                with self.clock.during("start_up" if step == start else "data_wait"):
                    ids, batch = next(stream)
                if step == start:
                    startup.mark("first batch")
                    window.take()  # which it is not part of
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    self.state, values = compiled(self.state, batch, key)
                if step == start:
                    jax.block_until_ready(values)
                    startup.mark("first step")
                    process.log(startup.line())
                trace.after(step, values)
                step += 1
                self.clock.step_done(step)
                # checked while the next step runs, and before it is saved, logged or evaluated
                if unchecked:
                    self._check(*unchecked)
                self.watchdog.step_done(step)
                unchecked = (step, ids, values)
                bar.update()
                due = self._due(step)
                if not any(due):
                    continue
                row, unchecked = self._check(*unchecked), None
                if due.log:
                    row |= metrics.throughput(self.config.batch_size, *window.take())
                    useful = step_flops * (1 - row.get("text_padding_saved", 0.0))
                    used = metrics.mfu(useful, row["step_seconds"], device_kind, self.num_devices)
                    row |= {} if used is None else {"mfu": used}
                    bar.set_postfix(loss=row["loss"], images_s=row["images_per_sec"], refresh=False)
                    shown = {key: value for key, value in row.items() if key not in WAITS}
                    process.log(metrics.format_line(step, shown))
                with self.watchdog.busy("evaluation or save"), jax.transfer_guard("allow"):
                    self._evaluate_and_save(step, row, due, writer)

        if unchecked:
            self._check(*unchecked)
        if step < self.num_steps:
            self.checkpoints.save(step, self.state, self.loader.position(step), self.meta)
        self.checkpoints.close()
        if step < self.num_steps:
            if self.timeline:
                process.log(self.timeline.goodput().line())
            process.log(
                f"stopped by {stop_signal.name}: step {step} is saved; the same command resumes "
                "the run"
            )
        return step == self.num_steps

    def _first_state(self) -> int:
        """Restores the newest checkpoint, or initializes the state; returns its finished steps."""
        restored = self.checkpoints.restore_newest(
            self.train_step.abstract_state, self.train_step.shardings
        )
        if restored is None:
            with process.announced("compiling the initialization"):
                start, self.state = 0, initial_state(self.task, self.train_step)
        else:
            start, self.state = restored.step, restored.state
            trained_with = restored.meta["identity"]
            if trained_with != dict(self.task.asset_fingerprints):
                raise UserError(
                    f"{self.workdir} was trained with {trained_with}, but this run has "
                    f"{self.task.asset_fingerprints}"
                )
            self.loader.check_position(restored.position, start)
        self.clock.start_at(start)
        process.log(
            f"{self.config.task}: {self.num_params:,} parameters, "
            f"{self.loader.num_samples:,} samples, {self.num_steps} steps of "
            f"{self.config.batch_size}, mesh {dict(self.mesh.shape)}, from step {start}"
        )
        if self.scored:
            process.log(f"scored and exported: {self.scored}")
        if self.config.data.left_out:
            process.log(f"left out of the mixture: {self._left_out()}")
        if self.main_host and start == 0:
            for note in self.task.data_notes(self.loader.first_records()):
                process.log(note)
        jax.block_until_ready(self.state)
        return start

    def _left_out(self) -> str:
        """The sources without a corpus."""
        names = self.config.data.left_out
        return (
            f"{', '.join(names)} (no corpus in {self.config.data.root}); "
            f"{len(self.config.data.sources)} of {len(self.config.data.sources) + len(names)} "
            "sources are trained on"
        )

    def _check(
        self, step: int, ids: Sequence[str], values: Mapping[str, jax.Array]
    ) -> dict[str, float]:
        """Fetches the metrics of a step; stops the run if its loss or gradient is not finite."""
        fetched = {name: float(x) for name, x in jax.device_get(dict(values)).items()}
        if not (math.isfinite(fetched["loss"]) and math.isfinite(fetched["grad_norm"])):
            self.checkpoints.wait()
            raise UserError(
                f"step {step}: loss {fetched['loss']}, gradient norm {fetched['grad_norm']}; "
                f"this step was not saved; last good checkpoint: {self.checkpoints.latest_step()}; "
                f"samples of the batch on this host: {', '.join(ids)}"
            )
        return fetched

    def _due(self, step: int) -> _Due:
        last = step == self.num_steps
        evaluation = last or is_multiple(step, self.config.eval_every_steps)
        return _Due(
            log=evaluation or is_multiple(step, self.config.log_every_steps),
            evaluation=evaluation,
            save=last or is_multiple(step, self.config.checkpoint.every_steps),
        )

    def _evaluate_and_save(
        self, step: int, row: dict[str, float], due: _Due, writer: metrics.MetricWriter | None
    ) -> None:
        """Evaluates, writes the row of the step, and saves the state, as far as they are due."""
        scores: dict[str, float] = {}
        if due.evaluation:
            scores = self._evaluate()
        if due.log and writer:
            with self.clock.during("logging"):
                writer.write(step, {**row, **metrics.memory(), **scores})
        if due.save or (scores and self.config.checkpoint.best_metric):
            with self.clock.during("checkpoints"):
                position = self.loader.position(step)
                self.checkpoints.save(step, self.state, position, self.meta, scores)
        self._record()

    def _evaluate(self) -> dict[str, float]:
        """Runs all evaluators; returns what ``named_metrics`` does."""
        self.failures = Failures()
        with self.clock.during("evaluation"):
            weights = ema.evaluated(self.state)
            self.evaluations = evaluate(self.evaluators, weights, self.failures)
        return named_metrics(self.evaluations)

    def _record(self) -> None:
        """Has the time until now recorded, in case the process is killed."""
        if self.timeline:
            self.timeline.write()

    def report(self) -> None:
        """Writes results.json, goodput.json and report.html; the last step must be done.

        Raises:
          EvaluationFailed: some evaluators failed.
        """
        if self.failures is None:  # the last step was done by an earlier process
            self._evaluate()
        assert self.failures is not None
        self.clock.begin("logging")
        if self.timeline:
            goodput = self.timeline.goodput()
            facts = {
                "trained": f"{self.num_params:,} parameters for {self.num_steps:,} steps of "
                f"{self.config.batch_size:,}, {duration(goodput.seconds['steps'])} in steps",
                "on": self.loader.description(),
                **({"scored": self.scored} if self.scored else {}),
                **({"without": self._left_out()} if self.config.data.left_out else {}),
                "mesh": ", ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items()),
            }
            write_results(
                self.workdir,
                f"{self.config.task}: {self.workdir.name}",
                self.config,
                self.evaluations,
                self.failures,
                metrics.read_metrics(self.workdir / "metrics.jsonl"),
                self.task.charts,
                facts,
                goodput,
            )
            process.log(goodput.line())
        self.failures.raise_any(self.workdir / "results.json")


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
        config = data_location.without_missing(config, str(workdir))
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
