"""The loss curve of one config on four meshes of eight simulated CPU devices.

    python benchmarks/meshes.py [--steps=20]

Prints the losses side by side and the largest relative difference from the single device.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from input_pipeline.conversion.phantom_corpus import write_phantoms
from unimed_jax.monitoring import metrics
from unimed_jax.testing import tiny_config
from unimed_jax.train import train

MESHES = ((1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "phantoms"
        write_phantoms(corpus, num_train_per_class=6, num_val_per_class=2, image_size=40)
        for data, fsdp, tensor in MESHES:
            changes = {
                "num_train_steps": steps,
                "checkpoint.every_steps": steps,
                "mesh.data": data,
                "mesh.fsdp": fsdp,
                "mesh.tensor": tensor,
                "evals": {},
            }
            workdir = Path(folder) / f"{data}x{fsdp}x{tensor}"
            devices = jax.devices()[: data * fsdp * tensor]
            train(tiny_config(str(corpus), changes), workdir, devices)
            rows = metrics.read_metrics(workdir / "metrics.jsonl")
            curves[workdir.name] = [row["loss"] for row in rows]
    reference = curves["1x1x1"]
    print("\nstep  " + "  ".join(f"{name:>12}" for name in curves))
    for step in range(steps):
        print(f"{step + 1:>4}  " + "  ".join(f"{c[step]:12.7f}" for c in curves.values()))
    worst = {
        name: max(abs(a - b) / abs(b) for a, b in zip(curve, reference, strict=True))
        for name, curve in curves.items()
    }
    print("worst " + "  ".join(f"{w:12.1e}" for w in worst.values()))


if __name__ == "__main__":
    main()
