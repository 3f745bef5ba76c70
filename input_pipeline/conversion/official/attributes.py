"""Attributes of patients and images that a table has; captions state them only if asked to."""

import dataclasses
import re
from collections.abc import Collection
from typing import Annotated

from input_pipeline.conversion.annotations import PartOptions
from input_pipeline.io.errors import CorpusError

_AGE = re.compile(r"(\d{1,3})(?:\.0)?\s*([YMD]?)", re.IGNORECASE)
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "D": 1 / 365}
_GROUPS = ((28 / 365, "newborn"), (2, "infant"), (18, "child"), (65, "adult"), (120, "elderly"))
_SEXES = {"f": "female", "female": "female", "m": "male", "male": "male"}


@dataclasses.dataclass(frozen=True)
class AttributeOptions(PartOptions):
    """Flags of a part whose table has attributes."""

    attributes: Annotated[
        str | None,
        "what labels and captions may say beside findings, of view, age_group and sex, as far as "
        "the table has them: view,sex (nothing)",
    ] = None


def requested(options: AttributeOptions, known: Collection[str]) -> frozenset[str]:
    """The attributes that are asked for. Raises CorpusError for one that the table lacks."""
    names = [name.strip() for name in (options.attributes or "").split(",")]
    if unknown := [name for name in names if name and name not in known]:
        raise CorpusError(f"--attributes={unknown[0]}: this part has {', '.join(known)}")
    return frozenset(filter(None, names))


def labels(
    wanted: Collection[str], view: str = "", age: str = "", sex: str = ""
) -> tuple[str, ...]:
    """`name=value` of the attributes that are wanted and known.

    Args:
      wanted: names of attributes.
      view: frontal or lateral.
      age: as a table has it: `58`, `058Y`, `013M`, `010D`.
      sex: `F`, `Female`, ...; others are left out.
    """
    values = {"view": view, "age_group": age_group(age), "sex": _SEXES.get(sex.lower(), "")}
    return tuple(f"{name}={value}" for name, value in values.items() if value and name in wanted)


def age_group(age: str) -> str:
    """Newborn, infant, child, adult or elderly; empty for 0 years, over 119 years, and no age."""
    match = _AGE.fullmatch(age.strip())
    years = int(match[1]) * _YEARS[match[2].upper()] if match else 0.0
    if not years:
        return ""
    return next((group for limit, group in _GROUPS if years < limit), "")
