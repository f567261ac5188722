"""AdamW with weight decay where it is wanted."""

import torch
from torch import nn


def adamw(
    model: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float, weight_decay_on: str
) -> torch.optim.AdamW:
    """Fused AdamW, whose update can be masked on the device (`found_inf`).

    Args:
        weight_decay_on: "all" parameters (public code A), or "matrices": none on biases and other 1-D parameters.
    """
    decayed = [p for p in model.parameters() if weight_decay_on == "all" or p.dim() > 1]
    spared = [p for p in model.parameters() if weight_decay_on != "all" and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, fused=True)
