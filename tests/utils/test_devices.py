"""GPUs that cannot be used, and GPUs that are left unused: judged from facts, without a GPU."""

from __future__ import annotations

import pytest

from utils import devices
from utils.devices import GpuFacts, choose_device, gpu_problem, unused_gpus
from utils.errors import UserError

TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by"


@pytest.mark.parametrize(
    ("facts", "visible", "problem"),
    [
        (GpuFacts(0, 0, "12.8", ""), None, None),  # no GPU
        (GpuFacts(0, 0, None, ""), None, None),
        (GpuFacts(8, 8, "12.8", ""), None, None),
        (GpuFacts(0, 8, "12.8", ""), None, None),  # device files elsewhere, as in WSL
        (GpuFacts(8, 2, "12.8", ""), "3,4", None),
        (GpuFacts(8, 0, "12.8", "No CUDA GPUs are available"), "", None),  # hidden on purpose
        (GpuFacts(8, 0, "12.8", "No CUDA GPUs are available"), "-1", None),
        (GpuFacts(8, 8, "12.8", TOO_OLD), None, "the NVIDIA driver, for CUDA 11.4, is too old for torch"),
        (GpuFacts(8, 0, "12.8", TOO_OLD), None, "update the driver"),
        (GpuFacts(1, 0, "12.8", "Found no NVIDIA driver on your system."), None, "(Found no NVIDIA driver on your"),
        (GpuFacts(1, 1, "12.8", "CUDA unknown error"), None, "torch cannot use the GPUs (CUDA unknown error)"),
        (GpuFacts(2, 0, None, "Torch not compiled with CUDA enabled"), None, "is built without CUDA"),
    ],
)
def test_why_gpus_cannot_be_used(facts, visible, problem):
    found = gpu_problem(facts, visible)
    if problem is None:
        assert found is None
    else:
        assert problem in found and len(found) < 240


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_broken_driver_does_not_end_in_a_training_on_the_cpu(device, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "gpu_facts", lambda: GpuFacts(8, 0, "12.8", TOO_OLD))
    with pytest.raises(UserError, match=rf"run\.device = {device}: .*too old.*or use run\.device=cpu"):
        choose_device(device, 0, 1)
    assert choose_device("cpu", 0, 1).type == "cpu"


def test_a_gpu_that_is_asked_for_and_not_there_is_told(monkeypatch):
    monkeypatch.setattr(devices, "gpu_facts", lambda: GpuFacts(0, 0, "12.8", ""))
    assert choose_device("auto", 0, 1).type == "cpu"
    with pytest.raises(UserError, match="no GPU that torch sees; use run.device=cpu"):
        choose_device("cuda", 0, 1)
    monkeypatch.setattr(devices, "gpu_facts", lambda: GpuFacts(2, 2, "12.8", ""))
    with pytest.raises(UserError, match="4 ranks on this machine, but 2 CUDA devices"):
        choose_device("auto", 3, 4)


def test_one_process_on_a_machine_with_several_gpus_is_told_of_torchrun():
    words = ["/code/pretrain.py", "--config", "configs/pretrain_resnet50.yaml", "run.seed=1"]
    warning = unused_gpus(8, "auto", False, words)
    assert "1 of 8 GPUs" in warning and "\n" not in warning
    assert "torchrun --standalone --nproc_per_node=8 pretrain.py --config configs/pretrain_resnet50.yaml …" in warning


@pytest.mark.parametrize(
    ("usable", "device", "launched"), [(0, "auto", False), (1, "auto", False), (8, "cpu", False), (8, "auto", True)]
)
def test_nothing_is_said_where_no_gpu_is_left_or_someone_chose_so(usable, device, launched):
    assert unused_gpus(usable, device, launched, ["pretrain.py"]) is None
