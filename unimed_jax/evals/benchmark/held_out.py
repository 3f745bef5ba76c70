"""The images of a suite, for conversions that keep them out of training: names and pictures."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from input_pipeline.conversion import suite_overlaps
from input_pipeline.conversion.held_out import HeldOut, Pictures
from input_pipeline.io import images as image_files
from input_pipeline.io.errors import CorpusError, UserError
from input_pipeline.io.files import write_bytes_atomically
from input_pipeline.io.perceptual_hash import need_library, perceptual_hash
from input_pipeline.io.threads import map_ahead
from unimed_jax.evals.benchmark.images import find, open_set
from unimed_jax.evals.benchmark.spec import FindingsLayout, SetSpec, load_suite

_CACHE = ".{}_pictures.npz"
_MIN_BITS = 64  # that are set in a hash; those of pictures with any detail have about 128 of 256


def of_suite(suite: str, data: Path, source: str, by: str) -> HeldOut:
    """The images of a suite that must not be in a source.

    Args:
      suite: name of a suite.
      data: the folder of its test sets, as for `evaluate --data`; hashes of the pictures are kept
        in a hidden file of it, if it can be written.
      source: name of the source of the conversion.
      by: `group`: all images of the patients that names tell; `image`: only those.

    Raises:
      UserError: the folder holds none of the sets, or lacks a list that is needed.
    """
    need_library()
    specs = [s for s in load_suite(suite).sets if not isinstance(s.layout, FindingsLayout)]
    lists = {spec.key: find(spec.layout, data) for spec in specs}
    tables = {key: path if path and path.is_file() else None for key, path in lists.items()}
    names = suite_overlaps.names(source, data, tables, by)
    pictures, unread = _pictures(suite, specs, data)
    if not pictures.sets and not names.listed:
        raise UserError(f"--suite_data={data}: there is no image of a test set of {suite}")
    facts = {
        "suite": suite,
        "names": len(names.listed),
        "pictures": {spec.key: pictures.sets.count(spec.key) for spec in specs},
        "without_pictures": unread,
    }
    return HeldOut(names, pictures, facts)


def _pictures(suite: str, specs: list[SetSpec], data: Path) -> tuple[Pictures, dict[str, str]]:
    """The pictures of the sets that are there; and why those of others could not be read."""
    opened, unread = [], {}
    for spec in specs:
        try:
            opened.append((spec.key, open_set(spec, data)))
        except CorpusError as error:
            unread[spec.key] = str(error)
    ids = [(key, name) for key, found in opened for name in found.ids]
    state = hashlib.sha256(repr([(key, name, _state(data / name)) for key, name in ids]).encode())
    cache = data / _CACHE.format(suite)
    kept = _load(cache, state.hexdigest())
    if kept is None:
        encoded = (data for _, found in opened for data in found.read(0, len(found.ids)))
        bar = tqdm(encoded, total=len(ids), desc=f"hashing {suite}", unit=" images", delay=1)
        hashed = list(map_ahead(_hashes, bar))
        sha256 = np.frombuffer(b"".join(digest for digest, _ in hashed), np.uint8).reshape(-1, 32)
        phash = np.stack([h for _, h in hashed]) if hashed else np.empty((0, 32), np.uint8)
        kept = sha256, phash
        _save(cache, state.hexdigest(), *kept)
    sha256, phash = kept
    usable = np.unpackbits(phash, axis=1).sum(axis=1) >= _MIN_BITS  # it decodes, and is not flat
    chosen = [entry for entry, good in zip(ids, usable, strict=True) if good]
    digests = frozenset(row.tobytes() for row in sha256)
    sets, found_ids = tuple(key for key, _ in chosen), tuple(name for _, name in chosen)
    return Pictures(digests, phash[usable], sets, found_ids), unread


def _hashes(data: bytes) -> tuple[bytes, np.ndarray]:
    """SHA-256 and perceptual hash of a file; the latter is zero for one that does not decode."""
    try:
        found = perceptual_hash(image_files.decode(data)[0])
    except ValueError:
        found = np.zeros(32, np.uint8)
    return hashlib.sha256(data).digest(), found


def _state(path: Path) -> tuple[int, int]:
    """What changes with a file; zeros for an image that is in no file of its own."""
    if not path.is_file():
        return 0, 0
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _load(cache: Path, state: str) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        with np.load(cache) as kept:
            if str(kept["state"]) == state:
                return kept["sha256"], kept["phash"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def _save(cache: Path, state: str, sha256: np.ndarray, phash: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, state=np.array(state), sha256=sha256, phash=phash)
    try:
        write_bytes_atomically(cache, buffer.getvalue())
    except UserError:  # the folder is read-only: they are computed again
        return
