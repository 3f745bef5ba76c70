"""A train step of every task is compiled in a process that cannot import TensorFlow."""

import subprocess
import sys

import pytest
from helpers.corpora import REPO

SCRIPT = """
import sys
sys.modules["tensorflow"] = None
from unimed_jax import config as config_lib, tasks
from unimed_jax.distributed import sharding
from unimed_jax.training import train_step
recipe, workdir, changes = sys.argv[1], sys.argv[2], sys.argv[3:]
config = config_lib.load(recipe)
for change in changes:
    config_lib.assign(config, *config_lib.parse_assignment(change))
mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, None)
task = tasks.create(config, workdir)
train_step.TrainStep(task, config, 10, mesh).lower().compile()
assert "input_pipeline.transforms" not in sys.modules
"""
SMALL_TOWERS = [
    f"model.{tower}.{key}={value}"
    for tower in ("visual", "text")
    for key, value in (("width", 16), ("layers", 1), ("heads", 2), ("mlp_width", 16))
]
CASES = {
    "quickstart.py": [*SMALL_TOWERS, "model.embed_dim=8", "batch_size=4"],
    "lg_sdg/phantoms.py:smoke": ["model.image_size=32", "batch_size=2"],
    "lwi_vms/phantoms.py:smoke,network=unetr": ["data.crop_size=(16,16,16)", "batch_size=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CASES)
def test_a_train_step_needs_no_tensorflow(recipe, tmp_path):
    command = [sys.executable, "-c", SCRIPT, f"configs/{recipe}", str(tmp_path), *CASES[recipe]]
    subprocess.run(command, check=True, cwd=REPO, timeout=600)
