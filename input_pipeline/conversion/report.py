"""`conversion.json`: numbers of rows read, written and rejected, and changes to images.

    {
     "name": "chexpert", "read": 223414, "written": 223401, "rejected": 13, "merged": 0,
     "rejected_by_reason": {"cannot read the image": 13},
     "original_captions": 0, "generated_captions": 2234010,
     "notes": {"16-bit grey scaled to 8 bit": 12},
     "groups_in_several_splits": 0,
     "inputs": {"members": 40, ...}, what the source has seen that is no row of its own
     "suspect": {"masks without foreground": {"samples": 3, "share": 0.1, "limit": ..., ...}}
     "facts": {...},                 about the source: files read, licence, how to get the data
     "expected": {"of": "samples", "low": ..., "high": ..., "found": ..., "difference": 0}
    }

It does not depend on time or place, so its bytes are reproducible, too.
"""

import collections
import contextlib
import dataclasses
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from input_pipeline.conversion.guard import Suspect
from input_pipeline.conversion.planned_rows import Rejection, SampleWithNotes
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, atomic_file, write_text_atomically
from input_pipeline.manifest import Manifest

_ORIGINAL, _GENERATED = "original_captions", "generated_captions"


def count(noted: SampleWithNotes) -> Mapping[str, int]:
    """The contribution of one sample to the totals of the report."""
    original = noted.sample.num_original_captions
    remarks = collections.Counter(noted.notes)
    remarks[_ORIGINAL] = original
    remarks[_GENERATED] = len(noted.sample.captions) - original
    return remarks


def write_rejected(
    path: AnyPath, rejections: Iterable[Rejection], scratch: AnyPath | None = None
) -> dict[str, int]:
    """Writes the rejections ordered by row, one JSON object per line; counts them by reason.

    Reasons are counted without the details of a row. Sorting is done on disk: a corpus may reject
    millions of rows. `scratch` is passed to `atomic_file`.
    """
    reasons: collections.Counter[str] = collections.Counter()
    try:
        with contextlib.closing(sqlite3.connect("")) as sorter:  # "": a temporary file
            sorter.execute("CREATE TABLE rejected (row INTEGER, id TEXT, path TEXT, line TEXT)")
            for r in rejections:
                reasons[_printable(re.split(r"[:,(']", r.reason)[0].strip())] += 1
                line = json.dumps(dataclasses.asdict(r), ensure_ascii=False)
                texts = map(_printable, (r.id, r.path, line))
                sorter.execute("INSERT INTO rejected VALUES (?,?,?,?)", (r.row, *texts))
            order = "SELECT line FROM rejected ORDER BY row IS NULL, row, id, path"
            with (
                atomic_file(path, scratch) as temporary,
                temporary.open("w", encoding="utf-8") as file,
            ):
                file.writelines(f"{line}\n" for (line,) in sorter.execute(order))
    except (OSError, sqlite3.OperationalError) as error:
        raise CorpusError(f"cannot write {path}: {error}") from error
    return dict(reasons.most_common())


def _printable(text: str) -> str:
    """File names that are not UTF-8 hold lone surrogates, which no file can."""
    return text.encode("utf-8", "backslashreplace").decode()


def write(
    path: AnyPath,
    manifest: Manifest,
    reasons: Mapping[str, int],
    remarks: Mapping[str, int],
    num_shared_groups: int,
    shared_group: str,
    inputs: Mapping[str, int],
    suspects: Mapping[str, Suspect],
    metadata: Mapping[str, Any],
) -> None:
    """Writes the report; see the module docstring. ``metadata["expected"]`` is compared here."""
    metadata = dict(metadata)
    expected = metadata.pop("expected", None)
    content = {
        "name": manifest.name,
        "read": manifest.read,
        "written": manifest.written,
        "rejected": manifest.rejected,
        "merged": manifest.merged,
        "rejected_by_reason": reasons,
        _ORIGINAL: remarks.get(_ORIGINAL, 0),
        _GENERATED: remarks.get(_GENERATED, 0),
        "notes": {k: n for k, n in sorted(remarks.items()) if k not in (_ORIGINAL, _GENERATED)},
        "groups_in_several_splits": num_shared_groups,
        "example_of_such_a_group": shared_group,
        "inputs": dict(sorted(inputs.items())),
        "suspect": {finding: dataclasses.asdict(s) for finding, s in suspects.items()},
        "facts": metadata,
    }
    if expected:
        found = manifest.written if expected["of"] == "samples" else content[_ORIGINAL]
        difference = found - min(max(found, expected["low"]), expected["high"])
        content["expected"] = expected | {"found": found, "difference": difference}
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load(path: AnyPath) -> dict[str, Any]:
    """The content of `conversion.json`, as in the module docstring."""
    return json.loads(path.read_text("utf-8"))
