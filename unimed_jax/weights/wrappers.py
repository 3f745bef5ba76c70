"""Names of tensors as a model has them, without what the training that saved them wrapped it in."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from input_pipeline.io.errors import WeightsError

_T = TypeVar("_T")

# inserted before any module: torch.compile, FSDP, activation checkpointing
_INSERTED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# before all names: DataParallel and DeepSpeed, Lightning, timm's and torch's moving averages
_OUTER = ("module.", "model.", "clip.", "clip_model.", "net.", "ema_model.", "averaged_model.")
_COUNTERS = ("n_averaged",)  # torch.optim.swa_utils.AveragedModel


def unwrapped(named: Mapping[str, _T], file: str) -> dict[str, _T]:
    """The same tensors under the names of the bare model.

    Raises:
      WeightsError: two names become one.
    """
    bare: dict[str, _T] = {}
    sources: dict[str, str] = {}
    counted = {name: tensor for name, tensor in named.items() if name not in _COUNTERS}
    inner = {name: _INSERTED.sub("", name) for name in counted}
    while prefix := next((p for p in _OUTER if inner and _is_before_all(p, inner.values())), ""):
        inner = {name: text.removeprefix(prefix) for name, text in inner.items()}
    for name, short in inner.items():
        if short in bare:
            raise WeightsError(f"{file}: {sources[short]} and {name} are both {short!r} of a model")
        bare[short], sources[short] = counted[name], name
    return bare


def _is_before_all(prefix: str, names: Iterable[str]) -> bool:
    return all(name.startswith(prefix) for name in names)
