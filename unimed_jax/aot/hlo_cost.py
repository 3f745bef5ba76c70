"""Cost of one run of a compiled program on one device: FLOPs, memory traffic, network traffic.

All three are counted in the optimized program, with the trip counts of its loops. Memory traffic
follows the rules of XLA's cost analysis: an instruction reads its operands and writes its result; a
fusion does so once, whatever happens inside; only the slices of a sliced operand are read.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from unimed_jax.aot.hlo import Array, Computation, Instruction, Module, group_size, window

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# number of bfloat16 products that make up one float32 product, by precision
_PASSES = {"highest": 6, "high": 3}

# no memory traffic: names, views, and the second halves of operations counted at their start
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call",
    "conditional", "after-all", "opt-barrier", "partition-id", "replica-id", "add-dependency",
    "async-start", "async-update", "async-done", "copy-done", "slice-done", "send-done",
    "recv-done", *(f"{kind}-done" for kind in COLLECTIVES),
}  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")  # custom calls of the TPU compiler


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one run of a program on one device.

    Attributes:
      flops: FLOPs of matrix products and convolutions, and those that custom kernels declare.
      matrix_unit_flops: the same, with a high-precision float32 product counted as the bfloat16
        products that it consists of.
      memory_bytes: bytes read from and written to main memory (HBM).
      collective_bytes: collective -> bytes that the device sends, in a group of n devices: (n -
        1)/n of the whole array for all-gather and reduce-scatter, twice that for all-reduce, (n -
        1)/n of the device's array for all-to-all, all of it for collective-permute.
      compiler_cycles: cycles that the TPU compiler estimates for its code, without custom kernels
        and without waiting for other devices; 0 from other compilers.
    """

    flops: float
    matrix_unit_flops: float
    memory_bytes: float
    collective_bytes: Mapping[str, float]
    compiler_cycles: float


def cost(module: Module, num_devices: int, branch_shares: Sequence[float] = ()) -> Cost:
    """The cost of a program that runs on ``num_devices`` devices.

    ``branch_shares`` are those of ``Module.executions``.
    """
    flops = matrix_unit_flops = memory_bytes = cycles = 0.0
    sent: dict[str, float] = {}
    for name, times in module.executions(branch_shares).items():
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            here = times * product_flops(computation, instruction)
            flops += here
            matrix_unit_flops += here * _passes(computation, instruction)
            if name not in module.fused:
                memory_bytes += times * _traffic(module, computation, instruction)
                expected = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
                cycles += times * int(expected[1]) if expected else 0
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                if kind == "all-reduce" and "all-reduce-scatter" in name:  # fused with the slicing
                    kind = "reduce-scatter"
                here = sent_bytes(kind, computation, instruction, num_devices)
                sent[kind] = sent.get(kind, 0) + times * here
    return Cost(flops, matrix_unit_flops, memory_bytes, sent, cycles)


def _operands(computation: Computation, instruction: Instruction) -> list[Instruction]:
    return [computation.instructions[name] for name in instruction.operands]


# --- FLOPs ----------------------------------------------------------------------------------------


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a matrix product, convolution or custom kernel; 0 for other instructions."""
    if instruction.opcode == "dot":
        contracted = instruction.numbers("lhs_contracting_dims")
        shape = _operands(computation, instruction)[0].outputs[0].shape
        return 2.0 * instruction.outputs[0].size * math.prod(shape[dim] for dim in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    if instruction.opcode == "custom-call":
        stated = re.search(r'"flops":"?(\d+)', instruction.attributes)
        return float(stated[1]) if stated else 0.0
    return 0.0


def _convolution_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs without products with padding or with the holes of a dilated input.

    The TPU compiler writes matrix products as convolutions; batched ones have a spatial dim whose
    window covers one number and otherwise holes.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"convolution without dim_labels: {instruction.attributes}")
    of_input, of_kernel, of_output = labels[1], labels[2], labels[3]
    inputs, kernel = (o.outputs[0].shape for o in _operands(computation, instruction))
    output = instruction.outputs[0].shape
    spatial = sorted(label for label in of_input if label.isdigit())
    hits = 1
    for label, dim in zip(spatial, window(instruction, len(spatial)), strict=True):
        hits *= _hits(
            inputs[of_input.index(label)],
            output[of_output.index(label)],
            **dim,
        )
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    return (
        2.0
        * hits
        * kernel[of_kernel.index("i")]
        * kernel[of_kernel.index("o")]
        * inputs[of_input.index("b")]
        / (int(groups[1]) if groups else 1)
    )


def _hits(
    inputs: int,
    outputs: int,
    *,
    size: int,
    stride: int,
    pad: int,
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Number of (output, window) positions along one dim that fall on a number."""
    last = (inputs - 1) * input_dilation
    return sum(
        0 <= position <= last and position % input_dilation == 0
        for start in range(-pad, -pad + outputs * stride, stride)
        for position in range(start, start + size * kernel_dilation, kernel_dilation)
    )


def _passes(computation: Computation, instruction: Instruction) -> int:
    precision = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
    if precision is None or "f32" not in {
        array.dtype for o in _operands(computation, instruction) for array in o.outputs
    }:
        return 1
    return _PASSES.get(precision[1], 1)


# --- memory ---------------------------------------------------------------------------------------


def _in_memory(arrays: tuple[Array, ...]) -> int:
    return sum(array.num_bytes for array in arrays if array.in_main_memory)


def _traffic(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction reads from, and writes to, main memory."""
    opcode, operands = instruction.opcode, _operands(computation, instruction)
    if opcode in _FREE or any(name in instruction.attributes for name in _FREE_CALLS):
        return 0
    if opcode == "fusion":
        [called] = instruction.called("calls")
        inside = module.computations[called]
        read = sum(
            _read(inside, parameter, operand)
            for parameter, operand in zip(inside.parameters, operands, strict=True)
        )
        return read + _written(inside, instruction)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return (_is_in_memory(operands[0]) + 1) * _in_memory(instruction.outputs[:1])
    if opcode == "dynamic-update-slice":
        return 2 * _in_memory(operands[1].outputs)
    if opcode in ("copy-start", "slice-start"):  # the result is (.., destination, ..)
        moved = min(array.num_bytes for array in instruction.outputs[:2])
        destination = instruction.outputs[0 if opcode == "copy-start" else 1]
        return moved * (_is_in_memory(operands[0]) + destination.in_main_memory)
    outputs = instruction.outputs
    if opcode.endswith("-start"):  # (operands, results, ..)
        outputs = outputs[len(operands) : 2 * len(operands)]
    return sum(_in_memory(operand.outputs) for operand in operands) + _in_memory(outputs)


def _is_in_memory(instruction: Instruction) -> bool:
    return any(array.in_main_memory for array in instruction.outputs)


def _read(inside: Computation, parameter: Instruction, operand: Instruction) -> float:
    """Bytes of an operand that a fusion reads."""
    if not _is_in_memory(operand):
        return 0
    read = 0
    for user in _users(inside, parameter.name):
        first = _is_view_of(inside, user.operands[0], parameter.name)
        if user.opcode in ("dynamic-slice", "slice", "gather") and first:
            read += user.outputs[0].num_bytes
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # written in place
        else:
            return _in_memory(operand.outputs)
    return min(read, _in_memory(operand.outputs))


def _users(inside: Computation, name: str) -> list[Instruction]:
    """The instructions that use an array or a view of it."""
    return [
        further
        for user in inside.users[name]
        for further in (_users(inside, user.name) if user.opcode == "bitcast" else [user])
    ]


def _is_view_of(inside: Computation, name: str, of: str) -> bool:
    while inside.instructions[name].opcode == "bitcast":
        name = inside.instructions[name].operands[0]
    return name == of


def _written(inside: Computation, instruction: Instruction) -> float:
    """Bytes that a fusion writes; for an array updated in place, only the update."""
    root = inside.root
    results = _operands(inside, root) if root.opcode == "tuple" else [root]
    written = 0
    for array, result in zip(instruction.outputs, results, strict=False):
        while result.opcode == "bitcast":
            result = inside.instructions[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            update = inside.instructions[result.operands[1]].outputs[0]
            written += update.num_bytes * array.in_main_memory
        else:
            written += array.num_bytes * array.in_main_memory
    return written


# --- network --------------------------------------------------------------------------------------


def sent_bytes(
    kind: str, computation: Computation, instruction: Instruction, num_devices: int
) -> float:
    """Bytes that each device sends in one collective; see ``Cost``."""
    operand_bytes = sum(a.num_bytes for o in _operands(computation, instruction) for a in o.outputs)
    if kind == "collective-permute":
        return float(operand_bytes)
    count = group_size(instruction, num_devices)
    share = (count - 1) / count
    match kind:
        case "all-gather":
            return share * count * operand_bytes
        case "all-reduce":
            return 2 * share * operand_bytes
        case _:  # reduce-scatter, all-to-all
            return share * operand_bytes
