"""A validation split for sources that have none: a share of the patients of ``train``.

A patient (or study: whatever the ``group`` of a row is) goes to ``val`` if the hash of its name and
the seed falls below the share; a row without a group counts as a patient of its own. Thus a patient
is never in both splits, and stays where it is when the source grows.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from input_pipeline.conversion.planned_rows import PlannedRow, Rejection
from input_pipeline.conversion.sources.base import Conversion
from input_pipeline.io.errors import CorpusError, UserError

TRAIN, VALIDATION = "train", "val"


def split_off(conversion: Conversion, fraction: float, seed: int) -> Conversion:
    """The conversion with about ``fraction`` of the patients of ``train`` in ``val``.

    Args:
      conversion: a conversion without rows in ``val``; other splits stay as they are.
      fraction: share of the patients, above 0 and below 1.
      seed: another seed draws other patients.

    Raises:
      UserError: the fraction is out of range. While rows are read, CorpusError: there is a row in
        ``val`` already, or one of the two splits receives no row.
    """
    if not 0 < fraction < 1:
        raise UserError(f"--val_fraction={fraction}: expected a share above 0 and below 1")
    facts = {"fraction": fraction, "seed": seed, "unit": "group, or row where it has none"}
    return dataclasses.replace(
        conversion,
        rows=_assigned(conversion.rows, fraction, seed),
        metadata={**conversion.metadata, "validation_split": facts},
    )


def is_validation(name: str, fraction: float, seed: int) -> bool:
    """Whether the patient ``name`` belongs to the validation split."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _assigned(
    rows: Iterable[PlannedRow[Any] | Rejection], fraction: float, seed: int
) -> Iterator[PlannedRow[Any] | Rejection]:
    sizes = {TRAIN: 0, VALIDATION: 0}
    for row in rows:
        if isinstance(row, PlannedRow):
            if row.split == VALIDATION:
                raise CorpusError(
                    f"--val_fraction={fraction}: row {row.number} ({row.id}) is in split "
                    f"{VALIDATION!r} already; leave the flag out to keep the splits of the source"
                )
            # the name alone, because a patient may have images of several labels or sources
            name = str(row.group[-1]) if row.group else row.id
            if row.split == TRAIN and is_validation(name, fraction, seed):
                row = dataclasses.replace(row, split=VALIDATION)
            if row.split in sizes:
                sizes[row.split] += 1
        yield row
    for split, size in sizes.items():
        if not size and any(sizes.values()):
            raise CorpusError(
                f"--val_fraction={fraction}: no row was assigned to {split!r}; there are too few "
                "patients for this share, choose another one or another --seed"
            )
