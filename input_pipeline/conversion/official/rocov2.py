"""ROCOv2 as its authors distribute it: a table of captions per split, and tables of concepts.

Concepts are UMLS identifiers; `cui_mapping.csv` has their names. They become labels of images,
which have a caption of their own.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from input_pipeline.conversion.annotations import (
    OFFICIAL,
    Annotation,
    Layout,
    OpenedAnnotations,
    PartOptions,
    first_file,
)
from input_pipeline.conversion.official import table
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.io import files
from input_pipeline.io.cell_text import path_text, value_texts
from input_pipeline.io.files import AnyPath

FOLDERS = ("", "ROCOV2/", "ROCOv2/", "rocov2/")
_SPLITS = ("train", "valid", "test")
_TRAIN = tuple(f"{top}train_captions.csv" for top in FOLDERS)
_IMAGES = ("{0}/{0}", "{0}_images/{0}", "{0}_images", "images/{0}", "{0}")  # of a split
_MODALITIES = {
    "C0040405": "ct",
    "C0024485": "mri",
    "C0041618": "ultrasound",
    "C1306645": "xray",
}


def open_rocov2(options: PartOptions) -> OpenedAnnotations | None:
    """The captions of all splits that are there; those of train alone for the published corpus."""
    train = first_file(options.raw, _TRAIN)
    if train is None:
        return None
    top = train.parent
    splits = _SPLITS[:1] if options.is_published else _SPLITS
    captions = _present(top, (f"{split}_captions.csv" for split in splits))
    concepts = _present(
        top, (f"{split}_concepts{kind}.csv" for split in splits for kind in ("", "_manual"))
    )
    mapping = _present(top, ("cui_mapping.csv",))
    rows = table.rows(captions, ("ID", "Caption"), encoding=options.encoding)
    names, bad_names = _names(mapping, options.encoding)
    cuis, bad_concepts = _concepts(concepts, options.encoding)
    folders = {split: _folder(options.raw, top, split) for split in splits}
    facts = {"image_folder": list(folders.values()), "names_of_concepts": len(names)}
    annotations = itertools.chain(bad_names, bad_concepts, _read(rows, folders, cuis, names))
    return OpenedAnnotations(tuple(captions), annotations, facts, (*concepts, *mapping))


def _present(top: AnyPath, names: Iterable[str]) -> list[AnyPath]:
    return [top / name for name in names if (top / name).is_file()]


def _folder(raw: AnyPath, top: AnyPath, split: str) -> str:
    """Where the images of a split are, below --raw."""
    places = [top / folder.format(split) for folder in _IMAGES]
    return files.relative_name(next((p for p in places if p.is_dir()), places[-1]), raw)


def _names(paths: Sequence[AnyPath], encoding: str) -> tuple[Mapping[str, str], list[Rejection]]:
    """Concept -> its name; and rows that cannot be read."""
    names, bad = {}, []
    for row in table.rows(paths, ("CUI", "Canonical name"), encoding=encoding):
        if isinstance(row, Rejection):
            bad.append(Rejection(f"row of names of concepts left out: {row.reason}"))
        elif row.cells["Canonical name"]:
            names[row.cells["CUI"]] = row.cells["Canonical name"]
    return names, bad


def _concepts(
    paths: Sequence[AnyPath], encoding: str
) -> tuple[Mapping[str, tuple[str, ...]], list[Rejection]]:
    """Image -> its concepts in all tables, each once; and rows that cannot be read."""
    found: dict[str, tuple[str, ...]] = {}
    bad = []
    for row in table.rows(paths, ("ID", "CUIs"), encoding=encoding):
        if isinstance(row, Rejection):
            bad.append(Rejection(f"row of concepts left out: {row.reason}"))
            continue
        image, given = row.cells["ID"], map(str.strip, row.cells["CUIs"].split(";"))
        found[image] = tuple(dict.fromkeys((*found.get(image, ()), *filter(None, given))))
    return found, bad


def _read(
    rows: Iterator[table.TableRow | Rejection],
    folders: Mapping[str, str],
    concepts: Mapping[str, tuple[str, ...]],
    names: Mapping[str, str],
) -> Iterator[Annotation | Rejection]:
    for row in rows:
        if isinstance(row, Rejection):
            yield row
            continue
        name = row.cells["ID"]
        try:
            name = path_text(name)
            if not name:
                raise ValueError("no image")
            found = concepts.get(name, ())
            shown = {_MODALITIES[cui] for cui in found if cui in _MODALITIES}
            split = row.file.partition("_")[0]
            yield Annotation(
                row.number,
                f"{name}.jpg",
                f"{folders[split]}/{name}.jpg",
                texts=value_texts(row.cells["Caption"]),
                labels=tuple(names.get(cui, cui) for cui in found),
                split=split,
                modality=shown.pop() if len(shown) == 1 else "",
            )
        except ValueError as error:
            yield Rejection(str(error), row.number, path=name)


LAYOUT = Layout(OFFICIAL, _TRAIN, open_rocov2)
