"""Rows that a conversion leaves out: a JSON Lines file of sample ids with reasons.

    {"id": "chexpert/patient00001/view1.jpg", "reason": "in the evaluation set chexpert_5x200"}

`tools/inspect_corpus.py` writes such a file, `tools/convert_corpus.py --exclude` reads it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping

from input_pipeline.conversion.planned_rows import Rejection, SourceRow
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import PathLike, to_path, write_text_atomically

FILE_NAME = "exclude.jsonl"


def save(path: PathLike, reasons: Mapping[str, str]) -> None:
    """Writes id -> reason, atomically."""
    lines = (
        json.dumps({"id": sample_id, "reason": reason}, ensure_ascii=False)
        for sample_id, reason in reasons.items()
    )
    write_text_atomically(path, "".join(f"{line}\n" for line in lines))


def load(path: PathLike) -> dict[str, str]:
    """Reads id -> reason. Raises CorpusError, which names the file and line."""
    try:
        lines = to_path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    reasons = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            sample_id, reason = content["id"], content.get("reason", "no reason given")
        except (ValueError, KeyError, TypeError, AttributeError):
            sample_id = reason = None
        if not isinstance(sample_id, str) or not isinstance(reason, str):
            raise CorpusError(
                f'{path}, line {number}: expected {{"id": "...", "reason": "..."}}, got {line[:60]}'
            )
        reasons[sample_id] = reason
    return reasons


def leave_out(
    rows: Iterable[SourceRow | Rejection], reasons: Mapping[str, str]
) -> Iterator[SourceRow | Rejection]:
    """The rows; excluded ones become rejections."""
    for row in rows:
        if isinstance(row, SourceRow) and row.id in reasons:
            yield Rejection(f"excluded: {reasons[row.id]}", row.row, row.id, row.image)
        else:
            yield row
