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
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Inside `with`, float32 is computed without TF32, whatever the run trains with."""
    matmul_before = torch.get_float32_matmul_precision()
    cudnn_before = torch.backends.cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul_before)
        torch.backends.cudnn.allow_tf32 = cudnn_before


def set_numerics(dtype: torch.dtype, tf32: bool | None, deterministic: bool) -> None:
    """Set the process-wide switches.

    Args:
        dtype: the format of autocast.
        tf32: TF32 for float32 work; None: on unless dtype is float32.
        deterministic: bit-identical reruns, at the cost of cuDNN's search for the fastest algorithms.
    """
    if tf32 is None:
        tf32 = dtype != torch.float32
    set_tf32(tf32)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it only
        torch.use_deterministic_algorithms(True)
