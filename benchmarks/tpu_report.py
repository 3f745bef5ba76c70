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

from unimed_jax import ahead_of_time

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
    "Attention: ViT-L/14-336 on v5e-64, plain and fused": [
        (L14, "v5e:8x8", {"model.attention": form}) for form in ("plain", "fused")
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
    (ROOT / "docs" / "tpu_report.md").write_text("\n\n".join([head.rstrip(), *sections]) + "\n")
    (ROOT / "docs" / "tpu_report.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
