"""Optimizers by name. A new one is a function here, its name in `OPTIMIZERS`, and a choice of `optimizer.name`.

Any optimizer may stand here: the guard of utils/training/step.py against numbers that are not finite holds for it. An
optimizer that counts its steps should count in a tensor of its state: then a step that is undone does not count.
"""

import torch
from torch import nn

from configs.schema import FinetuneOptimizerOptions, OptimizerOptions
from utils.training.lamb import Lamb
from utils.training.layer_decay import layers_of


def adamw(groups: list[dict], options: OptimizerOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=True)


def sgd(groups: list[dict], options: OptimizerOptions) -> torch.optim.Optimizer:
    """Weight decay is part of the gradient."""
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum, nesterov=options.nesterov)


def lamb(groups: list[dict], options: OptimizerOptions) -> torch.optim.Optimizer:
    """With eps 1e-6 and gradients clipped to norm 1, as RSB has it."""
    return Lamb(groups, lr=options.learning_rate, betas=options.betas)


OPTIMIZERS = {"adamw": adamw, "sgd": sgd, "lamb": lamb}


def make_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimizer `options.name` over the parameters of the model that are not frozen.

    `options.layer_decay` gives each group of layers a share of the learning rate (utils/training/layer_decay.py).
    """
    if isinstance(options, FinetuneOptimizerOptions) and options.layer_decay is not None:
        groups = []
        layers = layers_of(model)
        for number, parameters in enumerate(layers):
            scale = options.layer_decay ** (len(layers) - 1 - number)  # the last one is the head
            for group in by_weight_decay(parameters, options):
                groups.append(group | {"learning_rate_scale": scale})
    else:
        groups = by_weight_decay(list(model.parameters()), options)
    return OPTIMIZERS[options.name](groups, options)


def by_weight_decay(parameters: list[nn.Parameter], options: OptimizerOptions) -> list[dict]:
    """One group of those that decay and one of the others, in torch.optim's form; none that is empty, none frozen.

    `options.weight_decay_on` says whether "all" parameters decay (CoinCheung/MFM), or only "matrices": no biases and no
    other 1-D parameters (the authors' code).
    """
    decayed, spared = [], []
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if options.weight_decay_on == "all" or parameter.dim() > 1:
            decayed.append(parameter)
        else:
            spared.append(parameter)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
