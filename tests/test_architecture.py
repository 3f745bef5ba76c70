"""The layers of both packages: who may import whom, read from the source of every module."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("unimed_jax", "input_pipeline")

# From top to bottom. A module imports from its own package and from lower lines; packages on one
# line do not import each other. Modules that are not in a package stand in ROOT_LAYERS.
LAYERS = {
    "unimed_jax": (
        {"commands"},
        {"aot"},
        {"exporting"},
        {"tasks"},
        {"evals"},
        {"inference"},
        {"training"},
        {"weights"},
        {"models"},
        {"losses", "augmentation"},
        {"monitoring", "reporting"},
        {"distributed"},
        {"base"},
    ),
    "input_pipeline": (
        {"inspection"},
        {"conversion"},
        {"captioning", "phantoms"},
        {"read path"},
        {"io"},
    ),
}
COMMANDS = {
    "average",
    "caption_labels",
    "cli",
    "compare_results",
    "compile_report",
    "convert_corpus",
    "corpus_status",
    "demo",
    "evaluate",
    "export",
    "fetch_data",
    "import_weights",
    "inspect_corpus",
    "segment",
    "train",
}
API = "__init__"  # unimed_jax.load
BASE = {"config", "testing", "version"}
TORCH = {"torch", "torchvision", "open_clip", "transformers"}
RUNS_TORCH = "unimed_jax.exporting.verify_in_torch"  # in a process of its own

# What a training step needs on a machine with an accelerator, where TensorFlow costs seconds and
# memory if it is imported, and where it may be missing.
WITHOUT_TENSORFLOW = (
    "unimed_jax.models",
    "unimed_jax.losses",
    "unimed_jax.distributed",
    "unimed_jax.training.train_step",
    "unimed_jax.training.optimizer",
    "unimed_jax.tasks",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(node: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, also of those in functions; not of those for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import"
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield (name if name in SOURCES else child.module), child.lineno
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from imports(other)
        else:
            yield from imports(child)


IMPORTS = {name: list(imports(ast.parse(path.read_text()))) for name, path in SOURCES.items()}


def layer(module: str) -> tuple[str, int]:
    """The group that a module belongs to, and its line in LAYERS."""
    package, *rest = module.split(".")
    if SOURCES[module].parent != ROOT / package:
        group = rest[0]
    elif package == "input_pipeline":
        group = "read path"
    else:
        group = "base" if rest and rest[0] in BASE else "commands"
    for index, groups in enumerate(LAYERS[package]):
        if group in groups:
            return group, index
    raise AssertionError(f"{module}: package {group} has no line in LAYERS")


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_downwards(package):
    upwards = []
    for module, found in IMPORTS.items():
        for target, line in found:
            if not (module.startswith(package) and target in SOURCES):
                continue
            if target.split(".")[0] != package:
                continue
            (own, height), (other, depth) = layer(module), layer(target)
            if own != other and height >= depth:
                upwards.append(f"{SOURCES[module]}:{line}: {own} imports {other} ({target})")
    assert not upwards, "\n".join(upwards)


def test_the_input_pipeline_does_not_know_the_trainer():
    for module, found in IMPORTS.items():
        if module.startswith("input_pipeline"):
            wrong = [(name, line) for name, line in found if name.startswith("unimed_jax")]
            assert not wrong, module


def test_no_module_imports_itself_by_way_of_others():
    graph = {
        module: {name for name, _ in found if name in SOURCES and name != module}
        for module, found in IMPORTS.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_torch_is_imported_by_the_module_that_verifies_exports_alone():
    users = {
        module
        for module, found in IMPORTS.items()
        if any(name.split(".")[0] in TORCH for name, _ in found)
    }
    assert users == {RUNS_TORCH}
    assert not [m for m, found in IMPORTS.items() if RUNS_TORCH in (name for name, _ in found)]


def test_what_a_training_step_needs_is_imported_without_tensorflow():
    modules = [m for m in SOURCES if any(f"{m}.".startswith(f"{w}.") for w in WITHOUT_TENSORFLOW)]
    assert {"unimed_jax.models.dual_encoder", "unimed_jax.training.train_step"} <= set(modules)
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
    assert not {{"tensorflow", "torch"}} & set(sys.modules), name
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_the_root_of_the_package_holds_commands_and_little_else():
    assert {path.stem for path in (ROOT / "unimed_jax").glob("*.py")} == {API, *COMMANDS, *BASE}
