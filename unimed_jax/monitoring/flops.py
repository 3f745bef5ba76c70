"""Model FLOPs: the FLOPs that the mathematics of a step needs, counted in its jaxpr."""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.sharding import AbstractMesh

_NO_MESH = AbstractMesh((), ())


def matmul_flops(function: Callable, *args: Any) -> float:
    """FLOPs of the matrix products and convolutions of ``function(*args)``, loops in full.

    Element-wise work is left out, as in the usual definition (arXiv 2204.02311, appendix B).

    Args:
      function: traced, not run.
      *args: arrays or ShapeDtypeStructs.
    """
    with jax.sharding.use_abstract_mesh(_NO_MESH):  # on a mesh, kernels would replace products
        return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _array(operand: Var | Literal) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an operand; JAX's annotations know only that it is an abstract value."""
    return cast(jax.ShapeDtypeStruct, operand.aval)


def _of_equation(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = _array(equation.invars[0]).shape
        return 2.0 * _array(equation.outvars[0]).size * math.prod(shape[dim] for dim in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = _array(equation.invars[1]).shape, params["dimension_numbers"]
        per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
        return 2.0 * _array(equation.outvars[0]).size * per_output
    if name == "cond":  # as one platform or another computes the same
        return max(_of_jaxpr(branch.jaxpr) for branch in params["branches"])
    inner = sum(
        _of_jaxpr(value.jaxpr if isinstance(value, ClosedJaxpr) else value)
        for value in params.values()
        if isinstance(value, ClosedJaxpr | Jaxpr)
    )
    return inner * (params["length"] if name == "scan" else 1)
