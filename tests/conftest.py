"""Eight simulated CPU devices for every test, a tiny phantom corpus, and a tiny config."""

import fcntl
import os

# before jax or TensorFlow is imported
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
# nothing here uses Keras, which would take a third of the time that importing TensorFlow takes
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Programs of tests run for a few steps, so most of the time would be spent on compiling them. XLA
# optimizes the graph as usual, but its CPU backend emits kernels in the quickest way and LLVM
# optimizes little, here and in the processes that tests start. Tests marked ``parity`` have LLVM
# optimize as it does for users.
_defaults = {"xla_force_host_platform_device_count": "8", "xla_cpu_use_fusion_emitters": "false"}
_flags = os.environ.get("XLA_FLAGS", "").split()
_flags += [f"--{k}={v}" for k, v in _defaults.items() if not any(k in flag for flag in _flags)]
os.environ["XLA_FLAGS"] = " ".join(_flags)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Many tests, and the processes that they start, compile the same program: it is compiled once.
_cache = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

# files whose tests and processes compute for a minute or more
LONGEST = (
    "test_meshes.py", "test_open_clip_export.py", "test_hosts.py", "test_extending.py",
    "test_suite_processes.py", "test_text_guided_segmentation.py", "test_volumetric_tasks.py",
    "test_notebooks.py", "test_gradient_caching.py",
)  # fmt: skip

if TYPE_CHECKING:
    from helpers.gcs_server import Storage


@pytest.fixture(autouse=True)
def parity_compiles_as_users_do(request: pytest.FixtureRequest) -> Iterator[None]:
    """Comparisons with independent implementations run fully optimized programs."""
    if not request.node.get_closest_marker("parity"):
        yield
        return
    from helpers.runs import full_compilation

    with full_compilation():
        yield


@pytest.fixture(scope="session")
def phantom_corpus(tmp_path_factory) -> Path:
    """102 training and 34 validation phantoms in 4 and 1 shards, with their vocabulary."""
    from input_pipeline.conversion.phantom_corpus import write_phantoms

    directory = tmp_path_factory.mktemp("phantoms")
    write_phantoms(directory, num_train_per_class=6, num_val_per_class=2, image_size=40)
    return directory


@pytest.fixture(scope="session")
def finished_run(phantom_corpus, tmp_path_factory) -> Path:
    """The work directory of a finished run of ``helpers.runs.WHOLE_RUN`` on one device.

    It has a process of its own, as the interrupted runs do: bits depend on the number of devices
    that a process has. Of the workers of xdist, the first that needs it trains.
    """
    from helpers import runs

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    recipe, workdir = folder / "finished_run.py", folder / "finished_run"
    with (folder / "finished_run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "report.html").is_file():
            runs.finish(
                runs.start(runs.write_recipe(recipe, phantom_corpus, **runs.WHOLE_RUN), workdir)
            )
    return workdir


@pytest.fixture
def tiny_config(phantom_corpus) -> Callable[..., ConfigDict]:
    """Makes a config that trains a tiny dual encoder on the phantoms; keywords are its keys."""
    from unimed_jax.testing import tiny_config

    def make(**changes: object) -> ConfigDict:
        return tiny_config(str(phantom_corpus), changes)

    return make


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Iterator["Storage"]:
    """A bucket, gs://bucket, that this process and those that it starts find by themselves."""
    from helpers.gcs_server import storage_server

    with (
        storage_server(tmp_path_factory.mktemp("storage")) as storage,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        import gcsfs  # reads some of them when it is imported

        gcsfs.GCSFileSystem.clear_instance_cache()
        yield storage
        gcsfs.GCSFileSystem.clear_instance_cache()
    # Beam looks on github.com for a faster local runner
    assert set(storage.refused_hosts) <= {"github.com"}, "something looked for another host"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the texts of tests/golden anew"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a worker takes whole files, and the last one should be short."""
    weights = Counter()
    for item in items:
        weights[item.path] += 20 if "slow" in item.keywords else 1
    items.sort(key=lambda item: (item.path.name not in LONGEST, -weights[item.path], item.path))
