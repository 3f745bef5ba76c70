"""One pass over the images of a corpus or a folder: sizes, checksums, perceptual hashes, lengths.

About 200 bytes are kept per image, so that millions fit into memory; a report reads its images
again by their location.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from input_pipeline import manifest as manifest_lib
from input_pipeline import records
from input_pipeline.io import files
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath
from input_pipeline.io.perceptual_hash import perceptual_hash

_MAX_CAPTION_TOKENS = 4096  # longer captions are counted as so long


@dataclasses.dataclass(frozen=True, slots=True)
class ScannedImage:
    """The metadata of an image.

    Attributes:
      corpus: name of the corpus or folder; `split` is empty in a folder.
      file: shard or image file; `position` is the record's number in a shard, -1 in a folder.
      sha256: of the encoded image, 32 bytes.
      phash: perceptual hash, uint8 (32,): the signs of low DCT frequencies.
      caption_lengths: in tokens, or in words if no tokenizer was given.
    """

    corpus: str
    split: str
    id: str
    source: str
    modality: str
    labels: tuple[str, ...]
    file: AnyPath
    position: int
    width: int
    height: int
    sha256: bytes
    phash: np.ndarray
    caption_lengths: tuple[int, ...]


def scan_corpus(
    directory: AnyPath, tokenizer: AnyPath | None = None, workers: int = 1
) -> list[ScannedImage]:
    """Every image of a corpus directory, in the order of its shards.

    Raises:
      CorpusError: there is no corpus, a shard is damaged, or an image does not decode.
    """
    manifest = manifest_lib.load(directory)
    jobs = []
    for split, content in manifest.splits.items():
        manifest_lib.verify(directory, manifest, split)
        jobs += [(directory / shard.file, manifest.name, split) for shard in content.shards]
    scan = functools.partial(_scan_shard, tokenizer=tokenizer)
    return [image for part in _map(scan, jobs, workers) for image in part]


def scan_folder(directory: AnyPath, workers: int = 1) -> list[ScannedImage]:
    """Every file of a folder and its subfolders that is an image; others are skipped.

    Raises CorpusError if there is none.
    """
    jobs = [(path, directory) for path in files.find_files(directory)]
    images = [image for image in _map(_scan_file, jobs, workers, chunk=64) if image]
    if not images:
        raise CorpusError(f"{directory} holds neither a corpus (manifest.json) nor any image")
    return images


def scan(
    directory: AnyPath, tokenizer: AnyPath | None = None, workers: int = 1
) -> list[ScannedImage]:
    """`scan_corpus` where there is a manifest, else `scan_folder`."""
    if (directory / manifest_lib.FILE_NAME).exists():
        return scan_corpus(directory, tokenizer, workers)
    if not directory.is_dir():
        raise CorpusError(f"{directory} is not a directory")
    return scan_folder(directory, workers)


def fetch(
    images: Sequence[ScannedImage], indices: Iterable[int]
) -> Iterator[tuple[int, Image.Image]]:
    """(index, image) of some scanned images, RGB, one at a time, in the order of the files."""
    places: dict[AnyPath, dict[int, list[int]]] = {}
    for index in indices:
        image = images[index]
        places.setdefault(image.file, {}).setdefault(image.position, []).append(index)
    for file, positions in places.items():
        for position, data in _encoded(file, set(positions)):
            for index in positions[position]:
                yield index, _decode(data, str(file)).convert("RGB")


def sample(images: Sequence[ScannedImage], members: Sequence[int], count: int) -> list[int]:
    """`count` of the indices `members`, chosen as if at random, the same for the same ids."""

    def rank(index: int) -> bytes:
        return hashlib.blake2b(images[index].id.encode()).digest()

    return sorted(members, key=rank)[:count]


def _map(function: Callable, jobs: Sequence, workers: int, chunk: int = 1) -> Iterator:
    if workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")  # TensorFlow's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), context) as pool:
        yield from pool.map(function, jobs, chunksize=chunk)


def _scan_shard(job: tuple[AnyPath, str, str], tokenizer: AnyPath | None) -> list[ScannedImage]:
    import tensorflow as tf

    path, corpus, split = job
    scanned, captions = [], []
    try:
        for position, data in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
            record = records.decode(data)
            image = _decode(record.image, f"{path}, sample {record.id!r}")
            captions.append(record.captions)
            scanned.append(
                ScannedImage(
                    corpus=corpus,
                    split=split,
                    id=record.id,
                    source=record.source,
                    modality=record.modality,
                    labels=record.labels,
                    file=path,
                    position=position,
                    width=image.width,
                    height=image.height,
                    sha256=hashlib.sha256(record.image).digest(),
                    phash=perceptual_hash(image),
                    caption_lengths=(),
                )
            )
    except tf.errors.OpError as error:
        raise CorpusError(f"cannot read shard {path}: {error.message}") from error
    lengths = _lengths(captions, tokenizer)
    return [
        dataclasses.replace(entry, caption_lengths=counts)
        for entry, counts in zip(scanned, lengths, strict=True)
    ]


def _scan_file(job: tuple[AnyPath, AnyPath]) -> ScannedImage | None:
    path, root = job
    data = files.read_bytes(path)
    try:
        image = _decode(data, str(path))
    except CorpusError:
        return None
    return ScannedImage(
        corpus=root.name,
        split="",
        id=files.relative_name(path, root),
        source=root.name,
        modality="",
        labels=(),
        file=path,
        position=-1,
        width=image.width,
        height=image.height,
        sha256=hashlib.sha256(data).digest(),
        phash=perceptual_hash(image),
        caption_lengths=(),
    )


def _decode(data: bytes, where: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise CorpusError(f"{where} is not an image") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise CorpusError(f"{where} cannot be decoded: {error}") from error


def _encoded(file: AnyPath, positions: set[int]) -> Iterator[tuple[int, bytes]]:
    """(position, encoded image) of some records of a shard, or of an image file."""
    if positions == {-1}:
        yield -1, files.read_bytes(file)
        return
    import tensorflow as tf

    dataset = tf.data.TFRecordDataset(str(file)).take(max(positions) + 1)
    for position, data in enumerate(dataset.as_numpy_iterator()):
        if position in positions:
            yield position, records.decode(data).image


def _lengths(captions: Sequence[Sequence[str]], tokenizer: AnyPath | None) -> list[tuple[int, ...]]:
    distinct = sorted({text for texts in captions for text in texts})
    if tokenizer is None:
        counts = {text: len(text.split()) for text in distinct}
    else:
        from input_pipeline.tokenizer import Tokenizer

        encode = Tokenizer(tokenizer, _MAX_CAPTION_TOKENS)
        counts = {}
        for begin in range(0, len(distinct), 256):
            batch = distinct[begin : begin + 256]
            lengths = np.count_nonzero(encode(batch) != encode.pad_id, axis=1)
            counts |= dict(zip(batch, lengths.tolist(), strict=True))
    return [tuple(counts[text] for text in texts) for texts in captions]
