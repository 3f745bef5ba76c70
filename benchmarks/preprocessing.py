"""Differences of the evaluation preprocessing from torchvision's Resize + CenterCrop.

    python benchmarks/preprocessing.py DIR --size=128 --every=10

DIR holds images; torchvision runs in a separate process. Prints, in grey levels of 0 to 255, the
mean and the largest absolute difference over all pixels, and the mean of the worst image.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

import numpy as np
import tensorflow as tf

from input_pipeline import transforms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="JPEG and PNG files below it are used")
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    args = parser.parse_args()
    kinds = (".jpg", ".jpeg", ".png")
    paths = sorted(p for p in args.directory.rglob("*") if p.suffix.lower() in kinds)[:: args.every]
    if not paths:
        sys.exit(f"error: no image below {args.directory}")
    encoded = {str(i): path.read_bytes() for i, path in enumerate(paths)}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        arrays = {name: np.frombuffer(data, np.uint8) for name, data in encoded.items()}
        np.savez(source, size=args.size, **arrays)
        reference = ROOT / "tests" / "torch_reference.py"
        command = [sys.executable, reference, "resize_crop", source, target]
        subprocess.run(command, check=True)
        expected = dict(np.load(target))

    ours = tf.function(lambda data: transforms.resize_and_center_crops(data[None], args.size)[0])
    means, largest = [], 0
    for name, data in encoded.items():
        difference = np.abs(ours(tf.constant(data)).numpy().astype(int) - expected[name])
        means.append(difference.mean())
        largest = max(largest, difference.max())
    print(
        f"{len(paths)} images at {args.size} px: mean {np.mean(means):.5f}, largest {largest}, "
        f"mean of the worst image {max(means):.5f} grey levels"
    )


if __name__ == "__main__":
    main()
