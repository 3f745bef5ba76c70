"""DICOM files as conversion shows them, and the windows of PS3.3 literally."""

import numpy as np
from helpers.dicom_files import dicom_file

from input_pipeline.io import images

RAMP = np.arange(2001, dtype=np.uint16).reshape(3, 667)


def decoded(data):
    """The pixels that are stored, and the notes."""
    picture, notes = images.decode(data)
    return np.asarray(picture).astype(int), notes


def shown(*args, **tags):
    return decoded(dicom_file(*args, **tags))


def windowed(values, center, width, function="LINEAR"):
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, literally, pixel by pixel; 0 to 255."""
    out = []
    for x in np.asarray(values, float).ravel():
        if function == "SIGMOID":
            y = 1 / (1 + np.exp(-4 * (x - center) / width))
        elif function == "LINEAR_EXACT":
            if x <= center - width / 2:
                y = 0
            elif x > center + width / 2:
                y = 1
            else:
                y = (x - center) / width + 0.5
        elif x <= center - 0.5 - (width - 1) / 2:
            y = 0
        elif x > center - 0.5 + (width - 1) / 2:
            y = 1
        else:
            y = (x - (center - 0.5)) / (width - 1) + 0.5
        out.append(y * 255)
    return np.reshape(out, np.shape(values))


WINDOW = {"WindowCenter": 1000, "WindowWidth": 2000}
