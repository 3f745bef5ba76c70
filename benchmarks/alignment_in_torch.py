"""The alignment with text in eager PyTorch: tokens (B, P, D), labels (B, S, S), texts (K, D)."""

import math

import torch
import torch.nn.functional as F


def with_loops(tokens: torch.Tensor, labels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Images, patches and classes one by one, as the published code takes them."""
    grid = math.isqrt(tokens.shape[1])
    side, total = labels.shape[1] // grid, 0.0
    for image in range(len(labels)):
        for index in range(grid**2):
            row, column = (side * i for i in divmod(index, grid))
            seen = torch.unique(labels[image, row : row + side, column : column + side]).tolist()
            pull, push = [], []
            for k in range(len(text)):
                cosine = F.cosine_similarity(tokens[image, index], text[k], dim=0)
                if k + 1 in seen:
                    pull.append(F.relu(1 - cosine))
                else:
                    push.append(F.relu(1 + cosine))
            total = total + sum(sum(terms) / len(terms) for terms in (pull, push) if terms)
    return total / (len(labels) * grid**2)


def vectorised(tokens: torch.Tensor, labels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    batch, grid = len(labels), math.isqrt(tokens.shape[1])
    side = labels.shape[1] // grid
    patches = labels.reshape(batch, grid, side, grid, side).transpose(2, 3)
    patches = patches.reshape(batch, grid**2, side * side, 1)
    present = (patches == torch.arange(1, len(text) + 1)).any(2)
    cosine = F.normalize(tokens, dim=-1) @ F.normalize(text, dim=-1).T
    total = 0
    for values, where in ((F.relu(1 - cosine), present), (F.relu(1 + cosine), ~present)):
        total = total + (values * where).sum(-1) / where.sum(-1).clamp(min=1)
    return total.mean()
