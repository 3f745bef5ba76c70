"""The fourteen findings of CheXpert's labeller, which MIMIC-CXR-JPG's tables have as well.

A cell is 1 (stated), 0 (denied), -1 (uncertain) or empty (not mentioned). Irvin et al. 2019,
https://arxiv.org/abs/1901.07031, compare policies for uncertain cells.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from input_pipeline.conversion.annotations import choose
from input_pipeline.conversion.official.attributes import AttributeOptions

NO_FINDING = "No Finding"
FINDINGS = (
    NO_FINDING,
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)


@dataclasses.dataclass(frozen=True)
class FindingOptions(AttributeOptions):
    """Flags of a part whose table has a column per finding."""

    uncertain: Annotated[
        str,
        "what a cell of -1 becomes. ignore: nothing; positive: the finding's label; negative: the "
        "label `no FINDING` (ignore)",
    ] = "ignore"
    unmentioned: Annotated[str, "what an empty cell becomes: ignore, or negative (ignore)"] = (
        "ignore"
    )
    denied: Annotated[str, "what a cell of 0 becomes: ignore, or negative (ignore)"] = "ignore"


def check(options: FindingOptions) -> None:
    """Raises CorpusError for a flag with an unknown value."""
    choose("uncertain", options.uncertain, ("ignore", "positive", "negative"))
    choose("unmentioned", options.unmentioned, ("ignore", "negative"))
    choose("denied", options.denied, ("ignore", "negative"))


def labels(cells: Mapping[str, str], options: FindingOptions) -> tuple[str, ...]:
    """The labels of a row, in the order of `FINDINGS`.

    Args:
      cells: finding -> cell; 1 may be written as `1.0`.
      options: what the other cells become. `No Finding` only counts where it is 1: the findings
        that are left blank say the opposite.

    Raises ValueError for a cell that is none of the four.
    """
    found = []
    for finding in FINDINGS:
        state = _state(finding, cells[finding])
        becomes = "positive" if state == "stated" else getattr(options, state)
        if finding == NO_FINDING and state != "stated":
            continue
        if becomes == "positive":
            found.append(finding)
        elif becomes == "negative":
            found.append(f"no {finding}")
    return tuple(found)


def policy(options: FindingOptions) -> dict[str, str]:
    """What cells became, for `conversion.json`."""
    return {name: getattr(options, name) for name in ("uncertain", "unmentioned", "denied")}


def _state(finding: str, cell: str) -> str:
    """stated, denied, uncertain or unmentioned."""
    if cell.lower() in ("", "nan"):
        return "unmentioned"
    try:
        return {1.0: "stated", 0.0: "denied", -1.0: "uncertain"}[float(cell.replace(",", "."))]
    except (KeyError, ValueError):
        raise ValueError(
            f"unknown cell: {cell!r} under {finding!r} is none of 1, 0, -1 and empty"
        ) from None


def require(found: tuple[str, ...]) -> tuple[str, ...]:
    """The labels of a row that has no text. Raises ValueError if there are none."""
    if not found:
        raise ValueError(
            "no finding is positive: those that are uncertain, denied or not mentioned are no "
            "labels; see --uncertain, --unmentioned and --denied"
        )
    return found
