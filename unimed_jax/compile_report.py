"""Compiles the train step of any recipe for any TPU slice, on a machine without one.

    pip install --target=libtpu 'libtpu==0.0.42.*'
    PYTHONPATH=libtpu unimed-jax compile-report --config=configs/unimed.py:vit_b16 \\
        --topology=v5e:4x4 [--config.KEY=VALUE ...] [--json=FILE] [--markdown=FILE]
    ... --sweep [--remat=none,dots,full] [--accumulate=1,2,4] [--meshes=16x1x1,4x4x1]

Prints, and writes as JSON and Markdown: whether the step fits, memory per chip, compiled and model
FLOPs, bytes sent, and the bound of the roofline (docs/guides/tpu.md). --captions states the lengths
of captions, which decide what model.text.buckets saves. --sweep compiles
combinations of rematerialisation, microbatches (optimizer.accumulate_steps) and mesh
(data x fsdp x tensor), and names the fastest that fits; the JSON is then a list, fastest first.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported: the TPU is only described

from absl import app, flags
from ml_collections import config_flags

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import write_text_atomically
from unimed_jax.aot import caption_lengths, compile_report
from unimed_jax.distributed import process

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="recipe: a name in configs/, or FILE.py; with :variant"
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "e.g. v5e:4x4")
_SWEEP = flags.DEFINE_bool("sweep", False, "search for the fastest that fits")
_REMAT = flags.DEFINE_list("remat", ["none", "dots", "full"], "of the sweep")
_ACCUMULATE = flags.DEFINE_list("accumulate", ["1", "2", "4"], "of the sweep")
_MESHES = flags.DEFINE_list(
    "meshes", [], "of the sweep, DATAxFSDPxTENSOR; default: fsdp 1, about the square root, and all"
)
_CAPTIONS = flags.DEFINE_string(
    "captions",
    str(caption_lengths.PUBLISHED),
    "TOKENS:SHARE,... : lengths of captions that model.text.buckets meets",
)
_HLO = flags.DEFINE_string("hlo", None, "file for the text of the compiled program; not of a sweep")
_JSON = flags.DEFINE_string("json", None, "file for the figures")
_MARKDOWN = flags.DEFINE_string("markdown", None, "file for the table")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; keys are set by --config.KEY=VALUE")
    config, topology = _CONFIG.value, process.required(_TOPOLOGY)
    devices = compile_report.topology_devices(topology)
    captions = caption_lengths.CaptionLengths.parse(_CAPTIONS.value)
    result: compile_report.Report | list[compile_report.Report]
    if _SWEEP.value:
        result = reports = _sweep(config, topology, devices, captions)
    else:
        report = compile_report.compile_report(config, topology, devices, captions, _HLO.value)
        result, reports = report, [report]
    text = compile_report.table(reports) + "\n\n" + compile_report.details(reports[0])
    print(text)
    for path, content in (
        (_JSON.value, json.dumps(result, indent=2)),
        (_MARKDOWN.value, text),
    ):
        if path:
            write_text_atomically(Path(path), content + "\n")


def _sweep(
    config: Any, topology: str, devices: Any, captions: caption_lengths.CaptionLengths
) -> list[compile_report.Report]:
    """All reports: the fastest variant that fits first, variants that do not fit last."""
    meshes = [_mesh(text) for text in _MESHES.value]
    candidates = compile_report.variants(
        config,
        len(devices),
        _REMAT.value,
        [int(count) for count in _ACCUMULATE.value],
        meshes or compile_report.default_meshes(len(devices)),
    )
    reports = []
    for report in compile_report.sweep(config, topology, devices, candidates, captions):
        print(" | ".join(compile_report.row(report)), flush=True)
        reports.append(report)
    if not reports:
        raise UserError(f"no combination of the sweep fits batch_size {config.batch_size}")
    print()
    return sorted(reports, key=lambda report: -(report["bound_images_per_sec"] or 0))


def _mesh(text: str) -> tuple[int, int, int]:
    try:
        data, fsdp, tensor = (int(size) for size in text.split("x"))
    except ValueError:
        raise UserError(
            f"--meshes: {text!r}, expected sizes such as 4x4x1 (data x fsdp x tensor)"
        ) from None
    return data, fsdp, tensor


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits; ``argv``: the arguments, None for those of the process."""
    flags.mark_flags_as_required(["config", "topology"])
    process.run(_main, argv)


if __name__ == "__main__":
    main()
