"""Distributions of captions by length, on which the cost of a step with text buckets depends."""

import dataclasses
import math

from input_pipeline.io.errors import UserError


@dataclasses.dataclass(frozen=True)
class CaptionLengths:
    """A distribution of captions by length.

    Attributes:
      tokens: lengths with [CLS] and [SEP], ascending; longer captions are cut.
      shares: share of captions of each length.
    """

    tokens: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "CaptionLengths":
        """Reads ``TOKENS:SHARE,TOKENS:SHARE,...``.

        Raises:
          UserError: the text has another form, or lengths or shares that cannot be.
        """
        try:
            pairs = sorted((int(t), float(s)) for t, s in (p.split(":") for p in text.split(",")))
            tokens, shares = zip(*pairs, strict=True)
        except ValueError:
            pairs, tokens, shares = [], (), ()
        if not pairs or tokens[0] < 1 or min(shares) < 0 or not math.isclose(sum(shares), 1.0):
            raise UserError(
                f"{text!r} is no distribution of caption lengths; expected TOKENS:SHARE,... with "
                "shares that add up to 1, such as 16:0.5,40:0.3,200:0.2"
            )
        return cls(tokens, shares)

    def __str__(self) -> str:
        return ",".join(f"{t}:{s:g}" for t, s in zip(self.tokens, self.shares, strict=True))


_SIXTEENTHS = (14, 17, 20, 23, 26, 29, 32, 36, 41, 48, 57, 69, 86, 114, 169, 256)
PUBLISHED = CaptionLengths(_SIXTEENTHS, (1 / 16,) * 16)
"""Projection for the thirteen published parts together: ``benchmarks/text_buckets.py``."""
