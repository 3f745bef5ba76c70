"""Compiles the published recipes for TPU slices, without a TPU, and writes docs/log/tpu_report.md.

    pip install --target=libtpu 'libtpu==0.0.42.*'
    PYTHONPATH=libtpu python benchmarks/tpu_report.py [--cache=tpu_report]

Every step is compiled by tools/compile_report.py in a separate process, 2 to 4 minutes of one core
each. Results in --cache are not compiled again: a stopped run resumes; remove the directory after a
change of the code. Writes docs/log/tpu_report.md and .json.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import tpu_attention
from tqdm import tqdm

from unimed_jax.aot import compile_report, hlo, hlo_cost
from unimed_jax.distributed import sharding
from unimed_jax.losses import contrastive, ring

ROOT = Path(__file__).resolve().parents[1]
B16, L14, L14_LARGE = "vit_b16", "vit_l14", "vit_l14_large_text"

Job = tuple[str, str, dict[str, Any]]  # variant of configs/unimed.py, topology, changed keys

# what two sections show is compiled once
SECTIONS: dict[str, list[Job]] = {
    "The published recipes at their batch of 2,048": [
        (B16, "v5e:4x4", {}),
        (B16, "v5e:8x8", {}),
        (L14, "v5e:4x4", {"mesh.fsdp": 4}),
        (L14, "v5e:8x8", {}),
        (L14_LARGE, "v5e:4x4", {"mesh.fsdp": 4}),
        (L14_LARGE, "v5e:8x8", {}),
    ],
    "ViT-B/16 at a batch of 32,768": [
        (B16, topology, {"batch_size": 32768}) for topology in ("v5e:16x16", "v5p:4x4x4")
    ],
    "Weak scaling: ViT-B/16, 128 pairs per chip, 16 to 1,024 chips": [
        (B16, "v5e:4x4", {}),
        (B16, "v5e:8x8", {"batch_size": 8192}),
        (B16, "v5e:16x16", {"batch_size": 32768}),
        (B16, "v5p:8x8x16", {"batch_size": 131072}),
    ],
}


def arguments(job: Job) -> list[str]:
    recipe, topology, changes = job
    return [
        f"--config=configs/unimed.py:{recipe}",
        f"--topology={topology}",
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]


def cached(job: Job, cache: Path) -> Path:
    name = hashlib.sha256(" ".join(arguments(job)).encode()).hexdigest()[:16]
    return cache / f"{name}.json"


def run(cache: Path) -> None:
    """Compiles what the cache does not have."""
    jobs = {cached(job, cache): job for jobs in SECTIONS.values() for job in jobs}
    missing = {path: job for path, job in jobs.items() if not path.exists()}
    bar = tqdm(missing.items(), "steps compiled", total=len(jobs), initial=len(jobs) - len(missing))
    for path, job in bar:
        bar.write(" ".join(arguments(job)))
        path_variable = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        files = (f"--json={path}", f"--hlo={path.with_suffix('.hlo')}")
        subprocess.run(
            [sys.executable, "tools/compile_report.py", *arguments(job), *files],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path_variable},
            stdout=subprocess.DEVNULL,
            check=True,
        )


def read(job: Job, cache: Path) -> dict[str, Any]:
    recipe, _, changes = job
    return {"recipe": recipe, "changes": changes, **json.loads(cached(job, cache).read_text())}


def loss_alone(topology: str, cache: Path) -> dict[str, Any]:
    """Temporaries of value and gradients of the losses alone, and of the textbook's softmax."""
    path = cache / f"loss_{topology.replace(':', '_')}.json"
    if not path.exists():
        devices = compile_report.topology_devices(topology)
        mesh = sharding.make_mesh({"data": len(devices), "fsdp": 1, "tensor": 1}, devices)
        by_rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
        batch = LOSS_ROWS * len(devices)
        embeddings = jax.ShapeDtypeStruct((batch, LOSS_WIDTH), jnp.float32)
        found = {"chips": len(devices), "batch": batch}
        for name, function in LOSSES.items():
            step = jax.jit(
                jax.value_and_grad(function, argnums=(0, 1, 2)),
                in_shardings=(by_rows, by_rows, whole),
                out_shardings=(whole, (by_rows, by_rows, whole)),
            )
            with jax.set_mesh(mesh):
                scalar = jax.ShapeDtypeStruct((), jnp.float32)
                try:
                    program = step.lower(embeddings, embeddings, scalar).compile()
                except jax.errors.JaxRuntimeError as error:
                    found[name] = compile_report.refusal(str(error))
                    continue
            cost = hlo_cost.cost(hlo.parse(program.as_text()), len(devices))
            found[name] = {
                "fits": True,
                "hbm_gib": {"temporaries": program.memory_analysis().temp_size_in_bytes / 2**30},
                "collective_bytes": dict(cost.collective_bytes),
            }
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def textbook_loss(images: jax.Array, texts: jax.Array, scale: jax.Array) -> jax.Array:
    """The B x B similarities at once; the compiler divides them and gathers what they need."""
    logits = scale * jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
    both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    return jnp.mean(both / 2 - jnp.diagonal(logits))


LOSS_ROWS, LOSS_WIDTH = 1024, 512  # of one chip
LOSS_TOPOLOGIES = ("v5e:4x4", "v5e:8x8", "v5e:16x16", "v5p:8x8x16")
LOSSES = {
    "softmax": contrastive.softmax_contrastive_loss,
    "sigmoid": lambda u, w, s: contrastive.sigmoid_contrastive_loss(u, w, s, jnp.float32(-10)),
    "textbook softmax": textbook_loss,
}


def loss_section(reports: list[dict[str, Any]]) -> str:
    rows, width = LOSS_ROWS, LOSS_WIDTH
    formula = 4 * (3 * rows * min(rows, ring.CHUNK) + 6 * rows * width) / 2**20
    lines = [
        f"## The loss alone: {rows:,} pairs per chip, embeddings of {width}",
        "",
        f"By the [formula](../guides/tpu.md#memory-of-the-loss), at most {formula:.0f} MiB for the "
        "ring, whatever the number of chips; part of it is in the chip's own memory and not in the "
        "HBM.",
        "",
        f"| chips | batch | {' | '.join(f'{name}: HBM MiB | sent MB' for name in LOSSES)} |",
        "|" + " --- |" * (2 + 2 * len(LOSSES)),
    ]
    for found in reports:
        cells = [f"{found['chips']:,}", f"{found['batch']:,}"]
        for name in LOSSES:
            one = found[name]
            if one["fits"]:
                cells.append(f"{one['hbm_gib']['temporaries'] * 1024:,.1f}")
                cells.append(f"{sum(one['collective_bytes'].values()) / 1e6:,.0f}")
            else:
                cells += [f"refused: {(one['hbm_gib']['total'] or 0) * 1024:,.0f}", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def attention_section(cache: Path) -> tuple[str, list[dict[str, Any]]]:
    path = cache / "attention.json"
    if not path.exists():
        subprocess.run([sys.executable, "benchmarks/tpu_attention.py", f"--json={path}"],
                       cwd=ROOT, check=True)  # fmt: skip
    found = json.loads(path.read_text())
    title = (
        "## Attention: the gradient of one layer on v5e, 128 rows per chip, bfloat16\n\n"
        "`PYTHONPATH=libtpu python benchmarks/tpu_attention.py`\n\n"
    )
    return title + tpu_attention.table(found), found


def section(title: str, reports: list[dict[str, Any]]) -> str:
    """A table, and the command of each line."""
    lines = [f"## {title}", "", compile_report.table(reports), ""]
    for report in reports:
        changed = "".join(f" --config.{k}={v}" for k, v in report["changes"].items())
        refused = "" if report["fits"] else f": {report['refusal']}"
        lines.append(f"- `{report['recipe']}` on {report['topology']}{changed}{refused}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("tpu_report"))
    cache = parser.parse_args().cache.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    run(cache)
    found = {title: [read(job, cache) for job in jobs] for title, jobs in SECTIONS.items()}
    [versions] = {tuple(r["versions"].items()) for reports in found.values() for r in reports}
    head = (
        "# What the TPU's compiler says\n\n"
        "    PYTHONPATH=libtpu python benchmarks/tpu_report.py\n\n"
        f"{', '.join(' '.join(v) for v in versions)}. Columns, roofline, and how far to trust "
        "them: [guide](../guides/tpu.md).\n"
    )
    sections = [section(title, reports) for title, reports in found.items()]
    found["The loss alone"] = [
        loss_alone(topology, cache) for topology in tqdm(LOSS_TOPOLOGIES, "losses compiled")
    ]
    sections.append(loss_section(found["The loss alone"]))
    text, found["Attention"] = attention_section(cache)
    sections.append(text)
    (ROOT / "docs" / "log" / "tpu_report.md").write_text(
        "\n\n".join([head.rstrip(), *sections]) + "\n"
    )
    (ROOT / "docs" / "log" / "tpu_report.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
