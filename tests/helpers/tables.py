"""A table of images to convert, with one damaged image."""

import csv
import json
from pathlib import Path

from helpers import unimed_layouts as layouts

CAPTIONS = json.dumps({"version": 1, "modalities": {"ct": {"*": ["{label} on CT"]}}})


def put_table(folder: Path, num_rows: int, size=(40, 30)) -> Path:
    """A CSV of rows over 20 images, one of them damaged, in two splits."""
    for n in range(20):
        (folder / f"{n}.img").write_bytes(layouts.encoded(n, ("JPEG", "TIFF")[n % 2], size))
    (folder / "7.img").write_bytes(b"damaged")
    (folder / "captions.json").write_text(CAPTIONS)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "modality", "source", "split", "key"])
        for n in range(num_rows):
            split = "val" if n % 5 == 0 else "train"
            writer.writerow([f"{n % 20}.img", f"label {n % 3}", "ct", "src", split, f"k{n}"])
    return folder / "table.csv"
