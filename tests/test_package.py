"""The installed package: what it imports, what is in the wheel."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from unimed_jax.cli import COMMANDS

ROOT = Path(__file__).parents[1]


def test_import_is_light():
    code = (
        "import sys, time; start = time.perf_counter(); import unimed_jax;"
        "print(time.perf_counter() - start);"
        "print(any(m in sys.modules for m in ('tensorflow', 'torch')))"
    )
    command = [sys.executable, "-c", code]
    seconds, heavy = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(seconds) < 2
    assert heavy == "False"


@pytest.mark.slow
def test_open_clip_can_be_imported_after_tensorflow():
    if importlib.util.find_spec("triton") is None:  # importing it may be refused in this process
        pytest.skip("without triton nothing crashes")
    code = "import unimed_jax, tensorflow, open_clip, torch; print(torch.ones(2) @ torch.ones(2))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # -11: a segmentation fault
    assert done.stdout == "tensor(2.)\n"
    assert "triton is left out" in done.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), "."]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    (wheel,) = tmp_path.glob("unimed_jax-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {
        "unimed_jax",
        "input_pipeline",
    }
    paths = ("reporting/report.css", "evals/prompts/phantoms.json", "cli.py", "train.py")
    for path in (*paths, *(f"{module}.py" for module, _ in COMMANDS.values())):
        assert f"unimed_jax/{path}" in names
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "unimed-jax = unimed_jax.cli:main" in zipfile.ZipFile(wheel).read(entry_points).decode()
    for path in ("unimed21", "sets/PCAM"):
        assert f"unimed_jax/evals/benchmark/suites/{path}.toml" in names
    for name in ("vocabulary", "grammar", "prompts"):
        assert f"input_pipeline/captioning/data/{name}.json" in names
    assert not any("test_" in name for name in names)


def test_every_file_compiles():
    for folder in ("unimed_jax", "input_pipeline", "configs", "tools", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            compile(path.read_text(), str(path), "exec")
