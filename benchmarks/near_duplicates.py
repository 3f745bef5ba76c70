"""Distances of copies of real images from their originals, and scaling of the pair search.

    python benchmarks/near_duplicates.py MINIMED

MINIMED is a folder with `metadata.csv` (columns image, source). Prints, in bits of 256, the
distance of altered copies, the distance of each image to its nearest neighbour of the same source,
the time of a hash, and what `near_pairs` compares for random hashes.
"""

import argparse
import csv
import io
import pathlib
import random
import time

import numpy as np
from PIL import Image, ImageEnhance

from input_pipeline.inspection import duplicates
from input_pipeline.io.perceptual_hash import COPY_DISTANCE, perceptual_hash

_PER_SOURCE, _ALTERED = 90, 30


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def _scaled(image: Image.Image, share: float) -> Image.Image:
    size = (int(image.width * share), int(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS)


def _cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


ALTERATIONS = {
    "JPEG quality 50": lambda image: _jpeg(image, 50),
    "half size": lambda image: _scaled(image, 0.5),
    "0.6 of the size, JPEG quality 70": lambda image: _jpeg(_scaled(image, 0.6), 70),
    "brightness x 1.2": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "1 % cropped on every side": lambda image: _cropped(image, 0.01),
    "3 % cropped on every side": lambda image: _cropped(image, 0.03),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    by_source: dict[str, list[pathlib.Path]] = {}
    with (folder / "metadata.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            by_source.setdefault(row["source"], []).append(folder / row["image"])
    choose = random.Random(0)
    distances: dict[str, list[int]] = {name: [] for name in ALTERATIONS}
    hashing = num_hashed = 0.0
    print(f"nearest other image, of {_PER_SOURCE} of a source: smallest, 5th percentile, median")
    for source, files in by_source.items():
        paths = choose.sample(files, min(_PER_SOURCE, len(files)))
        images = [Image.open(path).convert("RGB") for path in paths]
        start = time.process_time()
        hashes = np.stack([perceptual_hash(image) for image in images])
        hashing += time.process_time() - start
        num_hashed += len(images)
        apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(-1, dtype=int)
        np.fill_diagonal(apart, 256)
        low, fifth, median = np.percentile(apart.min(axis=1), [0, 5, 50])
        print(f"  {source:<28}{low:>5.0f}{fifth:>5.0f}{median:>5.0f}")
        for index in range(min(_ALTERED, len(images))):
            for name, alter in ALTERATIONS.items():
                copy = perceptual_hash(alter(images[index]))
                distances[name].append(int(np.bitwise_count(copy ^ hashes[index]).sum()))
    print("copies: median, 99th percentile, largest")
    for name, found in distances.items():
        middle, high = np.percentile(found, [50, 99])
        print(f"  {name:<34}{middle:>5.0f}{high:>5.0f}{max(found):>5}")
    print(f"hashing: {1000 * hashing / num_hashed:.1f} ms of CPU per image")
    for count in (10_000, 40_000, 160_000):
        hashes = np.random.default_rng(0).integers(0, 256, (count, 32), np.uint8)
        start = time.process_time()
        duplicates.near_pairs(hashes, COPY_DISTANCE)
        print(f"near pairs of {count:,} random hashes: {time.process_time() - start:.1f} s of CPU")


if __name__ == "__main__":
    main()
