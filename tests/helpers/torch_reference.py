"""References computed with torch, in a process that does not import TensorFlow.

python tests/helpers/torch_reference.py resize_crop IN.npz OUT.npz
"""

import io
import sys
from collections.abc import Callable

import numpy as np


def resize_crop(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Encoded images -> uint8 (size, size, 3) by torchvision, as open_clip does it."""
    from PIL import Image
    from torchvision import transforms

    size = int(inputs.pop("size"))
    steps = transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
        ]
    )
    return {
        name: np.asarray(steps(Image.open(io.BytesIO(data.tobytes()))).convert("RGB"))
        for name, data in inputs.items()
    }


def adamw(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters ``p_*`` after one torch AdamW step per row of ``g_*``; biases without decay."""
    import torch

    return _trained(
        inputs, lambda groups: torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6)
    )


def adam(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same by Adam, whose decay is part of the gradient."""
    import torch

    return _trained(
        inputs, lambda groups: torch.optim.Adam(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6)
    )


def sgd(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same by SGD with Nesterov's momentum."""
    import torch

    return _trained(
        inputs, lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.99, nesterov=True)
    )


def uniform_average(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters (n, ...) -> their average by ``torch.optim.swa_utils``, as SWA takes it."""
    import torch

    model = torch.nn.ParameterDict({k: torch.tensor(v[0]) for k, v in inputs.items()})
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for step in range(len(next(iter(inputs.values())))):
        for name, values in inputs.items():
            model[name].data = torch.tensor(values[step])
        averaged.update_parameters(model)
    return {name: averaged.module[name].detach().numpy() for name in inputs}


def _trained(inputs: dict[str, np.ndarray], make: Callable) -> dict[str, np.ndarray]:
    import torch

    names = [name[2:] for name in inputs if name.startswith("p_")]
    params = {name: torch.nn.Parameter(torch.tensor(inputs[f"p_{name}"])) for name in names}
    groups = [
        {"params": [p], "weight_decay": 0.0 if name == "bias" else 0.2}
        for name, p in params.items()
    ]
    optimizer = make(groups)
    for step in range(len(inputs[f"g_{names[0]}"])):
        for name, p in params.items():
            p.grad = torch.tensor(inputs[f"g_{name}"][step])
        optimizer.step()
    return {name: p.detach().numpy() for name, p in params.items()}


if __name__ == "__main__":
    function, source, target = sys.argv[1:]
    np.savez(target, **globals()[function](dict(np.load(source))))
