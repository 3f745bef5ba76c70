"""The launch scripts: what they would do, how they restart, and Slurm's step run for real."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from helpers.runs import ROOT, losses_of, write_recipe, xla_flags

LAUNCH = ROOT / "tools" / "launch"
RUN = ("--config=a recipe.py", "--workdir=gs://bucket/run", "--config.seed=1")
REQUIRED = {
    "slurm.sh": ("--nodes=2", "--gpus_per_node=4"),
    "gke_xpk.sh": (
        "--name=n", "--cluster=c", "--project=p", "--zone=z", "--tpu_type=v5litepod-16", "--image=i"
    ),
    "tpu_vm.sh": (
        "--name=n", "--project=p", "--zone=z", "--accelerator=v5litepod-16", "--runtime=r"
    ),
}  # fmt: skip


def launch(script, *options, run=RUN, **environment):
    return subprocess.run(
        [LAUNCH / script, *options, *(["--", *run] if run else [])],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def stand_in(directory: Path, name: str, script: str) -> None:
    """Puts a program in front of the one that this machine does not have, or must not ask."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/bash\n{script}\n")
    (directory / name).chmod(0o755)


def in_front(directory: Path) -> dict[str, str]:
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


@pytest.mark.parametrize("script", REQUIRED)
def test_a_script_explains_itself_and_refuses_what_it_does_not_know(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, LAUNCH / script], check=True)
    text = launch(script, "--help", run=()).stdout
    for option in REQUIRED[script]:
        assert option.partition("=")[0] in text
    refused = launch(script, *REQUIRED[script], "--spott")
    assert (refused.returncode, refused.stderr) == (
        2, "error: unknown option --spott; see --help\n"
    )  # fmt: skip
    assert launch(script, *REQUIRED[script][1:], "--dry-run").returncode == 2
    assert launch(script, *REQUIRED[script], "--dry-run", run=()).returncode == 2


def test_slurm_prints_the_batch_script_that_it_would_submit(tmp_path):
    options = (*REQUIRED["slurm.sh"], "--partition=gpu", "--python=/opt/my python")
    script = launch("slurm.sh", *options, "--dry-run").stdout
    assert script.startswith("#!/bin/bash\n")
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu"):
        assert f"#SBATCH {line}\n" in script
    assert "--account" not in script
    (tmp_path / "script.sh").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "script.sh"], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, tmp_path / "script.sh"], check=True)

    # what srun is given, as it sees it
    seen = tmp_path / "seen"
    stand_in(tmp_path / "bin", "srun", f'printf "%s\\n" "$@" > {seen}')
    environment = {**os.environ, **in_front(tmp_path / "bin")}
    subprocess.run(["bash", tmp_path / "script.sh"], check=True, env=environment)
    command = ["/opt/my python", "-m", "unimed_jax.train", "--stopped_status=75", *RUN]
    assert seen.read_text().splitlines()[2:] == command


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (75, 0, True), (137, 99, True), (75, 100, False)],
)
def test_slurm_requeues_what_a_restart_helps(tmp_path, status, restarts, requeued):
    stand_in(tmp_path, "srun", f"exit {status}")
    stand_in(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/requeued')
    script = launch("slurm.sh", *REQUIRED["slurm.sh"], "--dry-run").stdout
    environment = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)} | in_front(tmp_path)
    done = subprocess.run(["bash", "-c", script], env={**os.environ, **environment})
    assert done.returncode == (0 if requeued else status)
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.slow
def test_the_step_of_the_slurm_script_trains_in_two_processes(phantom_corpus, tmp_path):
    """``srun`` is a stand-in that sets the variables which Slurm sets; all else is real."""
    stand_in(
        tmp_path / "bin",
        "srun",
        "while [[ $1 == --* ]]; do shift; done; worst=0\n"
        "for i in 0 1; do\n"
        "  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NODELIST=localhost "
        f'"$@" > {tmp_path}/$i.log 2>&1 & pids[i]=$!\n'
        "done\n"
        'for pid in "${pids[@]}"; do\n'
        "  status=0; wait $pid || status=$?; ((status > worst)) && worst=$status\n"
        "done; exit $worst",
    )
    # JAX derives the port of process 0 from the number of the job: one of the last 4,096
    for port in range(65535, 65535 - 4096, -1):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            break
    recipe = write_recipe(
        tmp_path / "recipe.py",
        phantom_corpus,
        num_train_steps=2,
        checkpoint__every_steps=2,
        evals={},
    )
    run = (f"--config={recipe}", f"--workdir={tmp_path / 'run'}")
    options = ("--nodes=1", "--gpus_per_node=2", "--dry-run")
    script = launch("slurm.sh", *options, run=run).stdout
    environment = in_front(tmp_path / "bin") | {
        "SLURM_JOB_ID": str(port - (65535 - 4096 + 1)),
        "SLURM_NTASKS": "2",
        "XLA_FLAGS": xla_flags(1),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(["bash", "-c", script], env={**os.environ, **environment}, timeout=600)
    logs = [(tmp_path / f"{index}.log").read_text() for index in range(2)]
    assert done.returncode == 0, logs
    assert "mesh {'data': 2, 'fsdp': 1, 'tensor': 1}" in logs[0]
    assert list(losses_of(tmp_path / "run")) == [1, 2]


def test_gke_makes_one_workload_whose_command_survives_two_shells():
    words = shlex.split(launch("gke_xpk.sh", *REQUIRED["gke_xpk.sh"], "--dry-run").stdout)
    assert words[:3] == ["xpk", "workload", "create"]
    assert {"--tpu-type=v5litepod-16", "--max-restarts=100"} < set(words)
    assert "--restart-on-user-code-failure" in words  # else xpk takes any end for a success
    assert shlex.split(words[-1].removeprefix("--command=")) == [
        "exec", "python", "-m", "unimed_jax.train", "--stopped_status=75", *RUN
    ]  # fmt: skip


def test_tpu_vm_prints_what_it_would_do_in_order():
    output = launch("tpu_vm.sh", *REQUIRED["tpu_vm.sh"], "--spot", "--dry-run").stdout
    steps = [shlex.split(line) for line in output.splitlines() if not line.startswith("#")]
    assert [step[3:5] for step in steps if step[0] == "gcloud"] == [
        ["queued-resources", "create"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]
    assert "--spot" in steps[0]
    remote = shlex.split(steps[4][-1].removeprefix("--command="))
    command = [".venv/bin/python", "-m", "unimed_jax.train", "--stopped_status=75", *RUN]
    assert remote[-len(command) :] == command


def test_tpu_vm_restarts_and_asks_again_for_a_slice_that_was_preempted(tmp_path):
    """``gcloud`` is a stand-in: a slice that is preempted once, while its run is going on."""
    stand_in(tmp_path / "bin", "sleep", "")
    stand_in(
        tmp_path / "bin",
        "gcloud",
        f'cd {tmp_path}; echo "$3 $4 ${{!#}}" | head -1 | cut -c1-60 >> calls\n'
        'case "$3 $4" in\n'
        '  "queued-resources describe") [[ -f state ]] && cat state ;;\n'
        '  "queued-resources create") echo ACTIVE > state ;;\n'
        '  "queued-resources delete") rm state ;;\n'
        '  "tpu-vm ssh")\n'
        '    if [[ "${!#}" == *unimed_jax.train* ]]; then\n'
        "      echo run >> runs\n"
        "      case $(wc -l < runs) in\n"
        "        1) exit 75 ;;\n"  # a process died, the slice is still there
        "        2) echo SUSPENDED > state; exit 255 ;;\n"
        "      esac\n"
        "    fi ;;\n"
        "esac",
    )
    done = launch("tpu_vm.sh", *REQUIRED["tpu_vm.sh"], **in_front(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    calls = [line.split()[:2] for line in (tmp_path / "calls").read_text().splitlines()]
    calls = [call[1] for call in calls if call[1] != "describe"]
    assert calls == ["create", "scp", "ssh", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh"]
    assert "status 75" in done.stderr
    assert "status 255" in done.stderr
    assert "queued-resources delete n" in done.stdout  # as advice, in the end


def test_tpu_vm_does_not_restart_a_run_that_refuses_its_settings(tmp_path):
    stand_in(
        tmp_path / "bin",
        "gcloud",
        '[[ $4 == describe ]] && echo ACTIVE; [[ "${!#}" != *unimed_jax.train* ]] || exit 2',
    )
    done = launch("tpu_vm.sh", *REQUIRED["tpu_vm.sh"], **in_front(tmp_path / "bin"))
    assert done.returncode == 2
