"""UNETR's parameters under MONAI's names."""

import re

import numpy as np

from unimed_jax.distributed import sharding

_NAMES = (
    (r"^blocks/(\d+)/ln_(\d)/scale", r"vit.blocks.\1.norm\2.weight"),
    (r"^blocks/(\d+)/ln_(\d)/bias", r"vit.blocks.\1.norm\2.bias"),
    (r"^blocks/(\d+)/attn/qkv/kernel", r"vit.blocks.\1.attn.qkv.weight"),
    (r"^blocks/(\d+)/attn/out/kernel", r"vit.blocks.\1.attn.out_proj.weight"),
    (r"^blocks/(\d+)/attn/out/bias", r"vit.blocks.\1.attn.out_proj.bias"),
    (r"^blocks/(\d+)/mlp/c_fc/kernel", r"vit.blocks.\1.mlp.linear1.weight"),
    (r"^blocks/(\d+)/mlp/c_fc/bias", r"vit.blocks.\1.mlp.linear1.bias"),
    (r"^blocks/(\d+)/mlp/c_proj/kernel", r"vit.blocks.\1.mlp.linear2.weight"),
    (r"^blocks/(\d+)/mlp/c_proj/bias", r"vit.blocks.\1.mlp.linear2.bias"),
    (r"^ln_post/scale", "vit.norm.weight"),
    (r"^ln_post/bias", "vit.norm.bias"),
    (r"^patch_embedding/kernel", "vit.patch_embedding.patch_embeddings.1.weight"),
    (r"^patch_embedding/bias", "vit.patch_embedding.patch_embeddings.1.bias"),
    (r"^positional_embedding", "vit.patch_embedding.position_embeddings"),
    (r"^encoder1/conv(\d)/kernel", r"encoder1.layer.conv\1.conv.weight"),
    (r"^encoder(\d)/up0/kernel", r"encoder\1.transp_conv_init.conv.weight"),
    (
        r"^encoder(\d)/up(\d)/kernel",
        lambda m: f"encoder{m[1]}.blocks.{int(m[2]) - 1}.0.conv.weight",
    ),
    (
        r"^encoder(\d)/residual(\d)/conv(\d)/kernel",
        lambda m: f"encoder{m[1]}.blocks.{int(m[2]) - 1}.1.conv{m[3]}.conv.weight",
    ),
    (r"^decoder(\d)/up/kernel", r"decoder\1.transp_conv.conv.weight"),
    (r"^decoder(\d)/residual/conv(\d)/kernel", r"decoder\1.conv_block.conv\2.conv.weight"),
    (r"^out1/kernel", "out.conv.conv.weight"),
    (r"^out1/bias", "out.conv.conv.bias"),
)  # fmt: skip


def to_monai(network) -> dict[str, np.ndarray]:
    """The parameters of a UNETR, ``params["network"]``, as MONAI's tensors."""
    tensors = {}
    for path, leaf in jax_leaves(network):
        if path.startswith("blocks/"):
            rest = path.removeprefix("blocks/")
            each = {f"blocks/{index}/{rest}": layer for index, layer in enumerate(leaf)}
        else:
            each = {path: leaf}
        for name, value in each.items():
            pattern, target = next(rule for rule in _NAMES if re.search(rule[0], name))
            tensors[re.sub(f"{pattern}$", target, name)] = _as_torch(name, value)
    return tensors


def jax_leaves(tree):
    import jax

    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield sharding.path_string(path), np.asarray(leaf)


def _as_torch(name: str, value: np.ndarray) -> np.ndarray:
    if name == "positional_embedding":
        return value[None]
    if not name.endswith("kernel"):
        return value
    if "attn/qkv" in name:
        return value.reshape(value.shape[0], -1).T
    if "attn/out" in name:
        return value.reshape(-1, value.shape[-1]).T
    if value.ndim == 2:
        return value.T
    if "/up" in name:  # transposed: inputs before outputs
        return value.transpose(3, 4, 0, 1, 2)
    return value.transpose(4, 3, 0, 1, 2)
