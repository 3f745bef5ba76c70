"""Costs read off compiled programs: against formulas, XLA's own count, and a program for TPU."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.runs import full_compilation
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from unimed_jax import tasks
from unimed_jax.aot import hlo, hlo_cost
from unimed_jax.distributed import sharding
from unimed_jax.training import train_step

TEXTS = Path(__file__).parent / "hlo_texts"


def cost_of(function, *args, num_devices=1):
    compiled = jax.jit(function).lower(*args).compile()
    return hlo_cost.cost(hlo.parse(compiled.as_text()), num_devices), compiled


def test_loops_are_counted_as_often_as_they_run():
    x, w = jnp.zeros((16, 32)), jnp.zeros((7, 3, 32, 32))

    def layer(x, w):
        return jnp.tanh(jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]), None

    def loss(w, x):
        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, w)[0])

    forward, compiled = cost_of(lambda w, x: jax.lax.scan(layer, x, w)[0], w, x)
    assert forward.flops == 7 * 3 * 2 * 16 * 32 * 32
    assert compiled.cost_analysis()["flops"] < forward.flops / 2  # which is why we count
    backward, _ = cost_of(jax.grad(loss, argnums=(0, 1)), w, x)
    # forward, forward again, and two products for each; XLA may leave out what nothing needs
    assert 3.9 * forward.flops <= backward.flops <= 4 * forward.flops


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(3, 12),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    kernel_dilation=st.integers(1, 2),
)
def test_convolutions_have_the_flops_that_xla_counts(
    size, kernel, stride, padding, dilation, kernel_dilation
):
    def convolve(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (stride, 1), [(padding, padding), (0, 1)], lhs_dilation=(dilation, 1),
            rhs_dilation=(1, kernel_dilation), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    args = jnp.zeros((2, size, 7, 3)), jnp.zeros((kernel, kernel, 3, 5))
    shape = jax.eval_shape(convolve, *args).shape
    if not np.prod(shape):
        return
    cost, compiled = cost_of(convolve, *args)
    # XLA names no number where padding is all that the kernel meets
    assert cost.flops == pytest.approx(compiled.cost_analysis().get("flops", 0.0), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3),
    st.integers(1, 3),
)  # fmt: skip
def test_positions_that_meet_a_number(inputs, size, stride, pad, dilation, kernel_dilation):
    padded = np.zeros((inputs - 1) * dilation + 1 + 2 * pad + 40, bool)
    padded[pad : pad + (inputs - 1) * dilation + 1 : dilation] = True
    reach = (size - 1) * kernel_dilation + 1
    outputs = max(((inputs - 1) * dilation + 1 + 2 * pad - reach) // stride + 1, 0)
    windows = [padded[o * stride : o * stride + reach : kernel_dilation] for o in range(outputs)]
    assert hlo_cost._hits(
        inputs, outputs, size=size, stride=stride, pad=pad, input_dilation=dilation,
        kernel_dilation=kernel_dilation,
    ) == sum(int(w.sum()) for w in windows)  # fmt: skip


def test_collectives_in_a_loop_send_what_the_formulas_say():
    mesh = sharding.make_mesh({"a": 2, "b": 4})
    rounds, rows = 5, 8

    def on_device(x):  # (rows, 16) float32
        def step(x, _):
            gathered = jax.lax.all_gather(x, "b")  # of 4
            x = x + gathered.sum(0)
            x = x + jax.lax.psum(x * 2, ("a", "b"))  # of 8
            x = jax.lax.ppermute(x, "a", [(0, 1), (1, 0)])
            x = jax.lax.all_to_all(x, "b", 0, 0, tiled=True)
            part = jax.lax.psum_scatter(x, "b", scatter_dimension=0, tiled=True)
            return x + jnp.tile(part, (4, 1)), None

        return jax.lax.scan(step, x, length=rounds)[0]

    function = jax.shard_map(on_device, mesh=mesh, in_specs=P(("a", "b")), out_specs=P(("a", "b")))
    cost, _ = cost_of(function, jnp.zeros((8 * rows, 16)), num_devices=8)
    own = rows * 16 * 4
    expected = {
        "all-gather": 3 * own,
        "all-reduce": 2 * 7 / 8 * own,
        "collective-permute": own,
        "all-to-all": 3 / 4 * own,
        "reduce-scatter": 3 / 4 * own,
    }
    assert cost.collective_bytes == pytest.approx({k: rounds * v for k, v in expected.items()})


def test_memory_traffic_of_slices_is_that_of_the_slices():
    """Each round of a loop over stacked weights reads one of them, not the stack."""
    layers, width, rows = 50, 64, 8
    cost, _ = cost_of(
        lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0],
        jnp.zeros((layers, width, width)),
        jnp.zeros((rows, width)),
    )
    weights = layers * width * width * 4
    assert weights <= cost.memory_bytes < 6 * weights  # read, perhaps copied; not 50 times


def test_a_program_for_tpu():
    """Six layers of 512 x 512 with rematerialisation on data 4 x fsdp 4, compiled for v5e-16."""
    module = hlo.parse((TEXTS / "scan_on_v5e_4x4.txt").read_text())
    cost = hlo_cost.cost(module, 16)
    layers, rows, width = 6, 16, 512
    # forward, again, two products backward; the compiler wrote them as convolutions
    assert cost.flops == 4 * layers * 2 * rows * width * width
    weights = width * width * 2  # bfloat16
    assert cost.collective_bytes == pytest.approx(
        {
            "all-gather": layers * 2 * 3 / 4 * weights,
            "reduce-scatter": layers * 3 / 4 * weights,  # which the text calls all-reduce-scatter
            "all-reduce": layers * 2 * 3 / 4 * weights / 4 + 2 * 15 / 16 * 4,  # and the loss
        }
    )
    # all loops work in VMEM: main memory meets the parameters twice, their update, and the rows
    parameters = layers * width * width * 4 / 4
    assert cost.memory_bytes == pytest.approx(3 * parameters, rel=0.02)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups={}", 16),
        ("replica_groups=[4,4]<=[16]", 4),
        ("replica_groups=[2,8]<=[4,4]T(1,0)", 8),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0','axis_1'}", 16),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=4], device_ids=([4,4]T(1,0)) {'c'}", 4),
        ("replica_groups=mesh['a'=8,'b'=2] {'a':(1)2,'b'}", 4),
    ],
)
def test_group_sizes(groups, size):
    instruction = hlo.Instruction(
        "x", "all-reduce", (), (), "", f", channel_id=1, {groups}, x={{}}"
    )
    assert hlo.group_size(instruction, 16) == size


LOOP = """HloModule loop

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4]{0} get-tuple-element(%state), index=1
  %step = s32[] constant(STEP)
  %next = s32[] add(%i, %step)
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %x)
}

%less (given: (s32[], f32[4])) -> pred[] {
  %given = (s32[], f32[4]{0}) parameter(0)
  %j = s32[] get-tuple-element(%given), index=0
  %limit = s32[] constant(8)
  ROOT %compare = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (x0: f32[4]) -> (s32[], f32[4]) {
  %x0 = f32[4]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4]{0}) tuple(%zero, %x0)
  ROOT %loop = (s32[], f32[4]{0}) while(%start), condition=%less, body=%body
}
"""


# a windowed product over 16 devices takes two shards in a round
@pytest.mark.parametrize(("step", "rounds"), [(1, 8), (2, 4), (3, 3), (8, 1), (9, 1)])
def test_rounds_of_a_loop(step, rounds):
    module = hlo.parse(LOOP.replace("STEP", str(step)))
    assert module.executions()["body"] == rounds


def test_a_loop_without_steps_is_an_error():
    with pytest.raises(ValueError, match="in steps of 0"):
        _ = hlo.parse(LOOP.replace("STEP", "0")).executions()


def test_what_is_not_understood_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing")
    instruction = hlo.Instruction("x", "all-reduce", (), (), "", "replica_groups=new'form'")
    with pytest.raises(ValueError, match="unknown form of replica_groups"):
        hlo.group_size(instruction, 8)
    text = (TEXTS / "scan_on_v5e_4x4.txt").read_text()
    endless = text.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match="cannot tell how often while"):
        hlo_cost.cost(hlo.parse(endless), 16)


@pytest.mark.slow
def test_compiled_flops_are_those_of_the_jaxpr(tiny_config):
    """Without rematerialisation the compiler does what the mathematics says, or less."""
    config = tiny_config(model__text__dropout=0.0, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    program = train_step.TrainStep(tasks.create(config, ""), config, 10, mesh)
    with full_compilation():
        compiled = program.lower().compile()
    cost = hlo_cost.cost(hlo.parse(compiled.as_text()), 8)
    assert 0.8 < cost.flops * 8 / program.model_flops() < 1.6


def test_branches_count_by_their_shares():
    def choose(index, x):
        branches = [
            lambda x, n=n: jax.lax.fori_loop(0, n, lambda _, y: y @ x, x) for n in (1, 2, 5)
        ]
        return jax.lax.switch(index, branches, x)

    x = jnp.zeros((16, 16))
    module = hlo.parse(jax.jit(choose).lower(jnp.int32(0), x).compile().as_text())
    product = 2 * 16**3
    assert hlo_cost.cost(module, 1).flops == (1 + 2 + 5) * product
    for shares in ((1, 0, 0), (0, 0, 1), (0.25, 0.5, 0.25)):
        expected = np.dot(shares, (1, 2, 5)) * product
        assert hlo_cost.cost(module, 1, shares).flops == pytest.approx(expected)
    assert hlo_cost.cost(module, 1, (0.5, 0.5)).flops == (1 + 2 + 5) * product  # another choice
