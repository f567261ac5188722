"""Memory that ran out is explained, whichever library says so."""

import pytest
import torch

from utils.distributed import explain
from utils.memory import explain_out_of_memory

IN_A_THREAD = """Caught RuntimeError in pin memory thread for device 0.
Original Traceback (most recent call last):
  File "torch/utils/data/_utils/pin_memory.py", line 41, in do_one_step
    data = pin_memory(data, device)
RuntimeError: CUDA error: out of memory
CUDA kernel errors might be asynchronously reported at some other API call
"""
FROM_NCCL = """NCCL error in: torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error, NCCL version 2.27.5
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
Failed to CUDA calloc async 608 bytes: Cuda failure 2 'out of memory'"""


@pytest.mark.parametrize(
    ("error", "symptom"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "Tried to allocate 2 GiB"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "CUDA error: out of memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "CUDNN_STATUS_ALLOC_FAILED"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "ALLOCATION_FAILED"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "cublasCreate"),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), "CUFFT_ALLOC_FAILED"),
        (RuntimeError(FROM_NCCL), "Failed to CUDA calloc async 608 bytes"),
    ],
)
def test_of_a_gpu(error, symptom):
    text = explain(error)
    assert text.startswith("the GPU's memory ran out (") and "\n" not in text
    assert symptom in text and "Lower train.images_per_device" in text and "data.val_batch_size" in text


def test_a_long_message_is_quoted_in_whole_sentences():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 50.00 MiB. GPU 0 has a total capacity of 23.69 GiB of which 17.00 MiB "
        "is free. Including non-PyTorch memory, this process has 23.60 GiB memory in use."
    )
    assert "memory ran out (CUDA out of memory. Tried to allocate 50.00 MiB). Lower" in explain(error)


@pytest.mark.parametrize(
    ("error", "symptom"),
    [
        (RuntimeError(IN_A_THREAD), "pinned, RuntimeError: CUDA error: out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
                         "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"),
            "DefaultCPUAllocator: can't allocate memory",
        ),
        (OSError(12, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (MemoryError(), "MemoryError"),
    ],
)  # fmt: skip
def test_of_the_machine(error, symptom):
    text = explain(error)
    assert text.startswith("the machine's memory ran out (") and "\n" not in text
    assert symptom in text and "Lower data.workers" in text


def test_torchs_own_words_on_this_machine():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert "the machine's memory ran out" in explain(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Caught ValueError in pin memory thread for device 0.\nValueError: no"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        FileNotFoundError(2, "No such file or directory", "pin_memory"),
    ],
)
def test_what_is_no_lack_of_memory(error):
    assert explain_out_of_memory(error) is None
