"""LAMB (You et al., arXiv 1904.00962), in the form that timm has and that RSB was trained with."""

import torch


class Lamb(torch.optim.Optimizer):
    """Adam whose step is scaled, tensor by tensor, by how large the weights are against the step.

    With the gradients g of all parameters together, t updates so far, a tensor of weights p, and ‖·‖ the 2-norm:

        g ← g / max(1, ‖g‖ of all parameters / max_grad_norm)
        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
        u = (m / (1 − β₁ᵗ)) / (√v / √(1 − β₂ᵗ) + eps) + weight_decay · p
        p ← p − lr · r · u,   r = ‖p‖ / ‖u‖ where weight_decay ≠ 0 and both norms are above 0, else 1

    So biases and BatchNorms, where they do not decay, take plain steps of Adam. The first line is a part of LAMB:
    without it, large gradients at the start fill v, and the run may diverge. It divides by the norm exactly, where
    torch's clip_grad_norm_ adds 1e-6 to it, so that an update agrees with timm's.

    `step` does not wait for the device. It counts t for each parameter in a tensor beside it: an update that is undone
    with the moments does not count.

    Args:
        groups: parameters as torch.optim takes them, with a weight_decay each.
    """

    def __init__(
        self, groups: list[dict], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
        max_grad_norm: float = 1.0,
    ):  # fmt: skip
        # `capturable` is torch's word for counts of steps beside the parameters: loading a state puts them there.
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "capturable": True}
        super().__init__(groups, defaults)
        self.max_grad_norm = max_grad_norm

    @torch.no_grad()
    def step(self) -> None:
        gradients = []
        for group in self.param_groups:
            gradients += [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        if not gradients:
            return
        clip = (norms(gradients).norm() / self.max_grad_norm).clamp(min=1)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self.update(group, parameters, clip)

    def update(self, group: dict, parameters: list[torch.Tensor], clip: torch.Tensor) -> None:
        """One update of a group's parameters, whose gradients are divided by `clip`, a scalar on the device."""
        states = [self.state_of(parameter) for parameter in parameters]
        counts = [state["step"] for state in states]
        first_moments = [state["exp_avg"] for state in states]
        second_moments = [state["exp_avg_sq"] for state in states]
        gradients = torch._foreach_div([parameter.grad for parameter in parameters], clip)

        beta1, beta2 = group["betas"]
        torch._foreach_add_(counts, 1)
        torch._foreach_lerp_(first_moments, gradients, 1 - beta1)
        torch._foreach_mul_(second_moments, beta2)
        torch._foreach_addcmul_(second_moments, gradients, gradients, 1 - beta2)

        updates_so_far = torch.stack(counts).double()  # 1 − 0.999ᵗ has but three digits in float32 at first
        denominators = torch._foreach_sqrt(second_moments)
        torch._foreach_div_(denominators, list((1 - beta2**updates_so_far).sqrt().unbind()))
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(first_moments, list((1 - beta1**updates_so_far).unbind()))
        torch._foreach_div_(updates, denominators)

        if group["weight_decay"] != 0:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            weight_norms, update_norms = norms(parameters), norms(updates)
            trust_ratios = torch.where((weight_norms > 0) & (update_norms > 0), weight_norms / update_norms, 1.0)
            torch._foreach_mul_(updates, list(trust_ratios.unbind()))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Count of updates and both moments, which start at 0."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def norms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The 2-norm of each tensor, (number of tensors,)."""
    return torch.stack(torch._foreach_norm(tensors))
