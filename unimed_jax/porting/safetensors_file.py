"""Reading a safetensors file with errors a user can act on."""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from input_pipeline.errors import WeightsError


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name. Raises WeightsError if it is not a whole safetensors file."""
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"cannot read {path} as safetensors: {error}") from error
