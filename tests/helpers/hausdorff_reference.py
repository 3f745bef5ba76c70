"""MONAI's Dice and 95 % Hausdorff distance, in a process without TensorFlow.

python tests/helpers/hausdorff_reference.py IN.npz OUT.npz

IN.npz holds `found_i` and `truth_i`, bool, and `spacing_i`; OUT.npz `scores`, (N, 2).
"""

import sys

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance


def main(source: str, target: str) -> None:
    inputs = np.load(source)
    scores = []
    for i in range(len(inputs.files) // 3):
        found, truth = (
            torch.tensor(inputs[f"{name}_{i}"])[None, None].float() for name in ("found", "truth")
        )
        distance = compute_hausdorff_distance(
            found, truth, percentile=95, spacing=inputs[f"spacing_{i}"].tolist()
        )
        scores.append([compute_dice(found, truth).item(), distance.item()])
    np.savez(target, scores=np.array(scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
