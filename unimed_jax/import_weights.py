"""Converts published weights to a checkpoint of this project, without running their code.

    unimed-jax import unimed-clip-vit-b16.pt --out=imported/unimed_b16
    unimed-jax import hf:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 \\
        --out=imported/biomedclip
    unimed-jax import b16_400m.pt --out=imported/metaclip --towers=visual \\
        --set visual.activation=quick_gelu

SOURCE is a file, a directory, pkg:PACKAGE/PATH, hf:ORG/NAME or ORG/NAME, of any format listed in
docs/guides/weights.md. Training can also start from it directly (config.init); this command checks
a file, converts it once for many runs, or prepares it for evaluation. Every tensor that is missing,
unexpected or of another shape is listed and stops the import.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from input_pipeline.io import cli, files
from input_pipeline.io.errors import UserError
from input_pipeline.manifest import file_sha256
from input_pipeline.tokenizer import Tokenizer
from unimed_jax import config as config_lib
from unimed_jax.models import dual_encoder
from unimed_jax.models.config import ModelConfig
from unimed_jax.weights import model_directory
from unimed_jax.weights.checkpoint import make_meta
from unimed_jax.weights.loader import open_weights
from unimed_jax.weights.pretrained import Pretrained, part_of
from unimed_jax.weights.uri import resolve


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2: the input is invalid)."""
    args = _parser().parse_args(argv)
    return cli.run(lambda: _import(args))


def _import(args: argparse.Namespace) -> None:
    overrides = dict(map(config_lib.parse_assignment, args.set))
    pretrained = open_weights(args.source)
    parts = _parts(pretrained, args.towers)
    config = pretrained.model_config(overrides)
    _write(pretrained, parts, config, args)


def _parts(pretrained: Pretrained, towers: str) -> list[str]:
    wanted = towers.split(",") if towers else [p for p in pretrained.parts if p != "logits"]
    for tower in wanted:
        if tower not in pretrained.parts:
            raise UserError(
                f"--towers={towers}: {pretrained.source} ({pretrained.kind}) has "
                f"{', '.join(part for part in pretrained.parts if part != 'logits')}"
            )
    return [*wanted, *(["logits"] if "logits" in pretrained.parts else [])]


def _write(
    pretrained: Pretrained, parts: Sequence[str], config: ModelConfig, args: argparse.Namespace
) -> None:
    abstract = jax.eval_shape(dual_encoder.build(config).init, jax.random.key(0))
    abstract = {key: value for key, value in abstract.items() if part_of(key) in parts}
    tokenizer = None
    if "text" in parts:
        uri = args.tokenizer or pretrained.tokenizer
        if not uri:
            raise UserError(f"{pretrained.source} has no tokenizer: give --tokenizer=DIRECTORY")
        tokenizer = Tokenizer(resolve(uri, weights=False), config.text.context_length)
    params = pretrained.params(abstract, config)

    recipe = config_lib.base_config("contrastive")
    recipe.model.update(dataclasses.asdict(config))
    source = {"name": str(args.source), "kind": pretrained.kind}
    file = files.to_path(pretrained.source)
    if file.is_file():
        source["sha256"] = file_sha256(file)
    identity = {"tokenizer_sha256": tokenizer.sha256} if tokenizer else {}
    meta = make_meta(recipe, identity) | {"parts": list(parts), "source": source}

    def save_tokenizer(directory: Path) -> None:
        if tokenizer:
            tokenizer.save(directory / "tokenizer")

    model_directory.write(args.out.absolute(), params, recipe, meta, save_tokenizer)
    counts = {part: sum(x.size for x in jax.tree.leaves(params.get(part, {}))) for part in parts}
    sizes = ", ".join(f"{part} {count:,}" for part, count in counts.items() if count)
    print(f"{pretrained.kind}: {sizes} parameters -> {args.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="file, directory or URI of the weights")
    parser.add_argument("--out", type=files.flag, required=True, help="directory of the checkpoint")
    parser.add_argument("--towers", default="", help="visual, text or visual,text (default: all)")
    parser.add_argument(
        "--tokenizer", default="", help="directory or URI, if the weights name none"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="model key that the weights do not determine, e.g. visual.activation=quick_gelu",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
