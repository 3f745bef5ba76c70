"""Images per second of conversion, compared to a loop that writes webdataset tars, and memory.

    python benchmarks/conversion.py --images=DIR --num=1000 --repeats=3

The same images go, alternately within one run, through a plain loop (read, add to a tar of 1,000
samples, as most preparation scripts do), through that loop with every image decoded first, and
through the conversion in one process, which decodes every image, counts, hashes and syncs. Prints
medians per second of wall time and of CPU time, the fraction of planning, and an estimate for the
images of the whole corpus.

    python benchmarks/conversion.py --plan_rows=10000,200000

plans synthetic tables of these lengths, each in a separate process, and prints the peak memory.
"""

import argparse
import io
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

from PIL import Image

from input_pipeline.conversion import plan as plan_lib
from input_pipeline.conversion.planned_rows import SourceRow
from input_pipeline.conversion.sources.base import CaptionOptions, OpenedSource
from input_pipeline.conversion.write_shards import write_corpus

CORPUS = 5_282_000  # pairs of the published corpus
TEXT = "a text about the image"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="JPEG and PNG files below it are used")
    parser.add_argument("--num", type=int, default=1000, help="images at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--short_side", type=int, help="also convert with this bound")
    parser.add_argument("--price", type=float, default=0.05, help="of a core-hour, any currency")
    parser.add_argument("--plan_rows", help="lengths of tables to plan, for memory: 10000,200000")
    args = parser.parse_args()
    if args.plan_rows:
        _plan_memory([int(n) for n in args.plan_rows.split(",")])
    if args.images:
        _throughput(args)


def _throughput(args: argparse.Namespace) -> None:
    kinds = (".jpg", ".jpeg", ".png")
    paths = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in kinds)
    paths = paths[:: max(1, len(paths) // args.num)][: args.num]
    if not paths:
        sys.exit(f"error: no JPEG or PNG below {args.images}")
    num_bytes = sum(path.stat().st_size for path in paths)
    ways: dict[str, Callable[[Path], None]] = {
        "plain tar loop": lambda out: _tar_loop(paths, out, decode=False),
        "tar loop, decoded": lambda out: _tar_loop(paths, out, decode=True),
        "planning alone": lambda out: _plan(args.images, paths, out),
        "conversion": lambda out: _convert(args.images, paths, out, None),
    }
    if args.short_side:
        bound = args.short_side
        ways[f"conversion, {bound} px"] = lambda out: _convert(args.images, paths, out, bound)
    clock: dict[str, list[float]] = {way: [] for way in ways}
    core: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(args.repeats + 1):  # the first warms caches and imports
        for way, run in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter(), time.process_time()
                run(Path(folder))
                if repeat:
                    clock[way].append(time.perf_counter() - begin[0])
                    core[way].append(time.process_time() - begin[1])

    print(
        f"{len(paths)} images, {num_bytes / len(paths) / 1000:.1f} kB each, {args.repeats} repeats"
    )
    print(f"{'':22}images/s  images/s per core  core-hours of {CORPUS:,}  cost at {args.price}")
    for way in ways:
        per_core = len(paths) / statistics.median(core[way])
        print(
            f"{way:22}{len(paths) / statistics.median(clock[way]):8.0f}{per_core:19.0f}"
            f"{CORPUS / per_core / 3600:24.1f}{CORPUS / per_core / 3600 * args.price:14.2f}"
        )


def _tar_loop(paths: list[Path], out: Path, decode: bool) -> None:
    tar = None
    for number, path in enumerate(paths):
        if number % 1000 == 0:
            if tar:
                tar.close()
            tar = tarfile.open(out / f"{number // 1000:06d}.tar", "w")  # noqa: SIM115
        data = path.read_bytes()
        if decode:
            Image.open(io.BytesIO(data)).load()
        for name, content in ((f"{number:06d}.jpg", data), (f"{number:06d}.txt", TEXT.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    tar.close()


def _source(root: Path, paths: list[Path]) -> OpenedSource:
    names = [str(path.relative_to(root)) for path in paths]
    rows = (
        SourceRow(n, name, name, (TEXT,), (), "ct", "benchmark", "train", "")
        for n, name in enumerate(names, 1)
    )
    return OpenedSource(root, "benchmark", rows)


def _plan(root: Path, paths: list[Path], out: Path) -> None:
    rows = _source(root, paths).conversion(CaptionOptions()).rows
    plan_lib.build(out, "benchmark", rows, print, num_shards=None, seed=0)
    shutil.rmtree(out)
    out.mkdir()


def _convert(root: Path, paths: list[Path], out: Path, short_side: int | None) -> None:
    options = CaptionOptions(short_side=short_side)
    write_corpus(out / "corpus", _source(root, paths).conversion(options))


def _plan_memory(lengths: list[int]) -> None:
    print("rows      peak memory MB   rows/s")
    for length in lengths:
        script = ROOT / "benchmarks" / "plan_memory.py"
        output = subprocess.run(
            [sys.executable, script, str(length)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        peak, seconds, *_ = output.split()
        print(f"{length:<10}{float(peak):14.1f}{length / float(seconds):9.0f}")


if __name__ == "__main__":
    main()
