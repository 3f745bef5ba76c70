"""Which parts of UniMed hold images of which test sets of its suite, and how they are recognised.

RSNA's images are NIH's under other names; its public file pairs them. CheXpert-5x200 is drawn from
CheXpert's train folder, ODIR200x3 from ODIR-5K. FIVES, REFUGE and DeepDRiD are whole folders of the
FLAIR family. All other sets are only recognised by their pictures.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from input_pipeline.conversion.annotations import first_file
from input_pipeline.conversion.held_out import Folder, Names, identity
from input_pipeline.conversion.unimed_parts import PARTS
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath

RSNA_MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
_RSNA_URL = f"https://s3.amazonaws.com/east1.public.rsna.org/AI/2018/{RSNA_MAPPING}"
_RSNA_PLACES = (RSNA_MAPPING, f"rsna_custom_test_set/{RSNA_MAPPING}")
_RSNA_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_CELL = re.compile(r"[\n,;\"'\t\[\]]+")


@dataclass(frozen=True)
class _Listed:
    """A test set whose list names the images as the part does, or by the ids of a mapping."""

    test_set: str
    mapped: bool = False


# part -> the test sets that are known to be in it
_LISTED: Mapping[str, tuple[_Listed, ...]] = {
    "chexpert": (_Listed("chexpert-5x200"),),
    "chestxray8": (_Listed("rsna_pneumonia", mapped=True),),
    "retina_part1": (_Listed("odir_retina"),),
}
_FOLDERS: Mapping[str, tuple[Folder, ...]] = {
    key: (
        Folder("five_retina", r"^13_FIVES/"),
        Folder("refuge_retina", r"^25_REFUGE/"),
        Folder("dr_regular", r"^37_DeepDRiD/"),
        Folder("odir_retina", r"200x3/"),
    )
    for key in ("retina_part1", "retina_part2", "retina_part3")
}


def names(key: str, data: AnyPath, lists: Mapping[str, AnyPath | None], by: str) -> Names:
    """The images of the test sets by their names in a source.

    Args:
      key: of the source; of one that is no part of UniMed, no names are known.
      data: the folder of the test sets.
      lists: test set of the suite -> the file that lists it; None: it is not there.
      by: `group` (all images of their patients) or `image`.

    Raises:
      CorpusError: the list of a set that is in the part is missing, or names none of its images.
    """
    if key not in PARTS:
        return Names()
    part = PARTS[key]
    listed: dict[str, tuple[str, str]] = {}
    for overlap in _LISTED.get(key, ()):
        if overlap.test_set not in lists:
            continue
        path = lists[overlap.test_set]
        if path is None:
            raise CorpusError(
                f"images of {overlap.test_set} are in {key}, and its list is not in {data}: "
                "`unimed-jax evaluate --suite=unimed21 --where` tells where to get it"
            )
        texts = _mapped(data, path) if overlap.mapped else _cells(path)
        matches = (match for text in texts for match in re.finditer(part.identity, text))
        how = "the mapping of RSNA" if overlap.mapped else "name"
        found = {identity(match, by): (overlap.test_set, how) for match in matches}
        if not found:
            raise CorpusError(f"{path} names no image of {key}; names must match {part.identity}")
        listed |= found
    folders = tuple(folder for folder in _FOLDERS.get(key, ()) if folder.test_set in lists)
    return Names(part.identity, by, listed, folders)


def _cells(path: AnyPath) -> list[str]:
    """The texts of a table, whatever its format."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    return [cell for cell in map(str.strip, _CELL.split(text)) if cell]


def _mapped(data: AnyPath, path: AnyPath) -> list[str]:
    """The names of NIH's images that are RSNA's test images."""
    mapping = first_file(data, _RSNA_PLACES)
    if mapping is None:
        raise CorpusError(
            f"{RSNA_MAPPING} is not in {data}: it tells which of NIH's images are RSNA's; get it "
            f"from {_RSNA_URL}"
        )
    try:
        entries = json.loads(mapping.read_text("utf-8"))
        nih = {str(entry["subset_img_id"]).lower(): str(entry["img_id"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{mapping} is not RSNA's mapping: {error!r}") from error
    ids = {found[0].lower() for cell in _cells(path) if (found := _RSNA_ID.search(cell))}
    if unknown := sorted(ids - nih.keys()):
        raise CorpusError(
            f"{mapping} lacks {len(unknown)} of the {len(ids)} images of {path}, for example "
            f"{unknown[0]}"
        )
    # a list may also name NIH's images themselves
    return [*(nih[found] for found in sorted(ids)), *_cells(path)]
