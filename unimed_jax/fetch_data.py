"""Brings the figures of PubMed Central that LLaVA-Med and PMC-OA name.

    unimed-jax fetch pmc --raw=DIR
    unimed-jax convert llava_med_alignment --raw=DIR --out=corpora/llava_med_alignment

DIR holds the annotation files of the parts, and for LLaVA-Med its llava_med_image_urls.jsonl. The
figures come from the open-data bucket of PubMed Central (pip install 'unimed_jax[pmc]'), article by
article, to where `convert` looks for them; images that are there stay. The same command resumes
after an interruption. Beside them, pmc_fetch.jsonl has the key, checksums and terms of every
figure, pmc_gone.jsonl what cannot be had any more, with the reason.

PMC-OA's images are panels cut out of figures. They come with PMC-OA itself (images.zip); this
command can only bring the whole figure in place of a panel that is missing.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from input_pipeline.conversion import pmc_bucket, pmc_figures
from input_pipeline.conversion.pmc_figures import PARTS_OF_PMC, Counts
from input_pipeline.io import cli, files, locks
from input_pipeline.io.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    0: every figure is there or gone; 75: some could not be fetched now; 2: the input is invalid.
    """
    args = _parser().parse_args(argv)
    return cli.run(lambda: _fetch(args), "interrupted; the same command resumes here")


def _fetch(args: argparse.Namespace) -> int:
    keys = [key.strip() for key in (args.parts or "").split(",") if key.strip()]
    if unknown := [key for key in keys if key not in PARTS_OF_PMC]:
        raise UserError(f"--parts={unknown[0]}: expected some of {', '.join(PARTS_OF_PMC)}")
    if not files.is_local(args.raw) or not args.raw.is_dir():
        raise UserError(f"--raw={args.raw}: expected a folder on a disk")
    for name in ("requests_per_second", "connections", "most_articles"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name}={value:g}: expected a number above 0")
    began = time.monotonic()
    with locks.exclusive(args.raw):
        bucket = pmc_bucket.PmcBucket(args.bucket, args.requests_per_second, args.connections)
        with tqdm(desc="fetching", unit=" figures") as bar:

            def show(counts: Counts) -> None:
                bar.total = counts.named - counts.there
                bar.update(counts.fetched + counts.gone + counts.failed - bar.n)
                bar.set_postfix(gone=counts.gone, failed=counts.failed, refresh=False)

            counts = pmc_figures.fetch(
                args.raw,
                keys or pmc_figures.llava_parts(args.raw),
                bucket,
                connections=args.connections,
                most_articles=args.most_articles,
                again=args.again,
                progress=show,
            )
    left = counts.named - counts.there - counts.fetched - counts.gone - counts.failed
    print(
        f"{counts.named} figures named = {counts.there} there before + {counts.fetched} fetched "
        f"+ {counts.gone} gone + {counts.failed} failed + {left} not asked for; "
        f"{counts.num_bytes / 1e6:.1f} MB by {bucket.pacer.calls} requests in "
        f"{time.monotonic() - began:.0f} s"
    )
    if counts.gone:
        print(f"what is gone, and why: {args.raw / pmc_figures.GONE}")
    if counts.failed:
        print(
            f"could not be fetched now, for example {counts.first_failure}; run the command again",
            file=sys.stderr,
        )
        return cli.RESTART_STATUS
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=("pmc",), help="figures of PubMed Central")
    add("--raw", type=files.flag, required=True, help="folder of the parts, as `convert` takes it")
    add(
        "--parts",
        help=f"of {', '.join(PARTS_OF_PMC)}; default: those of LLaVA-Med that are there",
    )
    add(
        "--requests_per_second",
        type=float,
        default=50,
        help="at most, over all connections; default 50",
    )
    add("--connections", type=int, default=16, help="articles fetched at a time; default 16")
    add("--most_articles", type=int, help="stop after so many, to try; default: all")
    add("--again", action="store_true", help="ask again for what was gone in an earlier run")
    add("--bucket", default=pmc_bucket.BUCKET, help="a copy of the bucket; default: PMC's own")
    return parser


if __name__ == "__main__":
    sys.exit(main())
