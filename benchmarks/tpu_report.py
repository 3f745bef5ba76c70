"""Compiles the published recipes for TPU slices, on a machine without a TPU: docs/tpu_report.md.

    pip install --target=libtpu 'libtpu==0.0.42.*'
    PYTHONPATH=libtpu python benchmarks/tpu_report.py [--cache=tpu_report]

Every step is compiled by tools/compile_report.py in a process of its own, 2 to 4 minutes of CPU
each; what is found in --cache is not compiled again. Writes docs/tpu_report.md and .json.
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
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp

from unimed_jax import ahead_of_time, hlo, hlo_cost, losses, sharding

ROOT = Path(__file__).resolve().parents[1]
B16 = "unimed_vit_b16"
L14, L14_LARGE = "unimed_vit_l14_336_base_text", "unimed_vit_l14_336_large_text"

# title -> (recipe, topology, changed keys), ...; what two sections show is compiled once
SECTIONS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "The published recipes at their batch of 2,048": [
        (recipe, topology, {})
        for recipe in (B16, L14, L14_LARGE)
        for topology in ("v5e:4x4", "v5e:8x8")
    ],
    "ViT-B/16 at a batch of 32,768": [
        (B16, "v5e:16x16", {"batch_size": 32768}),
        (B16, "v5p:4x4x4", {"batch_size": 32768}),
    ],
    "Weak scaling: ViT-B/16, 128 pairs per chip, 16 to 1,024 chips": [
        (B16, "v5e:4x4", {}),
        (B16, "v5e:8x8", {"batch_size": 8192}),
        (B16, "v5e:16x16", {"batch_size": 32768}),
        (B16, "v5p:8x8x16", {"batch_size": 131072, "data.num_streams": 256}),
    ],
    "Microbatches: ViT-B/16, 2,048 pairs on 4 chips, no other rematerialisation": [
        (B16, "v5e:2x2", {"optimizer.accumulate_steps": count, "model.remat": "none"})
        for count in (1, 4, 16)
    ],
    "Attention: ViT-L/14-336 on v5e-64, plain and by the kernel": [
        (L14, "v5e:8x8", changes) for changes in ({"model.attention": "plain"}, {})
    ],
}


def compiled(recipe: str, topology: str, changes: dict[str, Any], cache: Path) -> dict[str, Any]:
    """The report of one step, from the cache if it is there."""
    arguments = [
        f"--config=configs/{recipe}.py",
        f"--topology={topology}",
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]
    path = cache / f"{hashlib.sha256(' '.join(arguments).encode()).hexdigest()[:16]}.json"
    if not path.exists():
        print(" ".join(arguments), flush=True)
        path_variable = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        subprocess.run(
            [sys.executable, "tools/compile_report.py", *arguments, f"--json={path}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path_variable},
            check=True,
        )
    return {"recipe": recipe, "changes": changes, **json.loads(path.read_text())}


def loss_alone(topology: str, cache: Path, rows: int = 128, width: int = 512) -> dict[str, Any]:
    """Temporaries of value and gradients of the softmax loss alone, and of the textbook's form."""
    path = cache / f"loss_{topology.replace(':', '_')}.json"
    if not path.exists():
        print("loss on", topology, flush=True)
        devices = ahead_of_time.topology_devices(topology)
        mesh = sharding.make_mesh({"data": len(devices), "fsdp": 1, "tensor": 1}, devices)
        by_rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
        embeddings = jax.ShapeDtypeStruct((rows * len(devices), width), jnp.float32)
        found = {"chips": len(devices), "batch": rows * len(devices)}
        for name, function in (
            ("ring", losses.softmax_contrastive_loss),
            ("textbook", textbook_loss),
        ):
            step = jax.jit(
                jax.value_and_grad(function, argnums=(0, 1, 2)),
                in_shardings=(by_rows, by_rows, whole),
                out_shardings=(whole, (by_rows, by_rows, whole)),
            )
            with jax.set_mesh(mesh):
                scalar = jax.ShapeDtypeStruct((), jnp.float32)
                program = step.lower(embeddings, embeddings, scalar).compile()
            cost = hlo_cost.cost(hlo.parse(program.as_text()), len(devices))
            found[name] = {
                "temporaries_mib": program.memory_analysis().temp_size_in_bytes / 2**20,
                "sent_mb": sum(cost.collective_bytes.values()) / 1e6,
            }
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def textbook_loss(images: jax.Array, texts: jax.Array, scale: jax.Array) -> jax.Array:
    """The B x B similarities at once; the compiler divides them and gathers what they need."""
    logits = scale * jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
    both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    return jnp.mean(both / 2 - jnp.diagonal(logits))


def loss_section(reports: list[dict[str, Any]]) -> str:
    lines = [
        "## The loss alone: 128 pairs per chip, embeddings of 512",
        "",
        "| chips | batch | ring: temporaries MiB | sent MB | textbook: temporaries MiB | sent MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for found in reports:
        cells = [f"{found['chips']:,}", f"{found['batch']:,}"] + [
            f"{found[form][key]:,.1f}"
            for form in ("ring", "textbook")
            for key in ("temporaries_mib", "sent_mb")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def section(title: str, reports: list[dict[str, Any]]) -> str:
    """A table, and the command of each line."""
    lines = [f"## {title}", "", ahead_of_time.table(reports), ""]
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
    found = {title: [compiled(*job, cache) for job in jobs] for title, jobs in SECTIONS.items()}
    [versions] = {tuple(r["versions"].items()) for reports in found.values() for r in reports}
    head = (
        "# What the TPU's compiler says\n\n"
        "    PYTHONPATH=libtpu python benchmarks/tpu_report.py\n\n"
        f"{', '.join(' '.join(v) for v in versions)}. Columns, roofline and how far to trust it: "
        "[tpu.md](tpu.md).\n"
    )
    sections = [section(title, reports) for title, reports in found.items()]
    topologies = ("v5e:4x4", "v5e:8x8", "v5e:16x16", "v5p:8x8x16")
    found["The loss alone"] = [loss_alone(topology, cache) for topology in topologies]
    sections.append(loss_section(found["The loss alone"]))
    (ROOT / "docs" / "tpu_report.md").write_text("\n\n".join([head.rstrip(), *sections]) + "\n")
    (ROOT / "docs" / "tpu_report.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
