"""The classes of a corpus with masks: their names, and the label values or colours they have."""

import re
from dataclasses import dataclass

import numpy as np

from input_pipeline.io.label_pictures import LabelPicture

ANY_VALUE = "*"  # every mask value above 0 that is not named

_COLOUR = re.compile(r"#[0-9a-f]{6}")
_LARGEST = (1 << 16) - 1
_MOST_CLASSES = 255  # masks are uint8 in records
_MOST_VALUES = 16  # of a drawing, greys or colours; a picture has more
_DARK, _BRIGHT, _MOST_GREY = 64, 191, 0.05  # of a mask of two values in a lossy format

SPLIT = "mask of compressed black and white, split at half of its range"
SEVERAL_VALUES = "mask with several values above 0, which all count as the class"


@dataclass(frozen=True)
class Classes:
    """The classes of a mask file: names in the order of label values, and their values in files.

    A value is a number, a colour such as ``#00ff00``, or `ANY_VALUE`.
    """

    names: tuple[str, ...]
    values: tuple[int | str, ...]  # ANY_VALUE at most once

    @classmethod
    def parse(cls, text: str) -> "Classes":
        """`vessel`: all values above 0. `liver,kidney`: 1 and 2. `disc=*,cup=128`: as given.

        Raises ValueError for anything else.
        """
        parts = [part.strip().partition("=") for part in text.split(",")]
        names = tuple(name.strip() for name, _, _ in parts)
        given = [value.strip() for _, sign, value in parts if sign]
        if not all(names) or len(set(names)) < len(names) or 0 < len(given) < len(names):
            raise ValueError("expected NAME,NAME,... or NAME=VALUE,NAME=VALUE,...")
        values: tuple[int | str, ...]
        if not given:
            values = (ANY_VALUE,) if len(names) == 1 else tuple(range(1, len(names) + 1))
        else:
            values = tuple(_value(text) for text in given)
        numbers = [value for value in values if isinstance(value, int)]
        colours = [value for value in values if isinstance(value, str) and value != ANY_VALUE]
        if len(set(values)) < len(values) or any(not 0 < v <= _LARGEST for v in numbers):
            raise ValueError(
                f"values must differ and be 1 to {_LARGEST}, colours such as #00ff00, or * for all "
                "others"
            )
        if numbers and colours:
            raise ValueError("values are either numbers or colours")
        if len(names) > _MOST_CLASSES:
            raise ValueError(f"{len(names)} classes, more than {_MOST_CLASSES}")
        return cls(names, values)

    def label_map(self, values: np.ndarray) -> np.ndarray:
        """Values in a file, integers, -> uint8 label values.

        Raises ValueError for a value of no class.
        """
        labels = self.label_map_of_some(values)
        if (unknown := self.without_class(values, labels)).size:
            known = dict(zip(self.names, self.values, strict=True))
            raise ValueError(
                f"mask values of no class: {unknown[:5].tolist()}; the classes are {known}"
            )
        return labels

    def label_map_of_some(self, values: np.ndarray) -> np.ndarray:
        """As `label_map`, but values of no class become 0."""
        labels = np.zeros(values.shape, np.uint8)
        if ANY_VALUE in self.values:
            labels[values > 0] = self.values.index(ANY_VALUE) + 1
        for label, value in enumerate(self.values, 1):
            if isinstance(value, int):
                labels[values == value] = label
        return labels

    def without_class(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The distinct values above 0 that are background in a label map of them."""
        return np.unique(values[(labels == 0) & (values > 0)])

    def label_map_of_picture(self, picture: LabelPicture) -> tuple[np.ndarray, tuple[str, ...]]:
        """The content of a mask file -> uint8 label values (H, W), and notes.

        Raises ValueError, with the remedy, for what has no class or no certain meaning.
        """
        if picture.lossy:
            return self._of_lossy(picture), (SPLIT,)
        if any(isinstance(value, str) and value != ANY_VALUE for value in self.values):
            return self._of_colours(picture), ()
        if not picture.readings:
            assert picture.colours is not None, picture
            return self._not_black(picture.colours), ()
        return self._of_readings(picture)

    def _of_readings(self, picture: LabelPicture) -> tuple[np.ndarray, tuple[str, ...]]:
        fitting, reasons = [], []
        for values in picture.readings:
            try:
                fitting.append((self.label_map(values), values))
            except ValueError as error:
                reasons.append(str(error))
        if not fitting:
            raise ValueError("; or as stored, ".join(dict.fromkeys(reasons)))
        if any(not np.array_equal(fitting[0][0], labels) for labels, _ in fitting):
            shown, stored = (np.unique(values)[:5].tolist() for values in picture.readings)
            raise ValueError(
                f"mask values are {shown} as displayed and {stored} as stored, and both are of "
                "classes: save the mask as PNG of 8 bits without a palette"
            )
        labels, values = fitting[0]
        if ANY_VALUE not in self.values:
            return labels, ()
        several = np.unique(values[labels == self.values.index(ANY_VALUE) + 1])
        if len(several) <= _MOST_VALUES:
            return labels, (SEVERAL_VALUES,) if len(several) > 1 else ()
        if len(self.values) > 1:
            raise ValueError(
                f"{len(several)} values of the mask would be {ANY_VALUE}: was it compressed or "
                "interpolated? Save it with the values of its classes alone"
            )
        if values.max() <= 255 and _is_black_and_white(values):  # compressed once
            return _split(values), (SPLIT,)
        if np.mean(values[:, 1:] != values[:, :-1]) > 0.5:
            raise ValueError(
                f"the mask is a picture: it has {len(several)} grey values, and neighbours differ"
            )
        return labels, (SEVERAL_VALUES,)

    def _of_lossy(self, picture: LabelPicture) -> np.ndarray:
        """Two values of which compression has made many; more are not told apart."""
        remedy = "save the mask as PNG"
        if not picture.readings:
            raise ValueError(f"a lossy format changes the colours of a mask: {remedy}")
        if len(self.values) > 1:
            raise ValueError(f"a lossy format changes the values of several classes: {remedy}")
        values = picture.readings[0]
        if not values.any():
            return np.zeros(values.shape, np.uint8)
        if not _is_black_and_white(values):
            raise ValueError(
                f"a mask in a lossy format that is not black and white (values up to "
                f"{values.max()}): {remedy}"
            )
        return _split(values)

    def _of_colours(self, picture: LabelPicture) -> np.ndarray:
        """Label values of the classes whose colours are named."""
        colours = picture.colours
        if colours is None:
            if picture.readings[0].max() > 255:
                raise ValueError("the mask has grey values above 255, but the classes are colours")
            colours = np.repeat(picture.readings[0][..., None], 3, axis=-1)
        packed = (colours.astype(np.int64) @ [1 << 16, 1 << 8, 1]).astype(np.int64)
        labels = np.zeros(packed.shape, np.uint8)
        if ANY_VALUE in self.values:
            labels[packed > 0] = self.values.index(ANY_VALUE) + 1
            _check_drawn(np.unique(packed))
        for label, value in enumerate(self.values, 1):
            if isinstance(value, str) and value != ANY_VALUE:
                labels[packed == int(value[1:], 16)] = label
        if (unknown := self.without_class(packed, labels)).size:
            raise ValueError(
                f"mask colours of no class: {_colours(unknown)}; the classes are "
                f"{dict(zip(self.names, self.values, strict=True))}"
            )
        return labels

    def _not_black(self, colours: np.ndarray) -> np.ndarray:
        """The only class, of which every colour but black is."""
        distinct = np.unique(colours.astype(np.int64) @ [1 << 16, 1 << 8, 1])
        _check_drawn(distinct)
        if self.values != (ANY_VALUE,) or distinct[0] != 0:
            raise ValueError(
                f"the mask has the colours {_colours(distinct)}: name the colour of each class, "
                "--classes=NAME=#00ff00,..."
            )
        return np.where(colours.any(axis=-1), 1, 0).astype(np.uint8)


def _value(text: str) -> int | str:
    """Of a class. Raises ValueError."""
    if text == ANY_VALUE or _COLOUR.fullmatch(text.lower()):
        return text.lower()
    return int(text)


def _colours(packed: np.ndarray) -> str:
    return ", ".join(f"#{value:06x}" for value in packed[:5].tolist())


def _check_drawn(colours: np.ndarray) -> None:
    """Raises ValueError for the distinct colours of a picture."""
    if len(colours) > _MOST_VALUES:
        raise ValueError(f"the mask is a picture of {len(colours)} colours, not of labels")


def _is_black_and_white(values: np.ndarray) -> bool:
    """Whether compression may have made these uint8 values (H, W) of 0 and 255.

    Between black and white it makes lines of grey, and no areas.
    """
    grey = (values >= _DARK) & (values <= _BRIGHT)
    areas = np.lib.stride_tricks.sliding_window_view(grey, tuple(np.minimum(grey.shape, 3)))
    few = grey.mean() <= _MOST_GREY and not areas.all(axis=(2, 3)).any()
    return bool(values.max() > _BRIGHT and few)


def _split(values: np.ndarray) -> np.ndarray:
    """1 for the brighter half of the values of uint8, 0 for the other."""
    return np.where(values > (_DARK + _BRIGHT) // 2, 1, 0).astype(np.uint8)
