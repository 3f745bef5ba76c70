"""Writes a TFRecord corpus from images on a disk or in a bucket.

    unimed-jax convert csv --input=table.csv --out=corpora/mine --captions=captions.json
    unimed-jax convert chexpert --raw=DIR --out=corpora/chexpert --captions=labels.json

A row becomes a sample when its image can be decoded and it has a caption: its own text, the
templates of its labels, or both. Every other row is in DIR/rejected.jsonl with the reason, and
DIR/conversion.json counts them. The same command resumes an interrupted run.
`SOURCE --help` describes the flags of a source.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
import types
import typing
from collections.abc import Sequence
from typing import Any

from input_pipeline.captioning import templates as caption_templates
from input_pipeline.captioning.grammar_captions import GrammarCaptions
from input_pipeline.captioning.templates import CaptionTemplates
from input_pipeline.conversion import exclude, guard, label_table, samples, validation_split
from input_pipeline.conversion import report as conversion_report
from input_pipeline.conversion.corpus_directory import REJECTED_FILE, REPORT_FILE
from input_pipeline.conversion.executors import Beam, Executor, Local
from input_pipeline.conversion.held_out import IN_SET, HeldOut
from input_pipeline.conversion.sources import SOURCES, Source
from input_pipeline.conversion.sources.base import CaptionedSource, CaptionOptions
from input_pipeline.conversion.write_shards import write_corpus
from input_pipeline.io import cli, files
from input_pipeline.io.errors import UserError
from input_pipeline.manifest import Manifest
from unimed_jax.evals.benchmark import held_out as suite_images
from unimed_jax.evals.benchmark.spec import suite_names

_AUTO = "auto"  # of --captions


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    0: success; 1: more rows were rejected, or samples are suspect, than --max_rejected and
    --max_suspect allow, and there is no corpus, but reports; 2: the input is invalid.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].startswith("tfds:"):
        argv[:1] = ["tfds", f"--dataset={argv[0].removeprefix('tfds:')}"]
    args = _parser().parse_args(argv)
    return cli.run(lambda: _convert(args), "interrupted; the same command continues the conversion")


def _convert(args: argparse.Namespace) -> int:
    start = time.monotonic()
    source = SOURCES[args.kind]
    flags = {field.name: getattr(args, field.name) for field in dataclasses.fields(source.options)}
    suite = _suite(args) if isinstance(source, CaptionedSource) else None
    if suite and "held_out" in flags:
        flags["held_out"] = None  # which takes a file
    options = source.options(**flags)
    executor, num_shards = _executor(args), _shards_given(args.num_shards)
    captions = {}
    if isinstance(source, CaptionedSource):
        if args.labels_out:
            count = label_table.write(args.labels_out, source.read(options).rows)
            print(f"{count} label sets -> {args.labels_out}")
            return 0
        if not args.out:
            raise UserError(
                "give --out=DIR for a corpus, or --labels_out=FILE for its labels alone"
            )
        captions = {"captions": _caption_options(args, suite)}
    elif not args.out:
        raise UserError("give --out=DIR for the corpus")
    conversion = source.open(options, **captions)
    if args.val_fraction is not None:
        conversion = validation_split.split_off(conversion, args.val_fraction, args.seed)
    try:
        manifest = write_corpus(
            args.out,
            conversion,
            name=args.name or "",
            num_shards=num_shards,
            seed=args.seed,
            executor=executor,
            overwrite=args.overwrite,
            progress=True,
            max_rejected=args.max_rejected,
            max_suspect=args.max_suspect,
        )
    except guard.RefusedCorpus as error:
        _print_counts(args.out)
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print_summary(manifest, args.out, time.monotonic() - start)
    return 0


def _suite(args: argparse.Namespace) -> str | None:
    """The suite that --held_out names; None if it names a file, or is not given."""
    given = str(args.held_out) if args.held_out is not None else None
    suite = given if given in suite_names() else None
    if isinstance(args.held_out, str) and not suite:  # of a source that takes no file
        raise UserError(f"--held_out={given}: expected {' or '.join(suite_names())}")
    if suite and args.suite_data is None:
        raise UserError(f"--held_out={suite} needs --suite_data=DIR, the folder of its test sets")
    if args.suite_data is not None and not suite:
        raise UserError(f"--suite_data needs --held_out, one of {', '.join(suite_names())}")
    return suite


def _caption_options(args: argparse.Namespace, suite: str | None) -> CaptionOptions:
    if args.short_side is not None and args.short_side < 1:
        raise UserError(f"--short_side={args.short_side}: expected a number of pixels")
    return CaptionOptions(
        _captions(args.captions),
        args.short_side,
        exclude.load(args.exclude) if args.exclude else {},
        _held_out(args, suite) if suite else None,
    )


def _held_out(args: argparse.Namespace, suite: str) -> HeldOut:
    if not files.is_local(args.suite_data) or not args.suite_data.is_dir():
        raise UserError(f"--suite_data={args.suite_data}: expected a folder on a disk")
    by = getattr(args, "held_out_by", "group")
    return suite_images.of_suite(suite, args.suite_data, args.kind, by)


def _captions(given: files.AnyPath | str | None) -> CaptionTemplates | GrammarCaptions:
    if given == _AUTO:
        return GrammarCaptions()
    return caption_templates.load(given) if given else CaptionTemplates()


def _executor(args: argparse.Namespace) -> Executor:
    if args.runner == "local":
        if args.beam_options:
            raise UserError("--beam_options needs --runner=beam")
        return Local(args.workers)
    return Beam(tuple(args.beam_options.split()))


def _shards_given(text: str | None) -> dict[str, int] | int | None:
    """Reads --num_shards: `8` for all splits, or `train=64,val=8`."""
    if not text:
        return None
    try:
        if "=" not in text:
            return int(text)
        parts = [part.partition("=") for part in text.split(",")]
        return {split: int(count) for split, _, count in parts}
    except ValueError:
        raise UserError(f"--num_shards={text}: expected 8 or train=64,val=8") from None


def _print_summary(manifest: Manifest, out: files.AnyPath, seconds: float) -> None:
    merged = f" + {manifest.merged} merged (captions of the same image)" if manifest.merged else ""
    print(
        f"{manifest.name}: {manifest.read} rows read = {manifest.written} samples written "
        f"+ {manifest.rejected} rejected{merged}, {seconds:.1f} s -> {out}"
    )
    for name, split in manifest.splits.items():
        sources = ", ".join(f"{source} {n}" for source, n in split.counts["source"].items())
        size = f"{sum(shard.num_bytes for shard in split.shards) / 1e6:.1f} MB"
        print(f"  {name}: {split.num_samples} in {len(split.shards)} shards, {size} ({sources})")
    _print_counts(out)


def _print_counts(out: files.AnyPath) -> None:
    """What conversion.json counts, also of a corpus that was refused."""
    report = conversion_report.load(out / REPORT_FILE)
    if layout := report["facts"].get("layout"):
        names = ", ".join(file["file"] for file in report["facts"]["annotations"])
        print(f"  annotations: {layout} layout, {names[:200]}")
    if held_out := report["facts"].get("test_sets"):
        number = sum(n for why, n in report["rejected_by_reason"].items() if why.startswith(IN_SET))
        there = [name for name, count in held_out["pictures"].items() if count]
        print(f"  held out, images of {held_out['suite']}: {number}")
        print(f"    by {held_out['names']} names, and by pictures of {', '.join(there) or 'none'}")
        if held_out["without_pictures"]:
            print(f"    not by pictures of {', '.join(held_out['without_pictures'])}")
    for reason, count in report["rejected_by_reason"].items():
        print(f"  rejected, {reason}: {count}")
    if samples.UNREADABLE in report["rejected_by_reason"]:
        for archive, state in report["facts"].get("archives", {}).items():
            print(f"  archive that may not be unpacked: {archive} ({state})")
    if report["rejected"]:
        print(f"  why rows were rejected: {out / REJECTED_FILE}")
    for what, count in (report["inputs"] | report["notes"]).items():
        print(f"  {what}: {count}")
    if unused := report["facts"].get("input", {}).get("columns_not_used"):
        print(f"  columns not used: {', '.join(unused)}")
    for finding, suspect in report["suspect"].items():
        print(f"  suspect, {finding}: {suspect['samples']}, the first: {suspect['first']}")
    if expected := report.get("expected"):
        counted = f" (counted in {expected['counted_in']})" if "counted_in" in expected else ""
        print(
            f"  {expected['of']}: {expected['found']}, the published corpus has "
            f"{expected['low']} to {expected['high']}: difference {expected['difference']:+d}"
            f"{counted}"
        )
    if shared := report["groups_in_several_splits"]:
        print(
            f"warning: {shared} groups (patients) are in more than one split, for example "
            f"{report['example_of_such_a_group']!r}",
            file=sys.stderr,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    corpora = parser.add_subparsers(dest="kind", metavar="SOURCE", required=True)
    for name, source in SOURCES.items():
        subparser = corpora.add_parser(
            name,
            help=source.help,
            description=source.description or f"Converts {source.help}.",
            epilog="Defaults in parentheses."
            + f"\n\ncaptions for labels (--captions)\n\n{caption_templates.__doc__}"
            * isinstance(source, CaptionedSource),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_options(subparser, source)
        subparser.add_argument("--out", type=files.flag, help="corpus directory")
        if isinstance(source, CaptionedSource):
            _add_caption_options(subparser, source.options)
        subparser.add_argument(
            "--name", help="name of the corpus; default: from the input's folder"
        )
        subparser.add_argument(
            "--val_fraction",
            type=float,
            help="move this share of the patients of train to a split val (rows without a group "
            "count as patients); for sources without a validation split",
        )
        subparser.add_argument(
            "--num_shards",
            help="8 for every split, or train=64,val=8; default: a power of two, at least 8 for "
            "train and 2 for others, such that shards are at most 128 MiB",
        )
        subparser.add_argument(
            "--seed", type=int, default=0, help="seed of shuffle and --val_fraction; default 0"
        )
        subparser.add_argument(
            "--workers",
            type=int,
            help="processes of --runner=local; default: one per core, fewer for small corpora",
        )
        subparser.add_argument(
            "--runner",
            choices=("local", "beam"),
            default="local",
            help="processes of this machine, or Apache Beam; the bytes are the same",
        )
        subparser.add_argument(
            "--beam_options",
            default="",
            help="'--runner=FlinkRunner --parallelism=64 ...', as Beam documents them",
        )
        subparser.add_argument(
            "--max_rejected",
            type=float,
            default=0.5,
            help="share of rejected rows above which no corpus is published; default 0.5",
        )
        subparser.add_argument(
            "--max_suspect",
            type=float,
            help="share of samples with one finding, such as empty masks, above which no corpus is "
            f"published; default: {', '.join(f'{k} {v:g}' for k, v in guard.LIMITS.items())}",
        )
        subparser.add_argument(
            "--overwrite", action="store_true", help="replace another corpus in --out"
        )
    return parser


def _add_caption_options(subparser: argparse.ArgumentParser, options: type[Any]) -> None:
    """Flags of the sources whose rows become images with captions."""
    subparser.add_argument(
        "--labels_out",
        type=files.flag,
        help="write the distinct label sets to this .jsonl, for caption_labels.py, and stop",
    )
    subparser.add_argument(
        "--captions",
        type=lambda text: text if text == _AUTO else files.flag(text),
        help="JSON of captions for labels; or auto: captions by the grammar of `unimed-jax caption "
        "--provider=template`, made and checked in this command",
    )
    subparser.add_argument(
        "--exclude",
        type=files.flag,
        help="JSONL of ids and reasons to leave out, as `unimed-jax inspect` writes it",
    )
    if "held_out" not in {field.name for field in dataclasses.fields(options)}:
        subparser.add_argument(
            "--held_out",
            help=f"{' or '.join(suite_names())}: pictures of its test sets are rejected",
        )
    subparser.add_argument(
        "--suite_data",
        type=files.flag,
        help="folder of the test sets of --held_out, as `unimed-jax evaluate --data` takes it",
    )
    subparser.add_argument(
        "--short_side",
        type=int,
        help="bound the short side of images, in pixels, and store larger ones as JPEG of "
        "quality 95; default: JPEG and PNG stay as they are, byte for byte",
    )


def _add_options(subparser: argparse.ArgumentParser, source: Source) -> None:
    """A flag for every field of the options of a source."""
    hints = typing.get_type_hints(source.options, include_extras=True)
    for field in dataclasses.fields(source.options):
        kind, help_text = typing.get_args(hints[field.name])
        if kind is bool:
            subparser.add_argument(f"--{field.name}", action="store_true", help=help_text)
            continue
        kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        required = field.default is dataclasses.MISSING
        subparser.add_argument(
            f"--{field.name}",
            metavar=field.name.upper(),
            type=files.flag if pathlib.Path in kinds else kinds[0],
            required=required,
            default=None if required else field.default,
            help=help_text,
        )


if __name__ == "__main__":
    sys.exit(main())
