"""The trace of a run's steps, the split of its start, and no transfer that nobody asked for."""

import gzip
import json
import re
import time

import jax
import pytest

from input_pipeline import device_prefetch
from unimed_jax import train
from unimed_jax.monitoring import profiling


@pytest.mark.slow
def test_a_trace_holds_the_steps_and_their_operations(tiny_config, tmp_path, capsys):
    config = tiny_config(evals={}, num_train_steps=10, profile=True)
    train.train(config, tmp_path, began=time.time() - 5)
    (path,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert list(path.parent.glob("*.xplane.pb"))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [event for event in events if event.get("name") == "train"]
    assert [event["args"]["step_num"] for event in steps] == ["3", "4", "5", "6"]
    names = {event["name"] for event in events if event.get("ph") == "X"}
    assert any(name.startswith("dot") for name in names)
    assert any("fusion" in name for name in names)
    output = capsys.readouterr().out
    assert f"profile: {tmp_path / 'profile'}" in output
    line = re.search(r"start-up ([\d.]+) s: (.*); [\d.]+ s of it in the compiler", output)
    parts = dict(part.rsplit(" ", 1) for part in line[2].split(", "))
    assert list(parts) == [
        "imports", "corpus", "state", "compilation", "first batch", "first step",
    ]  # fmt: skip
    assert float(parts["imports"]) >= 5
    assert sum(map(float, parts.values())) == pytest.approx(float(line[1]), abs=0.4)


@pytest.mark.slow
def test_the_loop_refuses_a_transfer_that_nobody_asked_for(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        device_prefetch, "to_global", lambda batch, sharding: batch
    )  # stays on the host
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train.train(tiny_config(evals={}, num_train_steps=2), tmp_path)


def test_a_trace_ends_with_a_run_that_ends_early(tmp_path, capsys):
    (tmp_path / "profile" / "plugins").mkdir(parents=True)  # of an earlier run
    trace = profiling.StepTrace(tmp_path / "profile", start=7, active=True)
    for step in range(7, 12):
        trace.before(step)
        trace.after(step, jax.numpy.zeros(()))
    trace.close()
    trace.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert [path.name for path in tmp_path.iterdir()] == ["profile"]
    assert capsys.readouterr().out.count("profile: ") == 1


def test_no_trace_is_made_unless_it_is_asked_for(tmp_path):
    trace = profiling.StepTrace(tmp_path / "profile", start=0, active=False)
    for step in range(9):
        trace.before(step)
        trace.after(step, jax.numpy.zeros(()))
    trace.close()
    assert not list(tmp_path.iterdir())
