"""Which format on which device, and which wheel has kernels for it."""

from pathlib import Path

import pytest
import torch

from utils.devices import missing_kernels
from utils.precision import choose_precision, exact_float32, set_numerics, set_tf32

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((5, 2), torch.float32),
        ((6, 1), torch.float32),  # P40
        ((7, 0), torch.float16),  # V100
        ((7, 5), torch.float16),  # T4
        ((8, 0), torch.bfloat16),  # A100
        ((8, 9), torch.bfloat16),
        ((9, 0), torch.bfloat16),  # H100, H200
        ((12, 0), torch.bfloat16),
    ],
)
def test_auto_goes_by_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert choose_precision("auto", GPU) == expected


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_name_is_taken_as_it_is(name, device):
    assert choose_precision(name, device) == getattr(torch, name)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's list of instructions")
def test_auto_on_a_cpu_is_bfloat16_where_native():
    flags = Path("/proc/cpuinfo").read_text().split()
    native = "avx512_bf16" in flags or "amx_tile" in flags
    assert choose_precision("auto", CPU) == (torch.bfloat16 if native else torch.float32)


@pytest.fixture
def numerics():
    """Puts the process-wide switches back."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    tf32, benchmark = cudnn.allow_tf32, cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(matmul)
    cudnn.allow_tf32, cudnn.benchmark = tf32, benchmark
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("dtype", "tf32", "on"),
    [
        (torch.float32, None, False),
        (torch.float32, True, True),
        (torch.bfloat16, None, True),
        (torch.float16, None, True),
        (torch.bfloat16, False, False),
    ],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_switches(numerics, monkeypatch, dtype, tf32, on, deterministic):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_numerics(dtype, tf32, deterministic)
    assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
    assert torch.backends.cudnn.allow_tf32 == on
    assert torch.backends.cudnn.benchmark == (not deterministic)
    assert torch.are_deterministic_algorithms_enabled() == deterministic


WHEEL_2_10 = "sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120".split()
WHEEL_2_7 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90".split()


@pytest.mark.parametrize(
    ("capability", "wheel"),
    [
        ((6, 1), WHEEL_2_7),  # the same major runs: sm_60
        ((7, 0), WHEEL_2_10),
        ((7, 5), WHEEL_2_10),
        ((8, 0), WHEEL_2_10),
        ((8, 9), WHEEL_2_10),
        ((9, 0), WHEEL_2_10),
        ((9, 0), ["sm_90a"]),
        ((12, 0), WHEEL_2_10),
        ((12, 1), WHEEL_2_10),
    ],
)
def test_wheels_that_fit(capability, wheel):
    assert missing_kernels(capability, wheel) is None


@pytest.mark.parametrize(
    ("capability", "wheel", "pin"),
    [
        ((6, 1), WHEEL_2_10, "torch==2.7.1 torchvision==0.22.1"),  # P40
        ((6, 0), ["sm_61"], "torch==2.7.1 torchvision==0.22.1"),  # a higher minor number does not run
        ((7, 0), WHEEL_2_10[1:], "torch==2.10.0 torchvision==0.25.0"),  # V100 and torch 2.11
        ((10, 0), WHEEL_2_7, "torch==2.10.0 torchvision==0.25.0"),
        ((12, 0), WHEEL_2_7, "torch==2.10.0 torchvision==0.25.0"),
    ],
)
def test_wheels_that_do_not_fit_are_named_with_the_one_that_does(capability, wheel, pin):
    problem = missing_kernels(capability, wheel)
    assert problem.endswith(f"pip install {pin}")
    assert f"compute capability {capability[0]}.{capability[1]}" in problem
    assert all(text in problem for text in (torch.__version__, *wheel))


@pytest.mark.parametrize("tf32", [True, False])
def test_exact_float32_switches_tf32_off_and_back(numerics, tf32):
    set_tf32(tf32)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with pytest.raises(ZeroDivisionError), exact_float32():
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
        raise ZeroDivisionError
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
