"""A training step of text-guided segmentation beside the same in eager PyTorch, in float32.

    python benchmarks/segmentation_step.py [--batch_size=8] [--image_size=192] [--rounds=5]

A ResNet-34 U-Net (CCSDG's, 2 classes), Dice and cross-entropy, the alignment with text, and SGD on
random images. PyTorch takes the alignment once with loops over images, patches and classes, as the
published code does, and once vectorised. Ours is what the trainer compiles, with the augmentation
that it always has; PyTorch's has none. Their rounds alternate on the same cores; the ratio is the
median over rounds. Needs the extra [torch].
"""

import argparse
import os
import runpy
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import interleave
import numpy as np

CLASSES, WIDTH = 2, 384
LOOPS, VECTORISED, OURS = "PyTorch, loops", "PyTorch, vectorised", "unimed_jax"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=2, help="per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        SIDES[args.side](args)
        return
    flags = [f"--{key}={getattr(args, key)}" for key in ("batch_size", "image_size", "steps")]
    sides = {name: (sys.executable, __file__, *flags, f"--side={name}") for name in SIDES}
    times = interleave.compare(sides, args.rounds)
    print(f"{len(os.sched_getaffinity(0))} cores, batches of {args.batch_size}, "
          f"{args.image_size} px; {args.rounds} rounds of {args.steps} steps")  # fmt: skip
    print("| | s / step, median | times ours | by CPU time |")
    print("|---|---|---|---|")
    for name, taken in times.items():
        wall, cpu = (
            interleave.ratio(theirs, ours)
            for theirs, ours in ((taken.wall, times[OURS].wall), (taken.cpu, times[OURS].cpu))
        )
        seconds = statistics.median(taken.wall) / args.steps
        print(f"| {name} | {seconds:.3f} | {wall:.2f} | {cpu:.2f} |")


def images_and_labels(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """float32 (B, S, S, 3) in 0..1, and labels (B, S, S) of blobs of 16 pixels."""
    rng = np.random.default_rng(0)
    shape = (args.batch_size, args.image_size, args.image_size)
    cells = rng.integers(0, CLASSES + 1, (shape[0], shape[1] // 16, shape[2] // 16))
    cells *= rng.random(cells.shape) < 0.3
    return rng.random((*shape, 3), np.float32), np.kron(cells, np.ones((16, 16), int))


def ours(args: argparse.Namespace) -> None:
    import jax

    from unimed_jax import tasks
    from unimed_jax.distributed import cpu_allocator, sharding, xla_options
    from unimed_jax.training import train_step

    cpu_allocator.tune_malloc()  # as the trainer does
    recipe = ROOT / "configs" / "lg_sdg" / "riga.py"
    config = runpy.run_path(str(recipe))["get_config"]("source=binrushed")
    config.head, config.batch_size = "exclusive", args.batch_size
    config.model.image_size, config.model.channel_prompts = args.image_size, False
    config.content_style_weight = 0.0
    config.augmentation.update({"location_scale": "none", "fourier": False, "plain": True})
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    program = train_step.TrainStep(tasks.create(config, "/nonexistent"), config, 1000, mesh)
    state = jax.jit(
        program.init,
        out_shardings=program.shardings,
        compiler_options=xla_options.one_shot_options(mesh),
    )(program.key())
    step, key = program.lower().compile(), program.key()
    images, labels = images_and_labels(args)
    seeds = np.arange(3 * args.batch_size, dtype=np.uint32).reshape(-1, 3)
    batch = {"image": images, "label": labels.astype(np.int32), "seed": seeds}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))

    def run_round() -> None:
        nonlocal state
        for _ in range(args.steps):
            state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)

    interleave.serve_rounds(run_round)


def in_torch(form: str, args: argparse.Namespace) -> None:
    import alignment_in_torch
    import torch
    import torch.nn.functional as F
    import torchvision

    alignment = getattr(alignment_in_torch, form)

    class Up(torch.nn.Module):
        def __init__(self, inputs: int, skip: int) -> None:
            super().__init__()
            self.up = torch.nn.ConvTranspose2d(inputs, 128, 2, 2)
            self.skip, self.bn = torch.nn.Conv2d(skip, 128, 1), torch.nn.BatchNorm2d(256)

        def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
            return self.bn(F.relu(torch.cat([self.up(x), self.skip(skip)], 1)))

    class UNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torchvision.models.resnet34()
            self.decoder = torch.nn.ModuleList(
                Up(inputs, skip) for inputs, skip in ((512, 256), (256, 128), (256, 64), (256, 64))
            )
            self.head = torch.nn.ConvTranspose2d(256, CLASSES + 1, 2, 2)
            self.project = torch.nn.Linear(512, WIDTH)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            e = self.encoder
            skips = [F.relu(e.bn1(e.conv1(x)))]
            x = e.maxpool(skips[0])
            for stage in (e.layer1, e.layer2, e.layer3, e.layer4):
                x = stage(x)
                skips.append(x)
            tokens = self.project(x.flatten(2).transpose(1, 2))
            for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
                x = block(x, skip)
            return self.head(x), tokens

    model = UNet().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    images, labels = images_and_labels(args)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(labels)
    text = F.normalize(torch.randn(CLASSES, WIDTH), dim=-1)

    def run_round() -> None:
        for _ in range(args.steps):
            optimizer.zero_grad()
            mean = x.mean((2, 3), keepdim=True)
            std = x.std((2, 3), keepdim=True, correction=0)
            logits, tokens = model((x - mean) / (std + 1e-5))
            p, g = logits.softmax(1), F.one_hot(y, CLASSES + 1).permute(0, 3, 1, 2)
            total = (p * p).sum((2, 3)) + g.sum((2, 3))
            dice = 1 - 2 * (p * g).sum((2, 3)) / (total + 1e-6)
            loss = F.cross_entropy(logits, y) + dice.mean() + alignment(tokens, y, text)
            loss.backward()
            optimizer.step()

    interleave.serve_rounds(run_round)


SIDES = {
    LOOPS: lambda args: in_torch("with_loops", args),
    VECTORISED: lambda args: in_torch("vectorised", args),
    OURS: ours,
}


if __name__ == "__main__":
    main()
