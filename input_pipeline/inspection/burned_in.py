"""Text burned into images, found by an OCR library; a person must review the findings.

RapidOCR (PP-OCR models, in the wheel) finds printed text of about 8 pixels and more. It misses
small or faint print and handwriting, and it sometimes mistakes structures for letters: its count
is a hint, not a proof of absence.
"""

import dataclasses
import re
from typing import TYPE_CHECKING, cast

import numpy as np

from input_pipeline.io.errors import ConfigError

if TYPE_CHECKING:
    from rapidocr.utils.output import RapidOCROutput

# A date, or five or more digits: may identify a person, unlike side marks and scales.
_IDENTIFIER = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{2,4}|\d{5,}|\b(name|patient|dob|mrn)\b", re.I)
_MIN_SCORE = 0.8


@dataclasses.dataclass(frozen=True)
class BurnedInText:
    """Texts read in an image; `like_identifier` if one looks like a date, a number or a name."""

    texts: tuple[str, ...]
    like_identifier: bool


class TextDetector:
    """Reads text in images."""

    def __init__(self) -> None:
        """Raises ConfigError if the extra [inspect] is not installed."""
        try:
            from rapidocr import RapidOCR
        except ModuleNotFoundError as error:
            raise ConfigError(
                "finding burned-in text needs rapidocr and onnxruntime: "
                "pip install 'unimed_jax[inspect]', or give --text_images=0"
            ) from error
        self._ocr = RapidOCR(
            params={
                "Global.log_level": "error",
                "Det.limit_type": "max",  # large images are shrunk, small ones left as they are
                "Det.limit_side_len": 960,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def __call__(self, image: np.ndarray) -> BurnedInText:
        """Text of two characters and more in a uint8 image (H, W, 3), RGB."""
        result = self._ocr(np.ascontiguousarray(image[:, :, ::-1]), use_cls=False)
        # The stubs allow the outputs of single stages; detection and recognition both run here.
        result = cast("RapidOCROutput", result)
        pairs = zip(result.txts or (), result.scores or (), strict=True)
        texts = tuple(t.strip() for t, score in pairs if score >= _MIN_SCORE)
        texts = tuple(text for text in texts if len(re.findall(r"\w", text)) >= 2)
        return BurnedInText(texts, any(_IDENTIFIER.search(text) for text in texts))
