"""Figures as a file of docs/data, from which docs/scripts/tables.py writes the pages."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def write_table(
    path: Path,
    command: str,
    columns: Mapping[str, Mapping[str, str]],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Writes a table with the command, machine, date and commit that it comes from.

    Args:
      path: the JSON file.
      command: what measured it, to be run from the root of the repository.
      columns: key -> "label", and "format" of numbers.
      rows: key -> value of every row.
    """
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    content = {
        "command": command,
        "machine": f"{os.cpu_count()} cores of a shared CPU machine, "
        f"Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "columns": columns,
        "rows": rows,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
