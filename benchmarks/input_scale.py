"""The input pipeline at the size of the published corpus: 13 sources, 5.28 million records.

    python benchmarks/input_scale.py [--json=FILE]
    pip install 'webdataset<=0.2.86' && python benchmarks/input_scale.py --webdataset
    python benchmarks/input_scale.py --kill

Makes corpora with the numbers of records of the published parts, 64 shards each, which are hard
links to one shard per part, and measures in separate processes on the CPU:

- the CPU seconds from opened manifests to the first batch of 2,048, at step 0 and in the middle of
  epoch 7, with records of 1.65 kB that are parsed, not decoded;
- records per CPU second of the same with one source and with 13, in alternating rounds;
- the growth of resident memory while 40 batches of records of 50 kB are read;
- with images of 288 px that are decoded, cropped to 224 px and tokenized: the throughput from a
  bucket whose every answer takes 20 ms longer, relative to the local disk;
- the same images on one core and on all, and, if py-spy is installed, for how long an image holds
  Python's global interpreter lock: the work that further cores do not share;
- how well the batches are mixed: the distance in the corpus between rows that follow each other in
  a batch, relative to a perfect shuffle;
- with --webdataset: images per CPU second relative to open_clip's webdataset loader with its
  options for several sources, over the same 13 corpora, in alternating rounds.

--kill reads 5.28 million records with different ids on 1 and on 4 processes from the middle of
epoch 7, kills all of them, starts them again after the last step that all had read, and compares
the ids with those of an uninterrupted process.
"""

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import input_pipeline_speed as speed
import interleave
import numpy as np

BATCH, SHARDS, BLOCK = 2048, 64, 8
SMALL, LARGE = 1_650, 50_000  # bytes of a record
LARGE_SHARD = 500  # records of 50 kB in the shard that all others are links to
LATENCY = 0.02  # seconds that an answer of the bucket takes longer
GIL_BATCH = 512  # as on a host of a large run
ROUND, IMAGE_ROUND = 16, 32  # batches of a timed round


def published_counts() -> dict[str, int]:
    """Records of each part, rounded to full shards."""
    from input_pipeline.conversion.unimed_parts import PARTS

    return {key: part.expected.high // SHARDS * SHARDS for key, part in PARTS.items()}


# --- corpora --------------------------------------------------------------------------------------


def write_corpus(folder: Path, num_shards: int, per_shard: int, record_bytes: int) -> None:
    """A corpus of equal shards: hard links to one, of records with random bytes as images."""
    import tensorflow as tf

    from input_pipeline import manifest, record_index, records

    folder.mkdir(parents=True)
    first = folder / manifest.shard_name("train", 0, num_shards)
    random = np.random.default_rng(0)
    lengths = []
    with tf.io.TFRecordWriter(str(first)) as writer:
        for number in range(per_shard):
            sample = records.Sample(
                id=f"{folder.name}-{number:06}",
                image=random.bytes(record_bytes - 200),
                captions=("chest radiograph, frontal view, with a small left pleural effusion",),
                num_original_captions=1,
                labels=(),
                modality="xray",
                source=folder.name,
            )
            record = records.encode(sample)
            lengths.append(len(record))
            writer.write(record)
    link_shards(folder, num_shards, per_shard)
    content = manifest.load(folder)
    offsets = np.tile(record_index.offsets_of(lengths), num_shards)
    index = record_index.RecordIndex(folder, content.splits["train"].shards, offsets)
    record_index.save(index, content, "train")


def link_shards(folder: Path, num_shards: int, per_shard: int) -> None:
    """Completes a corpus whose first shard is there by links to it, and writes the manifest."""
    from input_pipeline import manifest

    first = folder / manifest.shard_name("train", 0, num_shards)
    checksum, size, shards = manifest.file_sha256(first), first.stat().st_size, []
    for number in range(num_shards):
        path = folder / manifest.shard_name("train", number, num_shards)
        if number:
            os.link(first, path)
        shards.append(manifest.Shard(path.name, per_shard, size, checksum))
    total = num_shards * per_shard
    split = manifest.Split(total, manifest.add_counts([]), tuple(shards))
    manifest.save(folder, manifest.Manifest(folder.name, {"train": split}, total, total, 0, ""))


def write_corpora(scratch: Path) -> None:
    counts = published_counts()
    for key, count in counts.items():
        write_corpus(scratch / "small" / key, SHARDS, count // SHARDS, SMALL)
        write_corpus(scratch / "large" / key, max(count // LARGE_SHARD, 1), LARGE_SHARD, LARGE)
    total = sum(counts.values())
    write_corpus(scratch / "one" / "one", SHARDS, total // SHARDS, SMALL)


# --- the side that is measured --------------------------------------------------------------------


def make_spec(folder: Path) -> "object":
    from input_pipeline import dataset

    names = sorted(path.name for path in folder.iterdir())
    sources = [dataset.MixtureSource(name, str(folder / name), "train", None) for name in names]
    manifests = dataset.open_sources(sources)
    return dataset.StreamSpec(sources, manifests, seed=0, batch_size=BATCH, block_size=BLOCK)


def parse_only(serialized: object, seeds: object, sources: object) -> dict[str, object]:
    from input_pipeline import records

    samples = records.parse(serialized)
    return {"id": samples["id"], "source": sources, "seed": seeds}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def batches(folder: Path, start: int) -> Iterator[dict[str, np.ndarray]]:
    from input_pipeline import dataset

    yield from dataset.train_batches(make_spec(folder), parse_only, start, start + 10**6)


def first_batch(folder: Path, start: int) -> float:
    from input_pipeline import dataset

    spec = make_spec(folder)
    began = cpu_seconds()
    next(dataset.train_batches(spec, parse_only, start, start + 10**6))
    return cpu_seconds() - began


def resident(folder: Path) -> float:
    """GiB by which the peak of resident memory while reading exceeds that before it."""
    import psutil

    from input_pipeline import dataset

    spec = make_spec(folder)
    before = psutil.Process().memory_info().rss
    stream = dataset.train_batches(spec, parse_only, 1000, 10**6)
    for _ in itertools.islice(stream, 40):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - before) / 2**30


def serve_parsing(folder: Path) -> None:
    stream = batches(folder, 0)

    def read(count: int) -> None:
        for _ in itertools.islice(stream, count):
            pass

    interleave.serve_rounds(lambda: read(ROUND), before=lambda: read(4))


def mixing(folder: Path) -> dict[str, float]:
    """Distances in the corpus between consecutive rows of batches, and close pairs."""
    from input_pipeline import sampling_order

    spec = make_spec(folder)
    (blocks,) = spec.blocks
    starts = np.concatenate([[0], np.cumsum(blocks.size)])
    total = int(starts[-1])
    places = np.zeros(BATCH, np.int64)
    order = np.zeros((BATCH, int(blocks.size.max())), np.int64)
    used = np.zeros(BATCH, np.int64)
    distances, close, expected = [], 0, 0.0
    plan = sampling_order.assignments(0, spec.blocks, spec.weights, BATCH, 100)
    for assignment in itertools.islice(plan, 50):
        rows, entries = assignment.rows, assignment.entries
        sizes = blocks.size[entries.block]
        orders = sampling_order.record_orders(0, entries.source, entries.visit, sizes)
        for row, one in zip(rows, orders, strict=True):
            order[row, : len(one)] = one
        places[rows], used[rows] = starts[entries.block], entries.begin
        now = places + order[np.arange(BATCH), used]
        used += 1
        distances.append(np.abs(np.diff(now)).mean() / total)
        close += int((np.diff(np.sort(now)) <= 1000).sum())
        expected += (BATCH - 1) * (1 - (1 - 1000 / total) ** BATCH)
    return {
        "mixing": float(np.mean(distances) * 3),  # a perfect shuffle: a third of the corpus
        "rows_with_a_neighbour_within_1000": close / expected,
    }


# --- images, locally and in a bucket --------------------------------------------------------------


def serve_webdataset(folder: Path) -> None:
    """The same images by open_clip's loader: a list of tars per source, drawn by their sizes."""
    speed.webdataset_of(
        "::".join(f"{folder / key}/tars/{{00..{speed.SHARDS - 1:02}}}.tar" for key in sorted(
            path.name for path in folder.iterdir())),
        upsampling="::".join("1" for _ in folder.iterdir()),
        batches=IMAGE_ROUND,
    )  # fmt: skip


def image_batches(root: str, batch_size: int) -> Iterator[tuple[list[str], dict[str, object]]]:
    """Batches of decoded images and token ids of the 13 corpora below ``root``."""
    from input_pipeline import device_prefetch
    from input_pipeline.io.files import to_path
    from unimed_jax import config as config_lib
    from unimed_jax import tasks
    from unimed_jax.distributed import sharding
    from unimed_jax.training.data_loader import DataLoader

    config = config_lib.load(str(ROOT / "configs" / "unimed.py"))
    config.batch_size, config.tokenizer = batch_size, speed.VOCABULARY
    config.model.text.update({"context_length": speed.CONTEXT, "vocab_size": 30522, "buckets": ()})
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    loader = DataLoader(config, tasks.create(config, ""), to_path(root), mesh)
    return device_prefetch.prefetch(loader.read(0, 1_000_000))


def serve_images(root: str) -> None:
    """Rounds of these batches."""
    speed.run(image_batches(root, speed.BATCH), lambda batch: len(batch[1]["image"]), IMAGE_ROUND)


def read_images(folder: Path) -> None:
    """Reads batches until it is killed, and prints the number of images so far after each."""
    for count, _ in enumerate(image_batches(str(folder), GIL_BATCH), 1):
        print(count * GIL_BATCH, flush=True)


def gil_microseconds(folder: Path, seconds: int = 10, rate: int = 200) -> float:
    """Time for which an image holds the global interpreter lock, sampled by py-spy."""
    process = subprocess.Popen(command("endless", folder), stdout=subprocess.PIPE, text=True)
    for _ in range(5):
        first = int(process.stdout.readline())
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "stacks"
        sampler = ["py-spy", "record", "--gil", "--pid", process.pid, "--format", "raw"]
        sampler += ["--duration", seconds, "--rate", rate, "--output", out]
        subprocess.run([*map(str, sampler)], check=True, capture_output=True)
        samples = sum(int(line.rsplit(" ", 1)[1]) for line in out.read_text().splitlines())
    process.kill()
    images = max(map(int, process.stdout.read().split())) - first
    return samples / rate / images * 1e6


def on_one_core(folder: Path) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    serve_images(str(folder))


def write_images(scratch: Path, num: int) -> None:
    """13 corpora of the same phantoms, with their proportions, and the tars of the same samples."""
    images = speed.draw_phantoms(scratch / "phantoms", num)
    corpus = speed.make_corpora(images, scratch / "made", num, (0,))["as stored"]
    for key in published_counts():
        shutil.copytree(corpus, scratch / "images" / key, copy_function=os.link)


def serve_bucket(folder: Path) -> None:
    """A server of Google's protocol on loopback that only reads, and takes its time."""
    from aiohttp import web

    def resource_of(path: Path) -> dict[str, str]:
        name = path.relative_to(folder).as_posix()
        return {"kind": "storage#object", "name": name, "bucket": "b",
                "size": str(path.stat().st_size), "generation": "1", "metageneration": "1",
                "updated": "2026-01-01T00:00:00.000Z",
                "timeCreated": "2026-01-01T00:00:00.000Z"}  # fmt: skip

    async def respond(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(LATENCY)
        kind, _, name = request.path.partition("/b/b/o")
        path = folder / name.strip("/")
        if not name.strip("/"):
            prefix = request.query.get("prefix", "")
            found = sorted((folder / prefix).glob("*")) if (folder / prefix).is_dir() else []
            return web.json_response({"items": [resource_of(p) for p in found if p.is_file()]})
        if not path.is_file():
            return web.json_response({"error": {"code": 404, "message": "missing"}}, status=404)
        if request.query.get("alt") != "media" and not kind.startswith("/download"):
            return web.json_response(resource_of(path))
        span, size = request.http_range, path.stat().st_size
        begin, end = span.start or 0, min(span.stop or size, size)
        with path.open("rb") as file:
            file.seek(begin)
            body = file.read(end - begin)
        headers = {"Content-Range": f"bytes {begin}-{end - 1}/{size}", "ETag": '"x"'}
        return web.Response(body=body, status=206, headers=headers)

    async def serve() -> None:
        application = web.Application()
        application.router.add_route("*", "/{rest:.*}", respond)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which gs://b is the folder."""
    command = [sys.executable, __file__, "--part=bucket", f"--folder={folder}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    port = server.stdout.readline().strip()
    try:
        yield {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        server.kill()
        server.wait()


# --- kill and resume ------------------------------------------------------------------------------


def write_distinct(folder: Path) -> None:
    """The 13 corpora with a different id in every record."""
    import tensorflow as tf

    from input_pipeline import manifest, record_index, records

    for key, count in published_counts().items():
        (folder / key).mkdir(parents=True)
        mark = b"0123456789"
        sample = records.Sample(mark.decode(), b"image", ("a text",), 1, (), "xray", key)
        head, _, tail = records.encode(sample).partition(mark)
        per_shard, shards = count // SHARDS, []
        for number in range(SHARDS):
            path = folder / key / manifest.shard_name("train", number, SHARDS)
            with tf.io.TFRecordWriter(str(path)) as writer:
                for row in range(number * per_shard, (number + 1) * per_shard):
                    writer.write(b"%b%010d%b" % (head, row, tail))
            checksum = manifest.file_sha256(path)
            shards.append(manifest.Shard(path.name, per_shard, path.stat().st_size, checksum))
        split = manifest.Split(count, manifest.add_counts([]), tuple(shards))
        content = manifest.Manifest(key, {"train": split}, count, count, 0, "")
        manifest.save(folder / key, content)
        offsets = record_index.offsets_of([len(head) + len(mark) + len(tail)] * per_shard)
        index = record_index.RecordIndex(folder / key, split.shards, np.tile(offsets, SHARDS))
        record_index.save(index, content, "train")


def print_ids(folder: Path, start: int, rows: range) -> None:
    """A line per step: the SHA-256 of the sources and ids of every quarter of the batch."""
    from input_pipeline import dataset

    quarter = BATCH // 4
    for batch in dataset.train_batches(make_spec(folder), parse_only, start, 10**6, rows=rows):
        names = [b"%d %b" % pair for pair in zip(batch["source"], batch["id"], strict=True)]
        parts = (names[k : k + quarter] for k in range(0, len(names), quarter))
        print(*(hashlib.sha256(b"\n".join(part)).hexdigest() for part in parts), flush=True)


def ids_of(folder: Path, hosts: int, start: int, steps: int) -> list[list[str]]:
    """What processes that share the batch print, until they are killed after ``steps`` steps."""
    share = BATCH // hosts
    processes = [
        subprocess.Popen(
            [*command("ids", folder, start), f"--first_row={host * share}", f"--rows={share}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in range(hosts)
    ]
    lines = [[process.stdout.readline() for _ in range(steps)] for process in processes]
    for process in processes:
        process.kill()
        process.wait()
    return [" ".join(step).split() for step in zip(*lines, strict=True)]


def kill(scratch: Path) -> None:
    folder = scratch / "distinct"
    if not folder.exists():
        write_distinct(folder)
    start = round(6.5 * sum(published_counts().values()) / BATCH)
    uninterrupted = ids_of(folder, 1, start, 12)
    assert len({part for step in uninterrupted for part in step}) == 12 * 4
    for hosts in (1, 4):
        found = ids_of(folder, hosts, start, 5) + ids_of(folder, hosts, start + 5, 7)
        result = "the ids of an uninterrupted process" if found == uninterrupted else "OTHER IDS"
        print(f"{hosts} processes, killed, steps {start} to {start + 11}: {result}", flush=True)


# --- main -----------------------------------------------------------------------------------------

PARTS = {
    "first": lambda folder, start: print(first_batch(folder, start)),
    "resident": lambda folder, start: print(resident(folder)),
    "mixing": lambda folder, start: print(json.dumps(mixing(folder))),
    "parsing": lambda folder, start: serve_parsing(folder),
    "images": lambda folder, start: serve_images(str(folder)),
    "images of the bucket": lambda folder, start: serve_images("gs://b"),
    "webdataset": lambda folder, start: serve_webdataset(folder),
    "bucket": lambda folder, start: serve_bucket(folder),
    "images on one core": lambda folder, start: on_one_core(folder),
    "endless": lambda folder, start: read_images(folder),
}


def command(part: str, folder: Path, start: int = 0) -> list[str]:
    return [sys.executable, __file__, f"--part={part}", f"--folder={folder}", f"--start={start}"]


def measured(part: str, folder: Path, start: int = 0) -> str:
    """The last line of what a part prints in a process of its own."""
    run = subprocess.run(command(part, folder, start), capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(run.stderr)
    return run.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--webdataset", action="store_true", help="compare with open_clip's loader")
    parser.add_argument("--scratch", type=Path, help="folder for the corpora; default: temporary")
    parser.add_argument("--rounds", type=int, default=3, help="of what is compared")
    parser.add_argument("--kill", action="store_true", help="kill and resume at this size")
    parser.add_argument("--part", choices=(*PARTS, "ids"), help=argparse.SUPPRESS)
    parser.add_argument("--first_row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3")
    if args.part == "ids":
        rows = range(args.first_row, args.first_row + args.rows)
        print_ids(args.folder, args.start, rows)
        return
    if args.part:
        PARTS[args.part](args.folder, args.start)
        return
    with contextlib.ExitStack() as stack:
        scratch = args.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if args.kill:
            kill(scratch)
            return
        figures = measure(scratch, args.rounds, args.webdataset)
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def measure(scratch: Path, rounds: int, with_webdataset: bool) -> dict[str, object]:
    began = time.perf_counter()

    def note(text: str) -> None:
        print(f"{time.perf_counter() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    if not (scratch / "one").exists():
        note("writing the corpora")
        write_corpora(scratch)
    figures: dict[str, object] = {"cores": len(os.sched_getaffinity(0))}
    steps_per_epoch = sum(published_counts().values()) // BATCH
    note("first batches")
    for name, start in (
        ("first_batch_cpu_seconds", 0),
        ("resume_first_batch_cpu_seconds", round(6.5 * steps_per_epoch)),
    ):
        seconds = [float(measured("first", scratch / "small", start)) for _ in range(3)]
        figures[name] = statistics.median(seconds)
    note("resident memory")
    figures["resident_gib"] = float(measured("resident", scratch / "large"))
    note("one source and 13")
    folders = {"1": scratch / "one", "13": scratch / "small"}
    times = interleave.compare({k: command("parsing", f) for k, f in folders.items()}, rounds)
    figures["records_per_cpu_second"] = {
        name: ROUND * BATCH / statistics.median(times[name].cpu) for name in folders
    }
    figures["sources_ratio"] = interleave.ratio(times["1"].cpu, times["13"].cpu)
    note("mixing")
    figures |= json.loads(measured("mixing", scratch / "one"))
    if not (scratch / "images").exists():
        note("writing images")
        write_images(scratch, 400)
    note("local disk and bucket")
    with bucket(scratch / "images") as environment, pushed(environment):
        times = interleave.compare(
            {
                part: command(part, scratch / "images")
                for part in ("images", "images of the bucket")
            },
            rounds,
        )
    figures["bucket_ratio"] = interleave.ratio(
        times["images"].wall, times["images of the bucket"].wall
    )
    note("one core and all")
    parts = ("images", "images on one core")
    times = interleave.compare({p: command(p, scratch / "images") for p in parts}, rounds)
    images = IMAGE_ROUND * speed.BATCH
    figures["images_per_second"] = {
        "one core": images / statistics.median(times["images on one core"].wall),
        "all cores": images / statistics.median(times["images"].wall),
    }
    figures["cores_ratio"] = interleave.ratio(
        times["images on one core"].wall, times["images"].wall
    )
    if shutil.which("py-spy"):
        note("global interpreter lock")
        figures["gil_microseconds_per_image"] = gil_microseconds(scratch / "images")
    if with_webdataset:
        note("webdataset")
        times = interleave.compare(
            {part: command(part, scratch / "images") for part in ("images", "webdataset")}, rounds
        )
        figures["webdataset_ratio"] = interleave.ratio(times["webdataset"].cpu, times["images"].cpu)
    note("done")
    return figures


@contextlib.contextmanager
def pushed(variables: dict[str, str]) -> Iterator[None]:
    """The environment of this process with further variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    main()
