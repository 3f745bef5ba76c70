"""The sharding rules: dims that are divided, dims that are not, and errors."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from unimed_jax import tasks
from unimed_jax.distributed import sharding

RULES = (("kernel$", ("embed", "mlp")), ("bias$", ("mlp",)), ("^scale$", ()))
SHAPE = {"data": 2, "fsdp": 2, "tensor": 2}


def test_dims_follow_their_logical_axes():
    assert sharding.partition_spec("a/kernel", (4, 6), RULES, SHAPE) == P("fsdp", "tensor")
    assert sharding.partition_spec("a/bias", (6,), RULES, SHAPE) == P("tensor")


def test_a_dim_that_does_not_divide_stays_whole():
    assert sharding.partition_spec("a/kernel", (5, 6), RULES, SHAPE) == P(None, "tensor")


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="no sharding rule matches parameter 'a/gain'"):
        sharding.partition_spec("a/gain", (4,), RULES, SHAPE)
    with pytest.raises(ValueError, match="names"):
        sharding.partition_spec("a/bias", (4, 4), RULES, SHAPE)


def test_moments_are_laid_out_like_their_parameters():
    params = {"a": {"kernel": jnp.zeros((4, 6)), "bias": jnp.zeros(6)}, "scale": jnp.zeros(())}
    optimizer = optax.adam(1e-3)
    state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), int)}
    mesh = sharding.make_mesh(SHAPE)
    layout = sharding.state_shardings(jax.eval_shape(lambda: state), RULES, mesh)
    for moments in (layout["opt_state"][0].mu, layout["opt_state"][0].nu):
        assert (
            moments["a"]["kernel"].spec
            == layout["params"]["a"]["kernel"].spec
            == P("fsdp", "tensor")
        )
        assert moments["a"]["bias"].spec == P("tensor")
    assert layout["opt_state"][0].count.spec == layout["step"].spec == P()


def test_every_parameter_of_the_dual_encoder_has_a_rule_and_most_are_divided(tiny_config):
    task = tasks.create(tiny_config(), "")
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    table = sharding.describe(abstract, task.parameter_axes, SHAPE)
    assert len(table.splitlines()) == len(jax.tree.leaves(abstract))
    qkv = next(
        line for line in table.splitlines() if line.startswith("visual/blocks/attn/qkv/kernel")
    )
    assert "(-, fsdp, -, tensor, -)" in qkv
    assert qkv.endswith("1/4")
