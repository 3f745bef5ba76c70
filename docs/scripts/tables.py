"""Writes the measured figures of docs/data/*.json into README.md and docs/**/*.md.

    python docs/scripts/tables.py            # update every page in place
    python docs/scripts/tables.py --check    # exit 1 and print a diff if a page is stale

Each JSON file holds one table: the command that measured it, the machine, the date, the commit that
recorded it, the columns, the rows, and named views (subsets of columns). Pages refer to it with
comments; the text between a comment and the next ``<!-- end -->`` is generated:

    <!-- table: NAME -->            all columns
    <!-- table: NAME/VIEW -->       the columns of a view
    <!-- source: NAME -->           command, machine, date and commit
    <!-- value: NAME.KEY -->        one entry of "values", inline

No figure is typed into two pages by hand. To change one, measure it again and edit the JSON file.
"""

import argparse
import difflib
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data"
_MARKER = re.compile(
    r"<!-- (?P<kind>table|source|value): (?P<name>[\w./-]+) -->.*?<!-- end -->", re.DOTALL
)


class StaleName(ValueError):
    """A page refers to a table, view or value that no data file has."""


@cache
def load(name: str) -> dict[str, Any]:
    path = DATA / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in DATA.glob("*.json")))
        raise StaleName(f"no data file {path.name}; there are: {known}")
    return json.loads(path.read_text(encoding="utf-8"))


def cell(value: Any, spec: str | None) -> str:
    """One cell: a number by its format, [mean, deviation] as ``mean ± deviation``, text as is."""
    if value is None:
        return ""
    if not spec:
        return str(value)
    if spec.startswith("±"):
        return " ± ".join(format(number, spec[1:]) for number in value)
    return format(value, spec)


def table(name: str) -> str:
    """The markdown table of ``NAME`` or ``NAME/VIEW``."""
    name, _, view = name.partition("/")
    data = load(name)
    if view and view not in data.get("views", {}):
        raise StaleName(f"{name}.json has no view {view!r}: {', '.join(data.get('views', {}))}")
    keys = data["views"][view] if view else list(data["columns"])
    labels = {key: data["columns"][key]["label"] for key in keys}
    labels |= data.get("view_labels", {}).get(view, {})
    bold = {tuple(place) for place in data.get("bold", ())}
    if view and len({key for _, key in bold} & set(keys)) < 2:
        bold = set()  # the columns that were compared are not all in this view
    skipped = data.get("skip_rows", {}).get(view, ())
    lines = [
        "| " + " | ".join(labels[key] for key in keys) + " |",
        "|" + "".join("---|" if _is_text(data, key) else "---:|" for key in keys),
    ]
    for index, row in enumerate(data["rows"]):
        if index in skipped:
            continue
        texts = (cell(row[key], data["columns"][key].get("format")) for key in keys)
        texts = [
            f"**{text}**" if (index, key) in bold else text
            for text, key in zip(texts, keys, strict=True)
        ]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _is_text(data: dict[str, Any], key: str) -> bool:
    return "format" not in data["columns"][key]


def source(name: str) -> str:
    """Where a table comes from: a code block with the command, then machine, date and commit."""
    data = load(name)
    lines = data["command"]
    block = "\n".join(["```bash", *([lines] if isinstance(lines, str) else lines), "```"])
    return (
        f"{block}\n\nMachine: {data['machine']}. "
        f"Recorded {data['date']} (commit `{data['commit']}`)."
    )


def value(name: str) -> str:
    """One entry of a file's "values"."""
    name, _, key = name.partition(".")
    values = load(name).get("values", {})
    if key not in values:
        raise StaleName(f"{name}.json has no value {key!r}; there are: {', '.join(values)}")
    return values[key]


def render(text: str) -> str:
    """A page with the text between all markers generated anew."""

    def replaced(match: re.Match[str]) -> str:
        kind, name = match["kind"], match["name"]
        opening, closing = f"<!-- {kind}: {name} -->", "<!-- end -->"
        if kind == "value":
            return f"{opening}{value(name)}{closing}"
        body = table(name) if kind == "table" else source(name)
        return f"{opening}\n\n{body}\n\n{closing}"

    return _MARKER.sub(replaced, text)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args().check
    stale, used = [], set()
    for path in pages():
        before = path.read_text(encoding="utf-8")
        used |= {re.split(r"[/.]", match["name"])[0] for match in _MARKER.finditer(before)}
        try:
            after = render(before)
        except StaleName as error:
            print(f"{path.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 2
        if after == before:
            continue
        stale.append(path)
        name = str(path.relative_to(ROOT))
        if check:
            diff = difflib.unified_diff(
                before.splitlines(), after.splitlines(), name, f"{name} (generated)", lineterm=""
            )
            print("\n".join(diff))
        else:
            path.write_text(after, encoding="utf-8")
            print(f"updated: {name}")
    for name in sorted({file.stem for file in DATA.glob("*.json")} - used):
        print(f"warning: docs/data/{name}.json is in no page", file=sys.stderr)
    if check and stale:
        print(f"{len(stale)} stale pages; run: python docs/scripts/tables.py", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
