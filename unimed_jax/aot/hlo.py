"""Parses optimized HLO, the text of ``compiled.as_text()``.

XLA's own cost analysis counts the body of a loop once, however often it runs; here every
computation is known with the number of times that one step runs it. What it costs: hlo_cost.py.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Array:
    """Type of an array; in a partitioned program, of one device's shard.

    Attributes:
      in_main_memory: False for the memory on the chip (VMEM, SMEM of a TPU).
    """

    dtype: str
    shape: tuple[int, ...]
    in_main_memory: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        bits = _BITS.get(self.dtype) or int(re.sub(r"^\D+", "", self.dtype)[:2].rstrip("e") or 0)
        return self.size * bits // 8 if self.dtype not in ("token", "opaque") else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction, a line of the text.

    Attributes:
      outputs: the arrays of its result; those of a tuple in order.
      operands: names of instructions of the same computation.
      literal: what stands in the parentheses, as of ``constant(6)``.
      attributes: what follows them.
    """

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def called(self, *keys: str) -> list[str]:
        """Names of the computations that attributes such as ``calls=%name`` refer to."""
        return [
            name
            for key in keys
            for group in re.findall(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
            for name in _NAME.findall(group)
        ]

    def numbers(self, key: str) -> tuple[int, ...]:
        """The attribute ``key={1,2}`` as numbers; empty without it."""
        match = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(x) for x in match[1].split(",") if x) if match else ()


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order of execution; ``root`` is the result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        parameters = (i for i in self.instructions.values() if i.opcode == "parameter")
        return tuple(sorted(parameters, key=lambda i: int(i.literal)))

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users


@dataclasses.dataclass(frozen=True)
class Module:
    computations: Mapping[str, Computation]
    entry: str

    def executions(self, branch_shares: Sequence[float] = ()) -> Mapping[str, float]:
        """How often each computation runs in one run of the program.

        Computations applied to scalars, as in a reduction, are left out.

        Args:
          branch_shares: of a choice between as many branches, the share of runs that take each; of
            any other choice, all branches count.

        Raises:
          ValueError: the trip count of a loop is unknown.
        """
        times: dict[str, float] = collections.defaultdict(float)

        def count_executions(name: str, count: float, site: _Site | None) -> None:
            times[name] += count
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                here = _Site(computation, instruction, site)
                if instruction.opcode == "while":
                    [body] = instruction.called("body")
                    count_executions(body, count * self._trip_count(here), here)
                elif instruction.opcode in ("fusion", "call", "conditional", "async-start"):
                    keys = ("calls", "to_apply", "branch_computations")
                    computations = instruction.called(
                        *keys, "true_computation", "false_computation"
                    )
                    choice = instruction.opcode == "conditional"
                    weighted = choice and len(computations) == len(branch_shares)
                    shares = branch_shares if weighted else [1.0] * len(computations)
                    for called, share in zip(computations, shares, strict=True):
                        count_executions(called, count * share, None)

        count_executions(self.entry, 1, None)
        return times

    @functools.cached_property
    def fused(self) -> frozenset[str]:
        """Computations inside a fusion: their instructions do not access memory."""
        fused: set[str] = set()
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                if instruction.opcode == "fusion":
                    fused.update(instruction.called("calls"))
        return frozenset(fused)

    def _trip_count(self, loop: _Site) -> int:
        """The trip count of a while loop."""
        stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.instruction.attributes)
        if stated:
            return int(stated[1])
        [condition] = loop.instruction.called("condition")
        [body] = loop.instruction.called("body")
        inside = self.computations[condition]
        compare = inside.root
        counter = limit = step = start = None
        if compare.opcode == "compare" and "direction=LT" in compare.attributes:
            counter = _element(inside, compare.operands[0])
            limit = self._constant(inside, compare.operands[1], loop)
        if counter is not None:
            start = self._constant(
                loop.computation, loop.instruction.operands[0], loop.outer, counter
            )
            inside = self.computations[body]
            step = next(
                (
                    self._constant(inside, operand, loop)
                    for operand in self._added(inside, inside.root.operands[counter])
                    if _element(inside, operand) != counter
                ),
                None,
            )
        if limit is None or start is None or step is None or step < 1:
            raise ValueError(
                f"cannot tell how often {loop.instruction.name} goes round: from {start} to "
                f"{limit} in steps of {step}"
            )
        return max(-(-(limit - start) // step), 0)

    def _added(self, computation: Computation, name: str) -> tuple[str, ...]:
        instruction = _source(computation, name)
        return instruction.operands if instruction.opcode == "add" else ()

    def _constant(
        self, computation: Computation, name: str, loop: _Site | None, element: int | None = None
    ) -> int | None:
        """The constant integer value of an instruction or tuple element; None if unknown.

        Args:
          computation: the computation that the instruction belongs to.
          name: name of the instruction.
          loop: the loop, if the computation is its body or condition.
          element: index into the tuple.
        """
        instruction = _source(computation, name)
        match instruction.opcode:
            case "constant" if element is None and re.fullmatch(r"-?\d+", instruction.literal):
                return int(instruction.literal)
            case "tuple" if element is not None:
                return self._constant(computation, instruction.operands[element], loop)
            case "get-tuple-element" if element is None:
                index = _tuple_index(instruction)
                return self._constant(computation, instruction.operands[0], loop, index)
            case "parameter" if element is not None and loop is not None:
                if not self._unchanged(loop.instruction, element):
                    return None
                return self._constant(
                    loop.computation, loop.instruction.operands[0], loop.outer, element
                )
            case "while" if element is not None and self._unchanged(instruction, element):
                return self._constant(computation, instruction.operands[0], loop, element)
        return None

    def _unchanged(self, loop: Instruction, element: int) -> bool:
        """Whether a loop passes an element of its state on unchanged."""
        [body] = loop.called("body")
        inside = self.computations[body]
        return (
            inside.root.opcode == "tuple"
            and _element(inside, inside.root.operands[element]) == element
        )


@dataclasses.dataclass(frozen=True)
class _Site:
    """An instruction with its computation, and the loop if that is a loop body."""

    computation: Computation
    instruction: Instruction
    outer: _Site | None


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction itself, or the one that it copies."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _element(computation: Computation, name: str) -> int | None:
    """The index of the computation's parameter tuple that an instruction reads, if any."""
    instruction = _source(computation, name)
    if instruction.opcode != "get-tuple-element":
        return None
    if computation.instructions[instruction.operands[0]].opcode != "parameter":
        return None
    return _tuple_index(instruction)


def _tuple_index(instruction: Instruction) -> int:
    """The index of a get-tuple-element."""
    index = re.search(r"index=(\d+)", instruction.attributes)
    if index is None:
        raise ValueError(f"get-tuple-element without an index: {instruction.attributes}")
    return int(index[1])


def parse(text: str) -> Module:
    """Parses the text of an optimized program.

    Raises:
      ValueError: there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    instructions: dict[str, Instruction] = {}
    root = None
    for line in text.splitlines():
        line = _COMMENT.sub("", line)
        if header := _HEADER.match(line):
            name, instructions, root = header[2], {}, None
            entry = name if header[1] else entry
        elif name and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(match[2], match[3])
            instructions[instruction.name] = instruction
            root = instruction if match[1] else root
        elif name and line.startswith("}"):
            assert root is not None, f"no result in {name}"
            computations[name] = Computation(name, instructions, root)
            name = ""
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY")
    return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    """``TYPE opcode(operands), attributes``; a type may be a tuple in parentheses."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    inside = text[opening + 1 : closing]
    return Instruction(
        name,
        text[end:opening].strip(),
        tuple(arrays(text[:end])),
        tuple(_NAME.findall(inside)),
        inside,
        text[closing + 1 :],
    )


def arrays(text: str) -> Iterator[Array]:
    """The arrays that a type names: ``(f32[2,3]{1,0:T(8,128)S(1)}, s32[])``."""
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        yield Array(
            dtype,
            tuple(int(dim) for dim in dims.split(",") if dim),
            space is None or space[1] == "0",
        )


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at ``opening``."""
    depth = 0
    for index in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def group_size(instruction: Instruction, num_devices: int) -> int:
    """Devices in each group of a collective.

    Raises:
      ValueError: its groups are written in a form that is not known here.
    """
    text = instruction.attributes
    if "replica_groups={}" in text or "replica_groups" not in text:
        return num_devices
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=", text):
        return int(match[1].split(",")[-1])
    # mesh['a'=4,'b'=2], device_ids=(...) {'a'}: the axes that a group spans, or parts of them
    match = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if match is None:
        raise ValueError(f"unknown form of replica_groups: {text[:200]}")
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    spanned = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[2])
    return math.prod(int(part) if part else sizes[axis] for axis, _, part in spanned)


def window(instruction: Instruction, rank: int) -> list[dict[str, int]]:
    """The window of a convolution: per spatial dim its size, stride, padding and dilations."""
    match = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=", 1) for part in match[1].split()) if match else {}

    def values(key: str, default: str) -> Sequence[str]:
        return fields.get(key, "x".join([default] * rank)).split("x") if rank else []

    return [
        {
            "size": int(size),
            "stride": int(stride),
            "pad": int(pad.split("_")[0]),
            "input_dilation": int(of_input),
            "kernel_dilation": int(of_kernel),
        }
        for size, stride, pad, of_input, of_kernel in zip(
            values("size", "1"),
            values("stride", "1"),
            values("pad", "0_0"),
            values("lhs_dilate", "1"),
            values("rhs_dilate", "1"),
            strict=True,
        )
    ]
