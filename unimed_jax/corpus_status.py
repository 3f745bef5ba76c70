"""Shows where you stand with the thirteen parts of UniMed: found, converted or missing.

    unimed-jax corpus-status --raw=DIR --corpora=DIR [--out=status.html]

For every part: in which layout its source data are in --raw (official, derived by UniMed's authors,
their tars), rows of its tables, image files, samples of its corpus in --corpora, the published
count; of what is missing, the terms and where to get it. Nothing is decoded; in a bucket, images
are not counted. LLaVA-Med's two parts share a folder of images. A part that is in neither is left
out of the mixture of configs/unimed.py, which training states.
"""

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from input_pipeline.conversion import part_status
from input_pipeline.conversion.unimed_parts import PARTS
from input_pipeline.io import cli, files
from input_pipeline.io.errors import UserError
from unimed_jax.reporting import parts_table
from unimed_jax.reporting.html_report import config_section, write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2: the input is invalid)."""
    args = _parser().parse_args(argv)
    return cli.run(lambda: _show(args))


def _show(args: argparse.Namespace) -> None:
    if args.raw is None and args.corpora is None:
        raise UserError("give --raw=DIR for source data, --corpora=DIR for converted ones, or both")
    for name in ("raw", "corpora"):
        folder = getattr(args, name)
        if folder is not None and not folder.is_dir():
            raise UserError(f"--{name}={folder}: there is no such folder")
    with tqdm(total=len(PARTS), unit=" parts", delay=1) as bar:

        def shown(key: str) -> None:
            bar.set_description(key, refresh=False)
            bar.update()

        statuses = part_status.of_parts(args.raw, args.corpora, shown)
    print(parts_table.text(statuses))
    if args.out is not None:
        settings = {name: str(value) for name, value in sorted(vars(args).items())}
        write_report(
            args.out,
            "Parts of UniMed",
            [parts_table.section(statuses), config_section(settings, "Settings")],
            "Made by `unimed-jax corpus-status`.",
        )
        print(f"report: {args.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--raw", type=files.flag, help="folder of the source data, with any folders for the parts")
    add("--corpora", type=files.flag, help="folder with a converted corpus in KEY for every part")
    add("--out", type=files.flag, help="also write an HTML report to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
