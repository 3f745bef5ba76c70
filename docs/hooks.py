"""MkDocs hooks: one API page per package, and the table of config keys.

Both are made from the source tree when the site is built, so a module that moves needs no edit
here. Nothing of the project is imported.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("unimed_jax", "input_pipeline")
PREFIX = "reference/api/"
_KEYS_MARKER = "<!-- config-keys -->"
_TASKS_MARKER = "<!-- task-keys -->"


# --- API pages ------------------------------------------------------------------------------------


def packages() -> Iterator[tuple[str, list[str]]]:
    """(dotted package, its modules that document something), the packages in sorted order."""
    for top in PACKAGES:
        folders = sorted(path.parent for path in (ROOT / top).rglob("__init__.py"))
        for folder in folders:
            package = ".".join(folder.relative_to(ROOT).parts)
            modules = sorted(path for path in folder.glob("*.py") if not path.stem.startswith("_"))
            init = folder / "__init__.py"
            names = [package] if _documented(init) else []
            names += [f"{package}.{path.stem}" for path in modules if _documented(path)]
            if names:
                yield package, names


def _documented(path: Path) -> bool:
    return bool(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))


def _page(package: str, modules: list[str]) -> str:
    parts = [f"# `{package}`"]
    for module in modules:
        parts.append(f"::: {module}")
        if module == package:
            parts[-1] += (
                "\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false"
            )
    return "\n\n".join(parts) + "\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replaces the placeholder of the navigation by the pages of ``packages``."""
    nested: dict[str, list[dict[str, str]]] = {top: [] for top in PACKAGES}
    for package, _ in packages():
        nested[package.partition(".")[0]].append({package: f"{PREFIX}{package}.md"})
    _replace(config.nav, [{top: pages} for top, pages in nested.items()])
    return config


def _replace(nav: list, pages: list) -> None:
    for entry in nav:
        if not isinstance(entry, dict):
            continue
        for title, target in entry.items():
            if target == PREFIX:
                entry[title] = pages
            elif isinstance(target, list):
                _replace(target, pages)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for package, modules in packages():
        uri = f"{PREFIX}{package}.md"
        files.append(File.generated(config, uri, content=_page(package, modules)))
    return files


# --- config keys ----------------------------------------------------------------------------------


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if _KEYS_MARKER in markdown:
        markdown = markdown.replace(_KEYS_MARKER, _base_keys())
    if _TASKS_MARKER in markdown:
        markdown = markdown.replace(_TASKS_MARKER, _task_keys())
    return markdown


def _function(path: Path, name: str) -> str:
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_source_segment(text, node) or ""
    return ""


def _base_keys() -> str:
    """A table per section of ``base_config``: key, default, comment."""
    source = _function(ROOT / "unimed_jax" / "config.py", "base_config")
    sections: dict[str, list[str]] = {}
    comment: list[str] = []
    for line in source.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            continue
        match = re.match(r"config\.([\w.]+) = (.+?)(?:\s+# (.*))?$", stripped)
        if match and (match[2] != "ConfigDict()" or comment or match[3]):
            note = " ".join([*comment, match[3] or ""]).strip().replace("|", "\\|")
            section = match[1].rpartition(".")[0] or "top level"
            if match[2] == "ConfigDict()":
                section = "top level" if "." not in match[1] else section
            default = {"ConfigDict()": "empty", "task": '`"contrastive"`'}.get(
                match[2], f"`{match[2]}`".replace("|", "\\|")
            )
            sections.setdefault(section, []).append(f"| `{match[1]}` | {default} | {note} |")
        comment = []
    if not sections:
        return f"```python\n{source}\n```"
    return "\n\n".join(
        f"### {'Top level' if title == 'top level' else f'`{title}`'}\n\n"
        "| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows)
        for title, rows in sections.items()
    )


def _task_keys() -> str:
    """The ``default_config`` of every task, as source."""
    parts = []
    for path in sorted((ROOT / "unimed_jax" / "tasks").glob("*.py")):
        if source := _function(path, "default_config"):
            parts.append(f"### `{path.stem}`\n\n```python\n{source}\n```")
    return "\n\n".join(parts)
