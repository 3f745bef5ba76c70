"""Recipes of the checkout, loaded as `--config=FILE:variant` loads them."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from unimed_jax import config as config_lib

CONFIGS = Path(__file__).parents[2] / "configs"


def _recipes() -> list[tuple[str, str]]:
    """(name, variant) of all recipes: every variant of a file that lists them in ``VARIANTS``."""
    found = []
    for path in sorted(CONFIGS.rglob("*.py")):
        module = runpy.run_path(str(path))
        if "get_config" in module:
            name = path.relative_to(CONFIGS).with_suffix("").as_posix()
            found += [(name, variant) for variant in module.get("VARIANTS", ("",))]
    return found


RECIPES = _recipes()


def load(name: str, variant: str = "") -> ConfigDict:
    """The config of ``configs/NAME.py``, or of ``configs/NAME.py:VARIANT``."""
    path = str(CONFIGS / f"{name}.py")
    return config_lib.load(f"{path}:{variant}" if variant else path)
