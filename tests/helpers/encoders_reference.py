"""torchvision's encoders on given weights, in float64, in a process without TensorFlow.

python tests/helpers/encoders_reference.py resnet34|efficientnet_b2 IN.npz OUT.npz

IN.npz holds `images` (B, H, W, C) and torchvision's tensors by name; OUT.npz the feature maps.
"""

import functools
import sys

import numpy as np
import torch
import torchvision


def main(name: str, source: str, target: str) -> None:
    inputs = dict(np.load(source))
    images = torch.tensor(inputs.pop("images")).permute(0, 3, 1, 2)
    if name == "resnet34":
        model = torchvision.models.resnet34()
        taps = ("relu", "layer1", "layer2", "layer3", "layer4")
    else:
        norm = functools.partial(torch.nn.BatchNorm2d, eps=1e-3)
        model = torchvision.models.efficientnet_b2(norm_layer=norm)
        taps = ("features.0", "features.2", "features.3", "features.5", "features.7")
    state = model.state_dict()
    absent = set(state) - set(inputs)
    assert all(k.startswith(("fc", "classifier", "features.8")) or "num_batches" in k
               for k in absent), absent  # fmt: skip
    model.load_state_dict(state | {k: torch.tensor(v) for k, v in inputs.items()})
    model.double()
    found = {}

    def keep(tap: str, module: object, inputs: object, output: torch.Tensor) -> None:
        found.setdefault(tap, output.detach().permute(0, 2, 3, 1).numpy())

    for tap in taps:
        model.get_submodule(tap).register_forward_hook(functools.partial(keep, tap))
    with torch.no_grad():
        model.eval()(images.double())
    np.savez(target, **{str(i): found[tap] for i, tap in enumerate(taps)})


if __name__ == "__main__":
    main(*sys.argv[1:])
