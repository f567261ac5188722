"""Whether a tensor of a file can become a weight: real, dense and finite."""

import torch

from utils.errors import UserError, printable

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def refuse_unusable(
    path: str, name: str, tensor: torch.Tensor, expected: torch.Tensor, remedy: str | None = None
) -> None:
    """Raise unless the numbers of `tensor` can be copied into `expected`, a tensor of the model, of the same shape.

    A count of batches, which is integer in the model, may be floating point in a file: `float()` of a whole state dict
    is common.

    Args:
        remedy: what to do; None: what helps with a file of weights.
    Raises: UserError that names the tensor and what it is, or how many of its numbers are not finite.
    """
    dtypes = REAL if expected.is_floating_point() else REAL + WHOLE
    problem = kind_problem(tensor)
    if problem is None and tensor.dtype not in dtypes:
        problem = str(tensor.dtype)
    if problem:
        raise UserError(
            f"{path}: {printable(name)} is {problem}; weights must be dense float16, bfloat16, "
            f"float32 or float64; {remedy or 'save the file anew after dequantize(), to_dense() or float()'}"
        )
    if tensor.dtype in WHOLE:
        return
    values = tensor.detach()
    not_finite = int((~values.to(expected.dtype if expected.is_floating_point() else values.dtype).isfinite()).sum())
    if not_finite:
        raise UserError(
            f"{path}: {printable(name)} holds {not_finite} of {values.numel()} numbers that are not finite; "
            f"{remedy or 'take an earlier checkpoint, or find out where the training went wrong'}"
        )
    if name.endswith("running_var") and bool((values < 0).any()):
        raise UserError(f"{path}: {printable(name)} holds a negative variance; {remedy or 'take another file'}")


def refuse_dead(path: str, name: str, tensor: torch.Tensor) -> None:
    """Raise if a tensor of the trunk, such as a convolution, is all zeros, or no channel of a BatchNorm varies.

    What is behind it sees no image. Vectors may be zero: many trainings start each block's last BatchNorm so.
    """
    is_variance = name.endswith("running_var")
    if (tensor.dim() >= 2 or is_variance) and not bool(tensor.any()):
        raise UserError(f"{path}: {printable(name)} is all zeros, so no image comes through it; take another file")


def kind_problem(tensor: torch.Tensor) -> str | None:
    """What keeps a tensor from being read as an array, with its dtype; None if nothing does."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return f"nested, {tensor.dtype}"
    if tensor.is_quantized:
        return f"quantised, {tensor.dtype}"
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout}), {tensor.dtype}"
    if tensor.device.type == "meta":
        return f"without data (device meta), {tensor.dtype}"
    return None
