"""Which format on which device, and which wheel has kernels for it."""

import os
import warnings
from pathlib import Path

import pytest
import torch

from utils.devices import missing_kernels
from utils.precision import (
    choose_precision,
    exact_float32,
    set_determinism,
    set_numerics,
    set_tf32,
    uses_channels_last,
    without_algorithm_search,
)

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
    cudnn = torch.backends.cudnn
    tf32, benchmark = cudnn.allow_tf32, cudnn.benchmark
    yield
    cudnn.allow_tf32, cudnn.benchmark = tf32, benchmark
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


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
def test_tf32_is_of_convolutions_alone(numerics, dtype, tf32, on):
    """Torch warns of an API that it gives up, and raises an error where two are mixed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_numerics(dtype, tf32)
        assert torch.backends.cudnn.allow_tf32 == on
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("deterministic", [False, True])
def test_switches_of_determinism(numerics, monkeypatch, deterministic):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv("NCCL_ALGO", raising=False)
    set_determinism(deterministic)
    assert torch.backends.cudnn.benchmark == (not deterministic)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
    assert os.environ.get("NCCL_ALGO") == ("^NVLS" if deterministic else None)
    assert not torch.empty(12345).isnan().all()  # as torch would fill it


def test_what_the_user_has_set_for_nccl_stays(numerics, monkeypatch):
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_determinism(True)
    assert (os.environ["NCCL_ALGO"], os.environ["CUBLAS_WORKSPACE_CONFIG"]) == ("Ring", ":16:8")


@pytest.mark.parametrize(
    ("option", "dtype", "device", "expected"),
    [
        (None, torch.float32, CPU, True),
        (None, torch.bfloat16, CPU, True),
        (None, torch.bfloat16, GPU, True),
        (None, torch.float16, GPU, True),
        (None, torch.float32, GPU, False),  # also of an evaluation
        (True, torch.float32, GPU, True),
        (False, torch.bfloat16, GPU, False),
        (False, torch.float32, CPU, False),
    ],
)
def test_the_layout_of_each_device_and_format(option, dtype, device, expected):
    assert uses_channels_last(option, dtype, device) == expected


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
    with pytest.raises(ZeroDivisionError), exact_float32():
        assert not torch.backends.cudnn.allow_tf32
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.parametrize("benchmark", [True, False])
def test_the_search_for_algorithms_is_switched_off_and_back(numerics, benchmark):
    torch.backends.cudnn.benchmark = benchmark
    with pytest.raises(ZeroDivisionError), without_algorithm_search():
        assert not torch.backends.cudnn.benchmark
        raise ZeroDivisionError
    assert torch.backends.cudnn.benchmark == benchmark
