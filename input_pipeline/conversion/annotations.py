"""What annotation files say about images, whatever the layout of the files.

A part of the corpus is distributed in one or more layouts. Each has a function that looks for its
files and reads them as `Annotation`s; `sources/unimed.py` makes rows of these.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath

OFFICIAL, DERIVED = "official", "unimed"


@dataclasses.dataclass(frozen=True)
class PartOptions:
    """Flags of a part."""

    raw: Annotated[AnyPath, "folder of the data as its source delivers it, or the parent folder"]
    released_captions: Annotated[
        bool, "use the generated captions of the annotation file (default: only original texts)"
    ] = False
    held_out: Annotated[
        AnyPath | None,
        "unimed21: all images of that suite, by the files of --suite_data; or a text, CSV or JSON "
        "file that names images of evaluation sets: they are rejected",
    ] = None
    held_out_by: Annotated[
        str, "group: all images of their patients or articles; or image (group)"
    ] = "group"
    exclude_classes: Annotated[str | None, "classes to reject: myopia,cataract"] = None
    official_split: Annotated[str, "required, or ignore: all rows become train (required)"] = (
        "required"
    )
    layout: Annotated[
        str | None,
        "official: files as their owner distributes them; unimed: files derived by the authors of "
        "UniMed (what is found, unimed first)",
    ] = None
    corpus: Annotated[
        str,
        "clean, or published: made as UniMed was, for comparisons. That sets "
        "--official_split=ignore, and --released_captions where the files have them; it takes the "
        "training lists of RadImageNet and ROCOv2 alone, and makes two samples of the two texts of "
        "an image of LLaVA-Med HQ-60k (clean)",
    ] = "clean"
    encoding: Annotated[
        str, "of tables that are neither UTF-8 nor begin with a byte order mark: cp1252"
    ] = ""

    @property
    def is_published(self) -> bool:
        """Whether the corpus is made as UniMed was."""
        return self.corpus == "published"

    @property
    def takes_released_captions(self) -> bool:
        """Whether generated captions of annotation files are used, where there are any."""
        return self.released_captions or self.is_published

    @property
    def takes_official_split(self) -> bool:
        """Whether official test and validation images stay out of train."""
        return self.official_split != "ignore" and not self.is_published


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What annotation files say about one image.

    Attributes:
      number: of the row in the input, from 1.
      path: names the image, the same in every layout and on every disk.
      image: where the image is, below --raw.
      texts: written by people for this image.
      labels: class names, and attributes as `name=value`.
      released: generated captions that come with the data.
      split: as the file names it; empty if it says nothing.
      modality: empty if the file says nothing.
      notes: remarks for `conversion.json`.
    """

    number: int
    path: str
    image: str
    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    split: str = ""
    modality: str = ""
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class OpenedAnnotations:
    """Annotation files that were found.

    Attributes:
      files: the files themselves; their checksums go to `conversion.json`. The rows of tables among
        them are images.
      rows: an annotation or rejection per row, to be read once.
      facts: more about the source for `conversion.json`.
      joined_files: other files that were read, such as labels of studies.
    """

    files: tuple[AnyPath, ...]
    rows: Iterator[Annotation | Rejection]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    joined_files: tuple[AnyPath, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which a part is distributed.

    Attributes:
      name: `official` or `unimed`.
      annotations: what `open` looks for, for messages.
      open: opens the annotation files for the options of the part; None if they are not there.
    """

    name: str
    annotations: tuple[str, ...]
    open: Callable[[Any], OpenedAnnotations | None]


def choose(flag: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises CorpusError if a flag has none of its values."""
    if value not in choices:
        raise CorpusError(f"--{flag}={value}: expected {', '.join(choices[:-1])} or {choices[-1]}")


def first_file(raw: AnyPath, paths: tuple[str, ...]) -> AnyPath | None:
    """The first of some files that exists below a folder."""
    return next((raw / path for path in paths if (raw / path).is_file()), None)
