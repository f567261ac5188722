"""Whether a micro-batch has enough images for what is computed over it."""

import torch
from torch import nn

from configs.schema import FinetuneConfig, PretrainConfig
from utils.errors import UserError
from utils.training.evaluation import in_evaluation


def check_micro_batch(config: PretrainConfig | FinetuneConfig, model: nn.Module, world_size: int) -> None:
    """Raises: UserError if BatchNorm would have one value a channel, or an image would have none to be mixed with.

    Args:
        config: with `train.images_per_device` filled in.
        model: of images (B, 3, S, S), before its BatchNorm is made to span ranks.
    """
    if config.train.images_per_device > 1:
        return
    given = "train.images_per_device = 1 (null: batch_size / ranks)"
    size = config.data.train_crop_size
    spans_ranks = config.model.sync_batch_norm and world_size > 1
    if not spans_ranks and fewest_values(model, size) < 2:
        raise UserError(
            f"{given}: BatchNorm needs two values a channel, and a stage of {config.model.name} has only one "
            f"of an image of {size} pixels; take 2 or more, or a larger data.train_crop_size"
        )
    if isinstance(config, FinetuneConfig):
        for key in ("mixup_alpha", "cutmix_alpha"):
            alpha = getattr(config.data, key)
            if alpha:
                raise UserError(
                    f"data.{key} = {alpha}: an image alone has none to be mixed with, and {given}; "
                    f"take 2 or more, or data.{key}=0"
                )


def fewest_values(model: nn.Module, size: int) -> float:
    """The values a channel that a BatchNorm of the model gets of one image (3, size, size): of the one with fewest.

    The model runs on torch's meta device, which has shapes and no numbers: no memory is taken, nothing is drawn.
    """
    shapes = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        shapes[name] = torch.empty_like(tensor, device="meta")
    counts = []

    def note_count(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        counts.append(inputs[0].numel() // inputs[0].shape[1])

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.training:  # a frozen one needs none
            hooks.append(module.register_forward_pre_hook(note_count))
    try:
        with torch.no_grad(), in_evaluation(model):
            torch.func.functional_call(model, shapes, torch.empty(1, 3, size, size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return min(counts, default=float("inf"))
