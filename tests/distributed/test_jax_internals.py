"""The private names of JAX that this package uses; there is no public API for any of them.

If a test here fails after an upgrade, JAX has moved or renamed a name. Find its new place (search
JAX's source for it), change the import in the module that the test names, and change this test. If
the name has become public, import the public one and delete its line here.
"""

import importlib
import inspect

import pytest

# (module, attribute, used by)
INTERNALS = [
    ("jax._src.cloud_tpu_init", "running_in_cloud_tpu_vm", "distributed/failure_detector.py"),
    ("jax._src.distributed", "global_state", "distributed/failure_detector.py"),
]
STATE = ("process_id", "num_processes", "coordinator_address", "client")
CLIENT = ("key_value_set", "blocking_key_value_get", "wait_at_barrier")


@pytest.mark.parametrize(("module", "attribute", "user"), INTERNALS)
def test_the_name_exists(module: str, attribute: str, user: str) -> None:
    assert hasattr(importlib.import_module(module), attribute), f"used by unimed_jax/{user}"


def test_the_state_of_a_job_has_the_attributes_in_use() -> None:
    from jax._src import distributed

    absent = [name for name in STATE if not hasattr(distributed.global_state, name)]
    assert not absent, "used by unimed_jax/distributed/failure_detector.py"


def test_the_client_of_a_job_has_the_methods_in_use() -> None:
    from jax._src.lib import _jax

    absent = [name for name in CLIENT if not hasattr(_jax.DistributedRuntimeClient, name)]
    assert not absent, "used by unimed_jax/distributed/failure_detector.py and process.py"


def test_no_other_private_module_of_jax_is_imported() -> None:
    import unimed_jax

    root = inspect.getfile(unimed_jax).removesuffix("__init__.py")
    users = set()
    for path in importlib.resources.files("unimed_jax").rglob("*.py"):
        if "jax._src" in path.read_text():
            users.add(str(path).removeprefix(root))
    assert users == {"distributed/failure_detector.py"}
