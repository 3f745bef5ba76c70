"""Writes a TFRecord corpus from images on disk.

    python tools/convert_corpus.py csv --input=table.csv --out=corpora/mine --captions=captions.json

A row becomes a sample when its image can be decoded and it has a caption: its own text, the
templates of its labels, or both. Every other row is in DIR/rejected.jsonl with the reason. A run
that is interrupted goes on when the same command is given again.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
import typing
from collections.abc import Sequence

from input_pipeline import caption_templates, convert, exclude
from input_pipeline.errors import UserError
from input_pipeline.manifest import Manifest
from input_pipeline.sources import SOURCES
from input_pipeline.write_shards import REJECTED_FILE, write_corpus


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2: the user's input is at fault)."""
    args = _parser().parse_args(argv)
    try:
        _convert(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues the conversion", file=sys.stderr)
        return 130
    return 0


def _convert(args: argparse.Namespace) -> None:
    start = time.monotonic()
    source = SOURCES[args.corpus]
    options = source.options(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(source.options)}
    )
    templates = caption_templates.CaptionTemplates()
    if args.captions:
        templates = caption_templates.load(args.captions)
    found = source.rows(options)
    if args.exclude:
        found = exclude.leave_out(found, exclude.load(args.exclude))
    rows = convert.collect(found)
    if rows.shared_groups:
        print(
            f"warning: {len(rows.shared_groups)} groups (patients) are in more than one split, "
            f"for example {rows.shared_groups[0]!r}",
            file=sys.stderr,
        )
    num_shards = convert.num_shards(rows, options.root) | _shards_given(args.num_shards, rows)
    manifest = write_corpus(
        args.out,
        args.name or options.default_name,
        rows.splits,
        convert.MakeSample(options.root, templates),
        num_shards=num_shards,
        seed=args.seed,
        workers=args.workers or convert.default_workers(rows),
        rejected=rows.rejected,
        overwrite=args.overwrite,
        progress=True,
    )
    _print_summary(manifest, args.out, time.monotonic() - start)


def _shards_given(text: str | None, rows: convert.Rows) -> dict[str, int]:
    """Reads --num_shards: `8` for all splits, or `train=64,val=8`."""
    if not text:
        return {}
    parts = [part.rpartition("=") for part in text.split(",")]
    try:
        given = {split: int(count) for split, _, count in parts}
    except ValueError:
        raise UserError(f"--num_shards={text}: expected 8 or train=64,val=8") from None
    if set(given) == {""}:
        return dict.fromkeys(rows.splits, given[""])
    if unknown := given.keys() - rows.splits.keys():
        raise UserError(f"--num_shards: no split {sorted(unknown)}; found {list(rows.splits)}")
    return given


def _print_summary(manifest: Manifest, out: pathlib.Path, seconds: float) -> None:
    print(
        f"{manifest.name}: {manifest.read} rows read = {manifest.written} samples written "
        f"+ {manifest.rejected} rejected, {seconds:.1f} s -> {out}"
    )
    for name, split in manifest.splits.items():
        sources = ", ".join(f"{source} {n}" for source, n in split.counts["source"].items())
        size = f"{sum(shard.num_bytes for shard in split.shards) / 1e6:.1f} MB"
        print(f"  {name}: {split.num_samples} in {len(split.shards)} shards, {size} ({sources})")
    if manifest.rejected:
        print(f"  why rows were rejected: {out / REJECTED_FILE}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    corpora = parser.add_subparsers(dest="corpus", metavar="SOURCE", required=True)
    for name, source in SOURCES.items():
        command = corpora.add_parser(
            name,
            help=source.help,
            description=f"Converts {source.help}. Defaults in parentheses.",
            epilog=f"captions for labels (--captions)\n\n{caption_templates.__doc__}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        hints = typing.get_type_hints(source.options, include_extras=True)
        for field in dataclasses.fields(source.options):
            kind, help_text = typing.get_args(hints[field.name])
            required = field.default is dataclasses.MISSING
            command.add_argument(
                f"--{field.name}",
                metavar=field.name.rpartition("_")[2].upper(),
                type=pathlib.Path if pathlib.Path in (kind, *typing.get_args(kind)) else str,
                required=required,
                default=None if required else field.default,
                help=help_text,
            )
        command.add_argument("--out", type=pathlib.Path, required=True, help="corpus directory")
        command.add_argument("--captions", type=pathlib.Path, help="JSON of captions for labels")
        command.add_argument(
            "--exclude",
            type=pathlib.Path,
            help="JSONL of ids and reasons to leave out, as tools/inspect_corpus.py writes it",
        )
        command.add_argument("--name", help="of the corpus; default: from the input's folder")
        command.add_argument(
            "--num_shards",
            help="8 for every split, or train=64,val=8; default: a power of two, at least 8 for "
            "train and 2 for others, such that shards are at most 128 MiB",
        )
        command.add_argument("--seed", type=int, default=0, help="of the shuffle; default 0")
        command.add_argument(
            "--workers", type=int, help="processes; default: one per core if there is enough to do"
        )
        command.add_argument(
            "--overwrite", action="store_true", help="replace another corpus in --out"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
