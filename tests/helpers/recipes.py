"""Recipes of the checkout, loaded as `--config=FILE:variant` loads them."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name: str, variant: str = "") -> ConfigDict:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)
