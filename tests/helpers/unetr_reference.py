"""MONAI's UNETR on given weights, in a process without TensorFlow.

python tests/helpers/unetr_reference.py forward IN.npz OUT.npz
python tests/helpers/unetr_reference.py sliding IN.npz OUT.npz

IN.npz holds the tensors, `volumes` (B, C, D, H, W) and the `sizes` of the network: crop (3),
outputs, features, width, MLP width, heads; OUT.npz `logits`, or the average of the probabilities of
windows.
"""

import sys

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNETR


def main(kind: str, source: str, target: str) -> None:
    tensors = {name: torch.tensor(value) for name, value in np.load(source).items()}
    volumes = tensors.pop("volumes")
    *crop, outputs, features, width, mlp, heads = tensors.pop("sizes").tolist()
    model = UNETR(
        in_channels=volumes.shape[1],
        out_channels=outputs,
        img_size=crop,
        feature_size=features,
        hidden_size=width,
        mlp_dim=mlp,
        num_heads=heads,
        proj_type="perceptron",
    ).eval()
    unmatched = model.load_state_dict(tensors, strict=False)
    # MONAI makes a norm for cross-attention that it does not have here
    assert all(".norm_cross_attn." in name for name in unmatched.missing_keys), unmatched
    assert not unmatched.unexpected_keys, unmatched
    with torch.no_grad():
        if kind == "forward":
            logits = model(volumes)
        else:
            logits = sliding_window_inference(
                volumes,
                crop,
                sw_batch_size=2,
                predictor=lambda x: torch.softmax(model(x), dim=1),
                overlap=0.5,
                mode="gaussian",
            )
    np.savez(target, logits=logits.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
