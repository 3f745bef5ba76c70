"""Attention of one layer on a TPU v5e, plain and by the kernel: the cycles its compiler expects.

    PYTHONPATH=libtpu python benchmarks/tpu_attention.py [--json=FILE]

Compiles the gradient of `models.layers.SelfAttention`, projections and dropout masks included, for
the lengths and widths of the published models at 128 rows per chip in bfloat16: no TPU is used. The
compiler states cycles of its own code only. A kernel's are counted here from its dumped schedule:
instruction bundles of one step of its grid, or the bytes that the step moves over the bandwidth of
the memory if that takes longer, times the steps. Seconds per shape.
"""

import argparse
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.aot import compile_report, hlo, hlo_cost
from unimed_jax.distributed import sharding
from unimed_jax.models.attention import LANES
from unimed_jax.models.layers import SelfAttention
from unimed_jax.monitoring.hardware import CHIPS

ROWS = 128  # of one chip
CLOCK = 1.5e9  # Hz, of v5e: 197 TFLOP/s from four matrix units of 128 x 128
CHIP = CHIPS["TPU v5e"]

# name -> tokens, heads, dropout
SHAPES = {
    "image, B/32 at 224": (50, 12, 0.0),
    "image, B/16 at 224": (197, 12, 0.0),
    "image, L/14 at 336": (577, 16, 0.0),
    "text, base": (256, 12, 0.1),
    "text, large": (256, 16, 0.1),
    "text, base, without dropout": (256, 12, 0.0),
}


def measured(
    tokens: int, heads: int, rate: float, form: str, devices: Any, dumps: Path
) -> dict[str, Any]:
    """Cycles and temporaries of the gradients of one layer, per chip."""
    for file in dumps.iterdir():
        file.unlink()
    width = 64 * heads
    mesh = sharding.make_mesh({"data": len(devices), "fsdp": 1, "tensor": 1}, devices)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)

    def layer(rngs: nnx.Rngs) -> SelfAttention:
        init = nnx.initializers.normal(0.02)
        return SelfAttention(
            width, heads, qkv_init=init, out_init=init, dropout=rate, implementation=form,
            dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=rngs,
        )  # fmt: skip

    graphdef, params = nnx.split(nnx.eval_shape(lambda: layer(nnx.Rngs(0))))

    def loss(params: Any, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        out = nnx.merge(graphdef, params)(x, mask=mask, dropout_key=key)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    count = ROWS * len(devices)
    step = jax.jit(
        jax.grad(loss, argnums=(0, 1)),
        in_shardings=(whole, rows, rows, whole),
        out_shardings=(whole, rows),
    )
    with jax.set_mesh(mesh):
        program = step.lower(
            params,
            jax.ShapeDtypeStruct((count, tokens, width), jnp.bfloat16),
            jax.ShapeDtypeStruct((count, tokens), bool),
            jax.eval_shape(lambda: jax.random.key(0)),
        ).compile()
    cost = hlo_cost.cost(hlo.parse(program.as_text()), len(devices))
    kernels = [
        ROWS * width // LANES * max(bundles, moved / CHIP.hbm_bandwidth * CLOCK)
        for bundles, moved in _kernels(dumps, tokens, width, rate)
    ]
    return {
        "form": form,
        "compiler_cycles": cost.compiler_cycles,
        "kernel_cycles": sum(kernels),
        "temporaries_mib": program.memory_analysis().temp_size_in_bytes / 2**20,
        "memory_bytes": cost.memory_bytes,
    }


def _kernels(dumps: Path, tokens: int, width: int, rate: float) -> list[tuple[int, float]]:
    """(bundles, bytes) of one step of the grid of each kernel that was dumped."""
    found = []
    for path in dumps.glob("*schedule-analysis_final_bundles.txt"):
        text = path.read_text()
        if 'custom_call_target="tpu_custom_call"' in text:
            # q, k, v in and one array out; in the backward pass the cotangent and three arrays
            outputs = int(re.search(r"= \w+\[\d+,\d+,(\d+)\]", text)[1]) // width
            arrays = 4 if outputs == 1 else 7
            keep = 2 * tokens * -(-tokens // 2) if rate else 0  # two heads in a group
            moved = arrays * tokens * LANES * 2 + keep
            found.append((int(re.search(r"total scheduled bundles:\s+(\d+)", text)[1]), moved))
    return found


COLUMNS = (
    "layer", "tokens", "heads", "dropout", "form", "Mcycles", "of them kernels", "MB moved",
    "temporaries MiB",
)  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, two lines per layer."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for one in found:
        cycles = one["compiler_cycles"], one["kernel_cycles"]
        lines.append(
            (
                *(str(one[key]) for key in ("name", "tokens", "heads", "dropout")),
                "kernel" if one["form"] == "auto" else one["form"],
                f"{sum(cycles) / 1e6:.1f}",
                f"{cycles[1] / 1e6:.1f}",
                f"{one['memory_bytes'] / 1e6:,.0f}",
                f"{one['temporaries_mib']:,.0f}",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as dumps:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dumps} --xla_jf_dump_llo_text=true"
        devices = compile_report.topology_devices("v5e:2x2")
        found = []
        for name, (tokens, heads, rate) in SHAPES.items():
            for form in ("plain", "auto"):
                about = {"name": name, "tokens": tokens, "heads": heads, "dropout": rate}
                found.append(about | measured(tokens, heads, rate, form, devices, Path(dumps)))
                print(json.dumps(found[-1]), flush=True)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
