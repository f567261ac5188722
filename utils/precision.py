"""Which floating-point format a device is fast in, and the settings that go with it."""

import contextlib
import os
from collections.abc import Iterator

import torch


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The format of autocast.

    Args:
        precision: "float32", "float16", "bfloat16", or "auto". On a GPU auto is bfloat16 from compute capability 8.0
            on, float16 on 7.x, else float32. On a CPU it is bfloat16 if there are instructions for it, else float32.
    """
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        # By capability, since torch.cuda.is_bf16_supported() is true for emulated bfloat16 too.
        major, _ = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16
        if major == 7:
            return torch.float16
        return torch.float32
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.float32


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """float64 as it is, everything else as float32."""
    if tensor.dtype == torch.float64:
        return tensor
    return tensor.float()


def set_tf32(on: bool) -> None:
    """TF32 in convolutions. Matrix products of float32 are exact always, which is torch's default.

    No layer of a ResNet that takes time is a float32 product, and the filter's must be exact: so no step has to switch
    it. This is the API that torch 2.7 has too; newer ones raise an error where both are used.
    """
    torch.backends.cudnn.allow_tf32 = on


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Inside `with`, float32 is computed without TF32, whatever the run trains with. Not for use within a step."""
    before = torch.backends.cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        set_tf32(before)


@contextlib.contextmanager
def without_algorithm_search() -> Iterator[None]:
    """Inside `with`, cuDNN takes the algorithm that it thinks best, and does not time them all first.

    For shapes that are met once, where the search costs more than it saves, and for evaluations, whose counts must not
    depend on how busy the GPU was during a search. cuDNN's choices are kept by shape, whether it searched or not, but
    those among deterministic algorithms apart: so the two do not meet.
    """
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def set_determinism(deterministic: bool) -> None:
    """Set the process-wide switches of bit-identical reruns. To be called before the ranks join and CUDA starts:
    NCCL, cuBLAS and torch's process groups look at them once.

    Args:
        deterministic: at the cost of cuDNN's search for the fastest algorithms.
    """
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it only
        os.environ.setdefault("NCCL_ALGO", "^NVLS")  # sums of NVLink's switches differ from call to call
        torch.use_deterministic_algorithms(True)
        # Else torch fills new memory with NaN, to show who reads it unwritten: twice as many kernels a step.
        torch.utils.deterministic.fill_uninitialized_memory = False


def set_numerics(dtype: torch.dtype, tf32: bool | None) -> None:
    """Set the process-wide switches of float32 work.

    Args:
        dtype: the format of autocast.
        tf32: TF32 in convolutions; None: on unless dtype is float32.
    """
    if tf32 is None:
        tf32 = dtype != torch.float32
    set_tf32(tf32)


def uses_channels_last(option: bool | None, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a network's weights lie in NHWC order.

    Args:
        option: the knob model.channels_last; None: as is faster. On a GPU that is NHWC for bfloat16 and float16, whose
            matrix units want it, and not for float32.
        dtype: what the network computes in: the format of autocast in training, float32 in an evaluation.
    """
    if option is not None:
        return option
    return device.type == "cpu" or dtype != torch.float32
