"""The distinct label sets of a source, as a table to write captions for.

{"source": "chexpert", "modality": "xray", "labels": ["Edema", "Cardiomegaly"], "rows": 812}
"""

import collections
import json
from collections.abc import Iterable

from input_pipeline.conversion.planned_rows import Rejection, SourceRow
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import PathLike, write_text_atomically

_Key = tuple[str, str, tuple[str, ...]]  # source, modality, sorted labels


def write(path: PathLike, rows: Iterable[SourceRow | Rejection]) -> int:
    """Writes the label sets as JSON Lines, the most frequent first; returns their number.

    Sets that differ only in order count as one. Images are not read. Raises CorpusError if no row
    has a label.
    """
    counts: collections.Counter[_Key] = collections.Counter()
    labels: dict[_Key, tuple[str, ...]] = {}
    for row in rows:
        if isinstance(row, SourceRow) and row.labels:
            key = (row.source, row.modality, tuple(sorted(set(row.labels))))
            counts[key] += 1
            labels.setdefault(key, row.labels)
    if not counts:
        raise CorpusError("no row of the source has a label, so there are no captions to write")
    lines = (
        json.dumps(
            {"source": key[0], "modality": key[1], "labels": labels[key], "rows": count},
            ensure_ascii=False,
        )
        for key, count in counts.most_common()
    )
    write_text_atomically(path, "".join(f"{line}\n" for line in lines))
    return len(counts)
