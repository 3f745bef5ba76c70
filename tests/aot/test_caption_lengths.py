"""Distributions of captions by length, as flags state them."""

import pytest

from input_pipeline.io.errors import UserError
from unimed_jax.aot.caption_lengths import PUBLISHED, CaptionLengths


def test_a_distribution_is_read_and_written():
    found = CaptionLengths.parse("200:0.25,16:0.5,40:0.25")
    assert found == CaptionLengths((16, 40, 200), (0.5, 0.25, 0.25))
    assert str(found) == "16:0.5,40:0.25,200:0.25"
    assert CaptionLengths.parse(str(PUBLISHED)) == PUBLISHED


@pytest.mark.parametrize("text", ["", "16", "16:0.5", "0:1", "16:x", "16:1.5,20:-0.5", "16:1:1"])
def test_what_is_no_distribution_is_refused(text):
    with pytest.raises(UserError, match="expected TOKENS:SHARE"):
        CaptionLengths.parse(text)
