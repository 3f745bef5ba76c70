"""Golden texts: what each recipe resolves to. They change on purpose only; review their diff.

A text holds the flattened config, the table of parameters (shape, dtype, initializer, weight decay,
learning-rate factor) and their sharding on a mesh of 2 x 2 x 2 devices.

    pytest tests/test_golden.py --update-golden

writes them anew; a text that is missing fails.
"""

import functools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.recipes import RECIPES, load
from ml_collections import ConfigDict

from unimed_jax import config as config_lib
from unimed_jax import tasks
from unimed_jax.distributed.sharding import describe, path_string
from unimed_jax.training import optimizer

GOLDEN = Path(__file__).parent / "golden"
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
SMALL = ("quickstart", "minimed", "own")
# Recipes whose parameters are initialized, one per network: it takes up to a minute. For the others
# the table has no initializers.
INITIALIZED = (
    ("quickstart", ""), ("minimed", ""), ("lg_sdg/fundus_vessels", ""),
    ("lwi_vms/covid_ct", ""),
)  # fmt: skip


def initializer(values: np.ndarray) -> str:
    """The distribution that initial values come from, by its moments: two digits are enough."""
    if values.min() == values.max():
        return f"{values.flat[0]:.4g}"
    scale = np.std(values, dtype=np.float64)
    if values.size >= 1000 and np.abs(values).max() < 1.75 * scale:
        return f"uniform(+-{np.abs(values).max():.2g})"
    return f"normal({scale:.2g})"


def parameter_table(config: ConfigDict, params: dict) -> list[str]:
    """A line per parameter; arrays have an initializer, abstract ones do not."""
    decays = optimizer.decay_mask(params, tuple(config.optimizer.no_decay))
    frozen = optimizer.path_mask(params, tuple(config.optimizer.frozen))
    lines = []
    for (path, value), decay, fixed in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(decays),
        jax.tree.leaves(frozen),
        strict=True,
    ):
        name = path_string(path)
        factor = optimizer.learning_rate_factor(name, config.optimizer.learning_rate_factors)
        init = f"init={initializer(np.asarray(value))} " if isinstance(value, jax.Array) else ""
        lines.append(
            f"{name:<60} {value.shape!s:<24} {value.dtype} {init}"
            f"decay={'yes' if decay and not fixed else 'no'} lr_factor={0.0 if fixed else factor:g}"
        )
    return lines


def config_lines(config: ConfigDict) -> list[str]:
    flat = config_lib.flatten(json.loads(config_lib.to_json(config)))
    return [f"{key} = {value!r}" for key, value in flat]


def golden_text(config: ConfigDict, workdir: Path, *, initialized: bool) -> str:
    task = tasks.create(config, str(workdir))
    init = jax.jit(task.init) if initialized else functools.partial(jax.eval_shape, task.init)
    params = init(jax.random.key(config.seed))
    count = sum(x.size for x in jax.tree.leaves(params))
    sections = {
        "config": config_lines(config),
        f"parameters ({count:,})": parameter_table(config, params),
        f"sharding on {MESH}": describe(params, task.parameter_axes, MESH).splitlines(),
    }
    lines = []
    for title, content in sections.items():
        lines += [f"# {title}", "", *(line.rstrip() for line in content), ""]
    return "\n".join(lines)


def _cases(*, slow: bool) -> list:
    """The recipes; ``slow`` marks all but the small ones."""
    return [
        pytest.param(name, variant, id=f"{name}:{variant}" if variant else name,
                     marks=[pytest.mark.slow] if slow and name not in SMALL
                     else [])
        for name, variant in RECIPES
    ]  # fmt: skip


def _file(name: str, variant: str) -> Path:
    return GOLDEN / (re.sub(r"[^\w]+", "-", f"{name} {variant}").strip("-") + ".txt")


@pytest.mark.parametrize(("name", "variant"), _cases(slow=True))
def test_a_recipe_resolves_to_its_golden_text(name, variant, tmp_path, request):
    recipe = (name, variant)
    text = golden_text(load(*recipe), tmp_path, initialized=recipe in INITIALIZED)
    file = _file(name, variant)
    if request.config.getoption("--update-golden"):
        file.write_text(text)
    assert file.is_file(), f"{file.name} is missing: write it with --update-golden"
    assert text == file.read_text()


@pytest.mark.parametrize(("name", "variant"), _cases(slow=False))
def test_the_config_of_a_recipe_is_that_of_its_golden_text(name, variant, request):
    if request.config.getoption("--update-golden"):
        pytest.skip("the other test writes the texts")
    _, lines, _ = re.split(r"^# .*\n\n", _file(name, variant).read_text(), maxsplit=2, flags=re.M)
    assert config_lines(load(name, variant)) == lines.splitlines()[:-1]


def test_every_golden_text_belongs_to_a_recipe():
    assert set(GOLDEN.glob("*.txt")) == {_file(*recipe) for recipe in RECIPES}
