"""Reports on corpora: sizes, duplicates, leaked evaluation images, burned-in text.

    unimed-jax inspect corpora/mine --out=inspection --against=corpora/benchmark
    unimed-jax convert csv ... --exclude=inspection/exclude.jsonl

Writes report.html, exclude.jsonl (training images that are in another split or in an `--against`
set), duplicates.jsonl, burned_in.jsonl and statistics.json to --out. The report shows images of
the corpus: store it only where the corpus may be stored.
"""

import argparse
import collections
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import manifest
from input_pipeline.conversion import exclude, part_status
from input_pipeline.conversion.corpus_directory import REJECTED_FILE
from input_pipeline.conversion.unimed_parts import PARTS
from input_pipeline.inspection import duplicates, scan
from input_pipeline.inspection.burned_in import BurnedInText, TextDetector
from input_pipeline.io import cli, files
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import write_text_atomically
from input_pipeline.io.perceptual_hash import COPY_DISTANCE, need_library
from unimed_jax.reporting import corpus_report, parts_table
from unimed_jax.reporting.html_report import Section, config_section, write_report
from unimed_jax.weights.uri import resolve

_SHOWN_GROUPS, _SHOWN_PER_GROUP, _SHOWN_LEAKS, _SHOWN_TEXTS = 12, 4, 12, 24
_THUMBNAIL = 256  # pixels


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2: the input is invalid)."""
    args = _parser().parse_args(argv)
    return cli.run(lambda: _inspect(args))


def _inspect(args: argparse.Namespace) -> None:
    need_library()
    detector = TextDetector() if args.text_images else None
    tokenizer = resolve(args.tokenizer, weights=False) if args.tokenizer else None
    images, evaluation = [], []
    for directory in args.corpora:
        images += scan.scan_corpus(directory, tokenizer, args.workers)
    for directory in args.against:
        evaluation += scan.scan(directory, workers=args.workers)
    print(f"{len(images)} images scanned, {len(evaluation)} of evaluation sets", flush=True)

    groups = duplicates.groups(images, args.max_distance)
    leaks = duplicates.leaks(images, evaluation, args.max_distance)
    across_splits = duplicates.in_other_splits(images, groups)
    by_part: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        by_part.setdefault(image.source, []).append(index)
    burned_in = _read_texts(images, by_part, detector, args.text_images)

    samples = [i for part in by_part.values() for i in scan.sample(images, part, args.samples)]
    shown = {i for g in groups[:_SHOWN_GROUPS] for i in g.members[:_SHOWN_PER_GROUP]}
    shown |= {leak.image for leak in leaks[:_SHOWN_LEAKS]} | set(samples)
    with_text = [index for index, text in burned_in.items() if text.texts]
    with_text.sort(key=lambda index: not burned_in[index].like_identifier)
    shown |= set(with_text[:_SHOWN_TEXTS])
    read, rejections = _rejections(args.corpora)
    inspection = corpus_report.Inspection(
        images=images,
        evaluation=evaluation,
        groups=groups,
        leaks=leaks,
        split_leaks=sorted(across_splits),
        length_unit="tokens" if tokenizer else "words",
        context_length=args.context_length if tokenizer else None,
        rejections=rejections,
        num_read=read,
        burned_in=burned_in,
        samples=samples,
        pixels=_pixels(images, shown),
        evaluation_pixels=_pixels(evaluation, {x.evaluation for x in leaks[:_SHOWN_LEAKS]}),
    )
    excluded = across_splits | duplicates.in_evaluation(images, evaluation, leaks)
    exclude.save(
        args.out / exclude.FILE_NAME,
        {images[index].id: excluded[index] for index in sorted(excluded)},
    )
    _write(args, inspection)


def _read_texts(
    images: Sequence[scan.ScannedImage],
    by_part: Mapping[str, Sequence[int]],
    detector: TextDetector | None,
    count: int,
) -> dict[int, BurnedInText]:
    if detector is None:
        return {}
    chosen = [index for part in by_part.values() for index in scan.sample(images, part, count)]
    texts = {index: detector(np.asarray(image)) for index, image in scan.fetch(images, chosen)}
    return dict(sorted(texts.items()))


def _pixels(images: Sequence[scan.ScannedImage], indices: Iterable[int]) -> dict[int, np.ndarray]:
    """Thumbnails, because the originals of a corpus would not fit into memory."""
    thumbnails = {}
    for index, image in scan.fetch(images, indices):
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        thumbnails[index] = np.asarray(image)
    return thumbnails


def _rejections(corpora: Sequence[files.AnyPath]) -> tuple[int, dict[str, int]]:
    """Rows read by the conversions, and how many were rejected for each reason."""
    read = 0
    reasons: collections.Counter[str] = collections.Counter()
    for directory in corpora:
        read += manifest.load(directory).read
        try:
            rejected = files.open_to_read(directory / REJECTED_FILE)
            with io.TextIOWrapper(rejected, "utf-8") as lines:
                reasons.update(corpus_report.reason_of(json.loads(x)["reason"]) for x in lines)
        except (OSError, ValueError, KeyError) as error:
            raise CorpusError(f"cannot read {directory / REJECTED_FILE}: {error!r}") from error
    return read, dict(reasons)


def _write(args: argparse.Namespace, inspection: corpus_report.Inspection) -> None:
    images = inspection.images
    _write_lines(
        args.out / "duplicates.jsonl",
        (
            {
                "exact": group.exact,
                "members": [
                    {"corpus": images[i].corpus, "split": images[i].split, "id": images[i].id}
                    for i in group.members
                ],
            }
            for group in inspection.groups
        ),
    )
    _write_lines(
        args.out / "burned_in.jsonl",
        (
            {"id": images[i].id, "texts": text.texts, "like_identifier": text.like_identifier}
            for i, text in inspection.burned_in.items()
            if text.texts
        ),
    )
    statistics = {
        "images": len(images),
        "evaluation_images": len(inspection.evaluation),
        "duplicate_groups": len(inspection.groups),
        "exact_groups": sum(group.exact for group in inspection.groups),
        "images_in_groups": sum(len(group.members) for group in inspection.groups),
        "train_images_in_other_splits": len(inspection.split_leaks),
        "images_in_evaluation_sets": len(inspection.leaks),
        "text_looked_at": len(inspection.burned_in),
        "with_text": sum(bool(t.texts) for t in inspection.burned_in.values()),
        "with_text_like_identifier": sum(t.like_identifier for t in inspection.burned_in.values()),
        "rows_read": inspection.num_read,
        "rejections": inspection.rejections,
    }
    if inspection.context_length:
        share = corpus_report.truncated_share(images, inspection.context_length)
        statistics["truncated_share"] = round(share, 6)
    write_text_atomically(args.out / "statistics.json", json.dumps(statistics, indent=1) + "\n")
    names = ", ".join(dict.fromkeys(image.corpus for image in images))
    settings = {name: str(value) for name, value in sorted(vars(args).items())}
    write_report(
        args.out / "report.html",
        f"Corpus: {names}",
        [
            *corpus_report.sections(inspection),
            *_parts(args.corpora),
            config_section(settings, "Settings"),
        ],
        "Made by `unimed-jax inspect`. It shows images: the corpus' terms apply.",
    )
    for name, value in statistics.items():
        print(f"{name.replace('_', ' ')}: {value}")
    print(f"report: {args.out / 'report.html'}")


def _parts(corpora: Sequence[files.AnyPath]) -> list[Section]:
    """Which of the thirteen parts are among some corpora, if any is."""
    by_name = {manifest.load(directory).name: directory for directory in corpora}
    known = {name: directory for name, directory in by_name.items() if name in PARTS}
    return [parts_table.section(part_status.of_corpora(known))] if known else []


def _write_lines(path: files.AnyPath, items: Iterable[Mapping[str, Any]]) -> None:
    lines = (json.dumps(item, ensure_ascii=False) for item in items)
    write_text_atomically(path, "".join(f"{line}\n" for line in lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    path, add = files.flag, parser.add_argument
    add("corpora", metavar="DIR", type=path, nargs="+", help="corpus directories")
    add("--out", type=path, required=True, help="directory of the report and the lists")
    add(
        "--against",
        type=path,
        action="append",
        default=[],
        metavar="DIR",
        help="an evaluation set: a corpus directory or a folder of images; may be repeated",
    )
    add(
        "--tokenizer",
        help="tokenizer, a path or pkg:PACKAGE/PATH, to count tokens; default: count words",
    )
    add(
        "--context_length",
        type=int,
        default=256,
        help="context length of the text tower; default 256",
    )
    add(
        "--max_distance",
        type=int,
        default=COPY_DISTANCE,
        help=f"bits (of 256) in which copies may differ; default {COPY_DISTANCE}",
    )
    add(
        "--text_images",
        type=int,
        default=50,
        help="images per part to search for burned-in text; default 50, 0: none",
    )
    add("--samples", type=int, default=12, help="images per part on the sheets; default 12")
    add("--workers", type=int, default=1, help="processes; default 1")
    return parser


if __name__ == "__main__":
    sys.exit(main())
