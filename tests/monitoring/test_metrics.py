import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.fake_clock import FakeClock

from input_pipeline.io.errors import UserError
from unimed_jax.monitoring import metrics
from unimed_jax.monitoring.phases import PhaseClock, Window


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def events(workdir):
    """All events in the order in which TensorBoard reads them."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            found.append(tf.compat.v1.Event.FromString(record.numpy()))
    return found


def scalars(workdir):
    return [(e.step, v.tag, v.simple_value) for e in events(workdir) for v in e.summary.value]


def test_a_row_is_readable_as_soon_as_it_is_written(tmp_path):
    writer = metrics.MetricWriter(tmp_path / "new" / "run")
    writer.write(10, {"loss": np.float32(1.5), "images_per_sec": 12})
    writer.write(20, {"loss": 0.25, "zero_shot/modality/auc": 0.75})
    assert [json.loads(line) for line in lines(tmp_path / "new" / "run")] == [
        {"step": 10, "loss": 1.5, "images_per_sec": 12.0},
        {"step": 20, "loss": 0.25, "zero_shot/modality/auc": 0.75},
    ]
    assert scalars(tmp_path / "new" / "run") == [
        (10, "loss", 1.5),
        (10, "images_per_sec", 12.0),
        (20, "loss", 0.25),
        (20, "zero_shot/modality/auc", 0.75),
    ]
    writer.close()


def test_non_finite_numbers_are_strict_json_and_come_back(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        writer.write(1, {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.0})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(lines(tmp_path)[0], parse_constant=refuse) == {
        "step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1.0,
    }  # fmt: skip
    (row,) = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert np.isnan(row["a"]) and row["b"] == np.inf and row["c"] == -np.inf and row["d"] == 1.0


def test_resume_drops_the_later_rows_and_a_torn_last_line(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        for step in (10, 20, 30, 40):
            writer.write(step, {"loss": step / 10})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    before = lines(tmp_path)
    with metrics.MetricWriter(tmp_path, resume_step=20) as writer:
        assert lines(tmp_path) == before[:2]
        writer.write(30, {"loss": 3.5})
    assert [row["loss"] for row in metrics.read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3.5]
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert starts == [0, 21]  # TensorBoard hides what it read before at step 21 and later
    assert scalars(tmp_path)[-1] == (30, "loss", 3.5)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith("tmp")] == []


def test_a_complete_last_row_that_lost_only_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}')
    with metrics.MetricWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, {"loss": 0.5})
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_fresh_start_keeps_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 2.0}\n')
    metrics.MetricWriter(tmp_path).close()
    assert lines(tmp_path) == []


@pytest.mark.parametrize("bad", ["\x00\x00", "[1]", '{"loss": 1.0}', ""])
def test_a_broken_line_in_the_middle_is_named(tmp_path, bad):
    content = f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n'
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a metric row"):
        metrics.MetricWriter(tmp_path, resume_step=5)
    assert (tmp_path / "metrics.jsonl").read_text() == content


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/run/metrics\.jsonl"):
        metrics.MetricWriter(tmp_path / "file" / "run")
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*tensorboard"):
        metrics.MetricWriter(tmp_path)


KILLED = """
import os, sys
from unimed_jax.monitoring.metrics import MetricWriter
writer = MetricWriter(sys.argv[1])
for step in range(1, 6):
    writer.write(step, {"loss": 1.0 / step})
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_rows_outlive_kill_9_of_the_process(tmp_path):
    """Nothing is left in a buffer: 5 rows written, 5 rows read, in both formats."""
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert process.returncode == -9
    assert len(metrics.read_metrics(tmp_path / "metrics.jsonl")) == 5
    assert [step for step, _, _ in scalars(tmp_path)] == [1, 2, 3, 4, 5]


def test_importing_the_module_imports_neither_tensorflow_nor_torch():
    code = (
        "import sys, unimed_jax.monitoring.metrics; "
        "print({'tensorflow', 'torch'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert process.stdout.strip() == b"set()"


def test_format_line():
    values = {"loss": 1.23456, "learning_rate": 3e-5, "images_per_sec": 845.21, "n": float("nan")}
    expected = "step 1200 | loss 1.235 | learning_rate 3e-05 | images_per_sec 845.2 | n nan"
    assert metrics.format_line(1200, values) == expected


def test_throughput_by_hand():
    clock = FakeClock()
    phases = PhaseClock("start_up", clock=clock)
    clock.now += 7.0
    phases.begin("steps")
    window = Window(phases)
    window.take()
    for step in range(4):
        with phases.during("data_wait"), phases.stages.making(), phases.stages.reading():
            clock.now += 0.5
        clock.now += 1.5
        phases.step_done(step + 1)
    for phase in ("evaluation", "logging", "checkpoints"):
        with phases.during(phase):
            clock.now += 1000.0
    figures = {"images_per_sec": 16.0, "step_seconds": 2.0, "data_wait_fraction": 0.25}
    figures |= {"data_wait_reading": 0.25, "data_wait_decoding": 0.0, "data_wait_placing": 0.0}
    assert metrics.throughput(32, *window.take()) == pytest.approx(figures)
    assert metrics.throughput(32, *window.take()) == {}  # the next window starts empty
    clock.now += 1.0
    phases.step_done(5)
    figures = {"images_per_sec": 32.0, "step_seconds": 1.0, "data_wait_fraction": 0.0}
    figures |= {"data_wait_reading": 0.0, "data_wait_decoding": 0.0, "data_wait_placing": 0.0}
    assert metrics.throughput(32, *window.take()) == pytest.approx(figures)


@pytest.mark.skipif(sys.platform != "linux", reason="compares with Linux's own account in /proc")
def test_host_memory_peak_is_the_kernels_figure_in_gib():
    status = Path("/proc/self/status").read_text().split()
    kibibytes = int(status[status.index("VmHWM:") + 1])
    assert metrics.memory()["host_memory_peak_gib"] == pytest.approx(kibibytes / 2**20, rel=0.02)


def test_mfu():
    # 4 chips that do the work of 2 at their peak
    assert metrics.mfu(4 * 275e12, 2.0, "TPU v4", num_devices=4) == pytest.approx(0.5)
    # one TPU7x chip is two devices: 2307 TFLOP/s need both
    assert metrics.mfu(2307e12, 1.0, "TPU7x", num_devices=2) == pytest.approx(1.0)
    assert metrics.mfu(1e12, 1.0, "cpu", 8) is None
    assert metrics.mfu(1e12, 1.0, "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 1) is None
