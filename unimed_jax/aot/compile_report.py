"""Compiles train steps for TPUs that are not attached, and reports whether they fit and their cost.

Needs libtpu, which compiles on any Linux machine, but no TPU, data or weights.
"""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from input_pipeline.io.errors import UserError
from unimed_jax import config as config_lib
from unimed_jax import tasks
from unimed_jax.aot import hlo, hlo_cost
from unimed_jax.aot.caption_lengths import PUBLISHED, CaptionLengths
from unimed_jax.distributed import process, sharding
from unimed_jax.models import text_buckets
from unimed_jax.monitoring.hardware import CHIPS, Chip
from unimed_jax.tasks.contrastive import Contrastive
from unimed_jax.training import train_step

KNOWN_TOPOLOGIES = (
    "v4:2x2x2 v4:4x4x4 v4:8x8x8 v5e:2x2 v5e:2x4 v5e:4x4 v5e:8x8 v5e:16x16 v5p:2x2x2 v5p:4x4x4 "
    "v5p:8x8x8 v5p:8x8x16 v6e:2x2 v6e:4x4 v6e:8x8 v6e:16x16 tpu7x:2x2x2 tpu7x:4x4x4"
)

# read by libtpu when it is loaded: do not look for a TPU or a cloud metadata server
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at once
}

_REMAT = ("none", "dots", "full")  # in the order of increasing recomputation

Report = dict[str, Any]


def topology_devices(name: str) -> Sequence[jax.Device]:
    """Descriptions of the devices of a slice, such as "v5e:4x4" with 16 chips.

    Raises:
      UserError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"libtpu, the TPU's compiler, is not installed: pip install '{wanted_libtpu()}' "
            "(with --target=DIR and DIR on PYTHONPATH it stays out of the environment)"
        )
    os.environ.update(ENVIRONMENT | process.compiler_environment())
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:
        raise UserError(
            f"libtpu has no topology {name!r} ({str(error).splitlines()[0]}); valid: "
            f"{KNOWN_TOPOLOGIES}"
        ) from error


def wanted_libtpu() -> str:
    """The version of libtpu that the installed JAX requires."""
    stated = importlib.metadata.requires("jax") or []
    libtpu = next((r for r in stated if r.startswith("libtpu")), "libtpu")
    return libtpu.partition(";")[0].strip()


@dataclasses.dataclass(frozen=True)
class Variant:
    """The settings of a config that change the speed and memory of a step, but not its result."""

    data: int
    fsdp: int
    tensor: int
    accumulate_steps: int
    remat: str

    @classmethod
    def of(cls, config: ConfigDict, num_devices: int) -> "Variant":
        mesh = config_lib.mesh_shape(config, num_devices)
        return cls(**mesh, accumulate_steps=config.optimizer.accumulate_steps,
                   remat=config.model.remat)  # fmt: skip

    def apply(self, config: ConfigDict) -> ConfigDict:
        changed = config.copy_and_resolve_references()
        changed.mesh.data, changed.mesh.fsdp, changed.mesh.tensor = (
            self.data,
            self.fsdp,
            self.tensor,
        )
        changed.optimizer.accumulate_steps = self.accumulate_steps
        changed.model.remat = self.remat
        return changed

    def recomputes_less(self, other: "Variant") -> bool:
        """Whether, on the same mesh, it recomputes only a part of what ``other`` recomputes."""
        same_mesh = (self.data, self.fsdp, self.tensor) == (other.data, other.fsdp, other.tensor)
        return (
            self != other
            and same_mesh
            and self.accumulate_steps <= other.accumulate_steps
            and _REMAT.index(self.remat) <= _REMAT.index(other.remat)
        )


def variants(
    config: ConfigDict,
    num_devices: int,
    remat: Sequence[str],
    accumulate_steps: Sequence[int],
    meshes: Sequence[tuple[int, int, int]],
) -> Iterator[Variant]:
    """All combinations that the batch size allows, in the order of increasing recomputation."""
    for mesh, count, policy in itertools.product(meshes, accumulate_steps, remat):
        variant = Variant(*mesh, accumulate_steps=count, remat=policy)
        try:
            config_lib.validate(variant.apply(config), num_devices)
        except UserError:
            continue
        yield variant


def default_meshes(num_devices: int) -> list[tuple[int, int, int]]:
    """(data, fsdp, tensor): no FSDP, FSDP over about the square root of the devices, over all."""
    sizes = [d for d in range(1, num_devices + 1) if num_devices % d == 0]
    middle = min(sizes, key=lambda size: abs(size * size - num_devices))
    return [(num_devices // fsdp, fsdp, 1) for fsdp in dict.fromkeys((1, middle, num_devices))]


def compile_report(
    config: ConfigDict,
    topology: str,
    devices: Sequence[jax.Device],
    captions: CaptionLengths = PUBLISHED,
    hlo_file: str | None = None,
) -> Report:
    """Compiles the train step of a config and reports its cost; see docs/guides/tpu.md.

    Args:
      config: config of a run; its mesh must fit the devices.
      topology: name of the topology, for the report.
      devices: devices of the topology.
      captions: which branches ``model.text.buckets`` take, and so FLOPs, memory traffic and bytes
        sent, depends on them.
      hlo_file: file for the text of the compiled program.

    Raises:
      UserError: the config does not fit the devices, or the chip is not in monitoring/hardware.py.
    """
    num_devices = len(devices)
    num_hosts = len({device.process_index for device in devices})
    config_lib.validate(config, num_devices, num_hosts)
    kind = devices[0].device_kind
    chip = CHIPS.get(kind)
    if chip is None:
        raise UserError(
            f"monitoring/hardware.py has no figures for {kind!r}; known: {', '.join(CHIPS)}"
        )
    mesh = sharding.make_mesh(config_lib.mesh_shape(config, num_devices), devices)
    task = tasks.create(config, "")
    program = train_step.TrainStep(task, config, 1_000_000, mesh)
    padded_flops = program.model_flops()
    buckets = _text_buckets(task, captions)
    model_flops = padded_flops * (1 - buckets["padding_saved"]) if buckets else padded_flops
    report: Report = {
        "topology": topology,
        "device_kind": kind,
        "num_chips": len({tuple(device.coords) for device in devices}),
        "num_devices": num_devices,
        "batch_size": config.batch_size,
        "mesh": dict(mesh.shape),
        "accumulate_steps": config.optimizer.accumulate_steps,
        "remat": config.model.remat,
        "versions": {"jax": jax.__version__, "libtpu": importlib.metadata.version("libtpu")},
        "model_flops": model_flops,
        "text_buckets": buckets,
    }
    start = time.perf_counter()
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return report | refusal(str(error))
    seconds = time.perf_counter() - start
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if text is None or memory is None:
        raise UserError(f"the compiler for {topology} reports neither its program nor its memory")
    if hlo_file:
        Path(hlo_file).write_text(text)
    branch_shares = buckets["shares_of_groups"] if buckets else ()
    cost = hlo_cost.cost(hlo.parse(text), num_devices, branch_shares)
    usage = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    total = sum(usage.values()) / 2**30
    if total > chip.hbm_gb:  # the compiler may accept programs that leave no room for the arguments
        return report | refusal(
            f"arguments, temporaries and code need {total:.2f}G of {chip.hbm_gb:.2f}G memory"
        )
    return (
        report
        | {
            "fits": True,
            "refusal": None,
            "hbm_gib": {"total": total, **{k: v / 2**30 for k, v in usage.items()}},
            "compiled_flops": cost.flops * num_devices,
            "compiled_over_model_flops": cost.flops * num_devices / model_flops,
            "memory_bytes": cost.memory_bytes,
            "collective_bytes": dict(cost.collective_bytes),
            "compiler_cycles": cost.compiler_cycles,
            "compile_seconds": seconds,
        }
        | bounds(cost, chip, model_flops, config.batch_size, num_devices)
    )


def _text_buckets(task: Any, captions: CaptionLengths) -> Report | None:
    """The part of a report on ``model.text.buckets``; None for a task or model without them."""
    if not (isinstance(task, Contrastive) and task.model.config.text.buckets):
        return None
    text = task.model.config.text
    groups = text_buckets.expected_groups(captions.tokens, captions.shares, text)
    return {
        "lengths": list(text.buckets),
        "groups": text.bucket_groups,
        "captions": str(captions),
        "shares_of_groups": (groups / text.bucket_groups).tolist(),
        "padding_saved": task.expected_padding_saved(captions.tokens, captions.shares),
    }


def bounds(
    cost: hlo_cost.Cost, chip: Chip, model_flops: float, batch_size: int, num_devices: int
) -> Report:
    """The roofline: a step takes at least as long as its slowest resource at the chip's peak.

    Compute time is FLOPs over the peak of the matrix unit; memory time is bytes read and written
    over HBM bandwidth; network time is bytes sent over the bandwidth of all links of a chip, or of
    one link for a collective-permute, which goes to one neighbor.
    """
    permuted = cost.collective_bytes.get("collective-permute", 0.0)
    others = sum(cost.collective_bytes.values()) - permuted
    seconds = {
        "compute": cost.matrix_unit_flops / chip.bf16_flops,
        "memory": cost.memory_bytes / chip.hbm_bandwidth,
        "network": (others / chip.links + permuted) / chip.link_bandwidth,
    }
    slowest = max(seconds.values())
    return {
        "roofline_seconds": {**seconds, "bound": slowest, "sum": sum(seconds.values())},
        "bound_images_per_sec": batch_size / slowest,
        "bound_mfu": model_flops / (slowest * num_devices * chip.bf16_flops),
    }


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def refusal(message: str) -> Report:
    """The report of a step that the compiler rejected because it runs out of memory."""
    # "(36.92G) exceeds available HBM (15.75G)", "Used 52.54G of 15.75G hbm"
    used = re.search(r"([\d.]+)([KMGT])\)? (?:exceeds|of)\D*([\d.]+)([KMGT])", message)
    total, limit = (
        (float(used[i]) * _UNITS[used[i + 1]] / 2**30 for i in (1, 3)) if used else (None, None)
    )
    line = next((line for line in message.splitlines() if "memory" in line), message)
    return {
        "fits": False,
        "refusal": line.partition("RESOURCE_EXHAUSTED: ")[2] or line,
        "hbm_gib": {"total": total, "limit": limit},
        "compiled_flops": None,
        "compiled_over_model_flops": None,
        "memory_bytes": None,
        "collective_bytes": None,
        "compiler_cycles": None,
        "compile_seconds": None,
        "roofline_seconds": None,
        "bound_images_per_sec": None,
        "bound_mfu": None,
    }


def sweep(
    config: ConfigDict,
    topology: str,
    devices: Sequence[jax.Device],
    candidates: Iterable[Variant],
    captions: CaptionLengths = PUBLISHED,
) -> Iterator[Report]:
    """Yields reports of the candidates that may be the fastest.

    A candidate is skipped if one that recomputes less fits on the same mesh.
    """
    fitting: list[Variant] = []
    for candidate in candidates:
        if any(better.recomputes_less(candidate) for better in fitting):
            continue
        report = compile_report(candidate.apply(config), topology, devices, captions)
        if report["fits"]:
            fitting.append(candidate)
        yield report


# --- tables ---------------------------------------------------------------------------------------

COLUMNS = (
    "topology", "batch", "mesh", "accumulate", "remat", "fits", "HBM GiB", "args", "temps",
    "FLOPs/model", "sent MB", "compute ms", "memory ms", "network ms", "Mcycles",
    "images/s <=", "MFU <=",
)  # fmt: skip


def row(report: Mapping[str, Any]) -> list[str]:
    """The cells of one report, for ``table``."""
    hbm, mesh = report["hbm_gib"], report["mesh"]
    start = [
        report["topology"],
        f"{report['batch_size']:,}",
        f"{mesh['data']}x{mesh['fsdp']}x{mesh['tensor']}",
        str(report["accumulate_steps"]),
        report["remat"],
        "yes" if report["fits"] else "no",
        "?" if hbm["total"] is None else f"{hbm['total']:.2f}",
    ]
    if not report["fits"]:
        return start + ["-"] * (len(COLUMNS) - len(start))
    seconds = report["roofline_seconds"]
    return [
        *start,
        f"{hbm['arguments']:.2f}",
        f"{hbm['temporaries']:.2f}",
        f"{report['compiled_over_model_flops']:.2f}",
        f"{sum(report['collective_bytes'].values()) / 1e6:,.0f}",
        *(f"{1e3 * seconds[term]:.1f}" for term in ("compute", "memory", "network")),
        f"{report['compiler_cycles'] / 1e6:,.0f}",
        f"{report['bound_images_per_sec']:,.0f}",
        f"{report['bound_mfu']:.2f}",
    ]


def table(reports: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table with a row per report."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row(report) for report in reports)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def details(report: Mapping[str, Any]) -> str:
    """The numbers of one report that are not in the table, as a Markdown list."""
    if not report["fits"]:
        return f"- does not fit: {report['refusal']}"
    hbm, sent = report["hbm_gib"], report["collective_bytes"]
    chip = CHIPS[report["device_kind"]]
    return "\n".join(
        f"- {line}"
        for line in (
            f"HBM per device, GiB: {', '.join(f'{kind} {x:.3f}' for kind, x in hbm.items())}",
            f"sent per device and step, MB: "
            f"{', '.join(f'{kind} {x / 1e6:,.1f}' for kind, x in sorted(sent.items()))}",
            f"FLOPs per step: model {report['model_flops']:.4g}, compiled "
            f"{report['compiled_flops']:.4g}",
            *_bucket_lines(report["text_buckets"]),
            f"roofline of {report['device_kind']}: {chip.bf16_flops / 1e12:.0f} TFLOP/s, HBM "
            f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s, {chip.links} links of "
            f"{chip.link_bandwidth / 1e9:.0f} GB/s",
        )
    )


def _bucket_lines(buckets: Mapping[str, Any] | None) -> list[str]:
    if buckets is None:
        return []
    shares = (
        f"{share:.0%} at {length}"
        for length, share in zip(buckets["lengths"], buckets["shares_of_groups"], strict=True)
    )
    return [
        f"text buckets for captions of {buckets['captions']} (tokens:share): of "
        f"{buckets['groups']} groups {', '.join(shares)} tokens; "
        f"{buckets['padding_saved']:.0%} of the padded step's FLOPs saved, which neither model nor "
        "compiled FLOPs contain"
    ]
