"""Metrics of a run in progress: metric files, throughput, memory, model FLOP utilization."""

import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AppendOnlyFile, PathLike, reason, to_path
from unimed_jax.monitoring.hardware import CHIPS
from unimed_jax.monitoring.phases import WAITS

Row = dict[str, Any]


class MetricWriter:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard files in `workdir/tensorboard`.

    In a job of several processes, only process 0 creates one. Every row is flushed, so that after a
    kill at most the last line of metrics.jsonl is incomplete; in a bucket, both files are replaced
    at every row. The event files are TFRecords of TensorFlow's Event message. TensorFlow writes
    them, because the usual light writers import torch where it is installed, and TensorFlow and
    torch cannot share a process.
    """

    def __init__(self, workdir: PathLike, resume_step: int | None = None) -> None:
        """Opens both files.

        Args:
          workdir: the run's directory; created if missing.
          resume_step: the number of finished steps that the run resumes from. Rows of later steps,
            from before the interruption, are removed from metrics.jsonl and purged from
            TensorBoard; an incomplete last line is dropped. None: a new run; nothing is kept.

        Raises:
          UserError: workdir cannot be written, or metrics.jsonl holds a line in the middle that is
            not a metric row.
        """
        import tensorflow as tf

        workdir = to_path(workdir)
        path = workdir / "metrics.jsonl"
        kept = []
        if resume_step is not None and path.exists():
            kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        content = "".join(_to_json(row) + "\n" for row in kept)
        self._rows_file = AppendOnlyFile(path, content.encode())
        self._tf = tf
        self._rows = self._rows_file.local.open("a", encoding="utf-8")
        # TensorBoard reads the event files of a directory in the order of their names.
        events = workdir / "tensorboard" / f"events.out.tfevents.{time.time():.6f}"
        try:
            self._events_file = AppendOnlyFile(events)
            self._events = tf.io.TFRecordWriter(str(self._events_file.local))
        except (OSError, tf.errors.OpError) as error:
            raise UserError(f"cannot write {events}: {error}") from error
        self._write_event(file_version="brain.Event:2")
        # A START event hides the events at and after its step.
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        first_step = 0 if resume_step is None else resume_step + 1
        self._write_event(step=first_step, session_log=start)
        self._events.flush()
        self._events_file.publish()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row: `step`, then `values` in their order (anything float() accepts)."""
        row = {"step": int(step), **{key: float(value) for key, value in values.items()}}
        self._rows.write(_to_json(row) + "\n")
        self._rows.flush()
        self._rows_file.publish()
        summary = self._tf.compat.v1.Summary()
        for key, value in values.items():
            summary.value.add(tag=key, simple_value=float(value))
        self._write_event(step=int(step), summary=summary)
        self._events.flush()
        self._events_file.publish()

    def close(self) -> None:
        self._rows.close()
        self._events.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_event(self, **fields: Any) -> None:
        event = self._tf.compat.v1.Event(wall_time=time.time(), **fields)
        self._events.write(event.SerializeToString())


def read_metrics(path: PathLike) -> list[Row]:
    """Reads the rows of a metrics.jsonl, in order; non-finite numbers come back as floats.

    An incomplete last line without a newline (the run was killed while writing it) is ignored.

    Raises:
      UserError: the file cannot be read, or another line is not a JSON object with a "step".
    """
    try:
        content = to_path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    *lines, tail = content.split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        row = _from_json(line)
        if row is None:
            raise UserError(
                f'{path}:{number}: not a metric row (a JSON object with an integer "step"); fix or '
                "delete the file"
            )
        rows.append(row)
    last = _from_json(tail)
    return rows if last is None else [*rows, last]


def _to_json(row: Mapping[str, Any]) -> str:
    """Strict JSON, in which NaN and infinities are the strings "NaN", "Infinity", "-Infinity"."""
    # JSON has no such numbers; these are the names that protobuf's JSON mapping gives them.
    return json.dumps({key: finite_or_name(value) for key, value in row.items()}, allow_nan=False)


def finite_or_name(value: Any) -> Any:
    """`value`, or its name where it is a float that JSON cannot hold: "NaN", "Infinity", ..."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_json(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    names = ("NaN", "Infinity", "-Infinity")
    return {key: float(value) if value in names else value for key, value in row.items()}


def format_line(step: int, values: Mapping[str, float]) -> str:
    """One line for stdout: 'step 120 | loss 1.234 | images_per_sec 845.2', 4 significant digits."""
    return " | ".join([f"step {step}", *(f"{key} {value:.4g}" for key, value in values.items())])


def throughput(batch_size: int, seconds: Mapping[str, float], steps: int) -> dict[str, float]:
    """Speed of the training loop over a log window, in which evaluations and saves do not count.

    Steps are dispatched asynchronously, so a window must end after a result of its last step has
    been fetched.

    Args:
      batch_size: rows of the global batch.
      seconds: use -> seconds in the window; see ``phases.Window``.
      steps: steps finished in the window.

    Returns:
      images_per_sec: global batch size * steps / time.
      step_seconds: time per step.
      data_wait_fraction: share of the time in which the loop waited for a batch, in [0, 1].
      data_wait_reading, data_wait_decoding, data_wait_placing: its parts.
      Empty if no step was done.
    """
    waits = {use: seconds[use] for use in WAITS}
    total = seconds["steps"] + sum(waits.values())
    if not steps or total <= 0:
        return {}
    return {
        "images_per_sec": batch_size * steps / total,
        "step_seconds": total / steps,
        "data_wait_fraction": sum(waits.values()) / total,
        **{use: wait / total for use, wait in waits.items()},
    }


def memory() -> dict[str, float]:
    """Peak memory in GiB since the process began.

    Returns:
      host_memory_peak_gib: resident set of this process.
      device_memory_peak_gib: the maximum over this process's devices; absent where the backend
        does not report it (CPU).
    """
    # ru_maxrss is in bytes on macOS, in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    figures = {"host_memory_peak_gib": peak / 2**30}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    device_peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if device_peaks:
        figures["device_memory_peak_gib"] = max(device_peaks) / 2**30
    return figures


def mfu(
    flops_per_step: float, step_seconds: float, device_kind: str, num_devices: int
) -> float | None:
    """Model FLOP utilization (Chowdhery et al. 2022, appendix B).

    Args:
      flops_per_step: FLOPs that the model's mathematics needs for one step of the global batch,
        forward and backward, without recomputation by rematerialization.
      step_seconds: time of one step.
      device_kind: `jax.devices()[0].device_kind`.
      num_devices: devices of the whole job, `jax.device_count()`.

    Returns:
      Achieved share of the peak bfloat16 FLOP/s, or None if the peak of the device is unknown.
    """
    chip = CHIPS.get(device_kind)
    return flops_per_step / (step_seconds * num_devices * chip.bf16_flops) if chip else None
