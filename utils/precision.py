"""Which floating-point format a device is fast in, and the settings that go with it."""

import contextlib
import os

import torch


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The autocast format: auto is bfloat16 from compute capability 8.0 on, float16 on 7.x, else float32.

    On a CPU auto is bfloat16 where it has instructions for it. By capability, since
    `torch.cuda.is_bf16_supported()` counts emulation.
    """
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """float64 as it is, all else as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def set_tf32(on: bool) -> None:
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


@contextlib.contextmanager
def exact_float32():
    """Without TF32, whatever the run trains with."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def set_numerics(dtype: torch.dtype, tf32: bool | None, deterministic: bool) -> None:
    """Process-wide switches: TF32 (None: on unless working in float32), and determinism against autotuning."""
    set_tf32(dtype != torch.float32 if tf32 is None else tf32)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
