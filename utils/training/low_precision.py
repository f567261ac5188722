"""Weights in the low precision of autocast, cast together: autocast itself casts them, and their gradients, singly."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

CAST_BY_AUTOCAST = (nn.Conv2d, nn.Linear)


class Cast(torch.autograd.Function):
    """Tensors of one type in another one, and their gradients back, with the numbers of `Tensor.to`."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = weights[0].dtype
        return tuple(converted(weights, dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        used = [number for number, gradient in enumerate(gradients) if gradient is not None]
        results: list[torch.Tensor | None] = [None] * len(gradients)
        given = [gradients[number] for number in used]
        for number, result in zip(used, converted(given, ctx.dtype), strict=True):
            results[number] = result
        return None, *results


def converted(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    results = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(results, list(tensors))
    return results


class Place(NamedTuple):
    """Where a layer has a weight."""

    module: nn.Module
    name: str
    weight: nn.Parameter

    def put(self, weight: torch.Tensor) -> None:
        self.module._parameters[self.name] = weight  # by assignment a module takes nothing but an nn.Parameter


def castable(model: nn.Module) -> list[Place]:
    places = []
    for module in model.modules():
        if isinstance(module, CAST_BY_AUTOCAST):
            for name, weight in module._parameters.items():
                if weight is not None and weight.requires_grad and weight.dtype == torch.float32:
                    places.append(Place(module, name, weight))
    return places


@contextlib.contextmanager
def weights_cast_together(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, a forward pass of the model has its trained convolutions and linear layers hold weights in `dtype`.

    They are those that autocast would cast. Each child of the model is cast by itself. So its gradients are complete as
    soon as the backward pass has left it, and DistributedDataParallel can exchange them during the rest of the pass.
    """
    places: list[Place] = []

    def cast(_module: nn.Module, _inputs: tuple) -> None:
        for child in model.children():
            places_of_child = castable(child)
            if not places_of_child:
                continue
            weights = Cast.apply(dtype, *[place.weight for place in places_of_child])
            places.extend(places_of_child)
            for place, weight in zip(places_of_child, weights, strict=True):
                place.put(weight)

    def restore(*_module_inputs_and_output: object) -> None:
        for place in places:
            place.put(place.weight)
        places.clear()

    hooks = [model.register_forward_pre_hook(cast), model.register_forward_hook(restore, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
