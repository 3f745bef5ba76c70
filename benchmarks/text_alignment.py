"""The alignment with text, value and gradient: ours compiled, PyTorch eager, side by side.

    python benchmarks/text_alignment.py [--repeats=20]

The same numbers at the published size (32 images of 192 x 192, 36 patches, 4 classes, 512 wide).
PyTorch runs in a separate process, once with loops over images, patches and classes as in the
published code, once vectorized. Prints milliseconds (median) and ratios.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

BATCH, SIDE, GRID, CLASSES, WIDTH = 32, 192, 6, 4, 512


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (B, P, D), labels (B, H, W) with sparse blobs, text vectors (K, D)."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(BATCH, GRID**2, WIDTH)).astype(np.float32)
    cells = rng.integers(0, CLASSES + 1, (BATCH, 8, 8)) * (rng.random((BATCH, 8, 8)) < 0.3)
    labels = np.kron(cells, np.ones((SIDE // 8, SIDE // 8), int))
    return tokens, labels, rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)


def median_ms(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def in_jax(repeats: int) -> dict[str, float]:
    import jax

    from unimed_jax.losses.segmentation import classes_in_patches, text_alignment_loss

    tokens, labels, text = map(jax.numpy.asarray, inputs())

    def loss(tokens: jax.Array, labels: jax.Array) -> jax.Array:
        present = classes_in_patches(labels, (GRID, GRID), CLASSES)
        return text_alignment_loss(tokens, text, present)

    step = jax.jit(jax.value_and_grad(loss))
    value = float(step(tokens, labels)[0])
    ms = median_ms(lambda: jax.block_until_ready(step(tokens, labels)), repeats)
    return {"value": value, "ours, compiled": ms}


def in_torch(repeats: int) -> dict[str, float]:
    import alignment_in_torch
    import torch

    tokens, labels, text = map(torch.tensor, inputs())
    tokens.requires_grad_(True)
    loops, vectorised = (
        functools.partial(form, tokens, labels, text)
        for form in (alignment_in_torch.with_loops, alignment_in_torch.vectorised)
    )

    def step(loss: Callable[[], torch.Tensor]) -> None:
        tokens.grad = None
        loss().backward()

    return {
        "value": float(loops()),
        "value, vectorised": float(vectorised()),
        "PyTorch, loops": median_ms(lambda: step(loops), max(repeats // 10, 2)),
        "PyTorch, vectorised": median_ms(lambda: step(vectorised), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch:
        print(json.dumps(in_torch(args.repeats)))
        return
    command = [sys.executable, __file__, "--torch", f"--repeats={args.repeats}"]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    ours = in_jax(args.repeats)
    print(f"value: {ours['value']:.6f}, PyTorch {theirs['value']:.6f}")
    for name in ("PyTorch, loops", "PyTorch, vectorised"):
        print(f"{name}: {theirs[name]:.2f} ms, {theirs[name] / ours['ours, compiled']:.1f} x ours")
    print(f"ours, compiled: {ours['ours, compiled']:.2f} ms")


if __name__ == "__main__":
    main()
