"""What to do when memory runs out, whichever library says so and in whatever words."""

import errno
import re

import torch

from utils import restart
from utils.errors import first_line

GPU_MEMORY = (
    "CUDA out of memory|CUDA error: out of memory|Cuda failure.*out of memory|cudaErrorMemoryAllocation"
    r"|CU(DNN|BLAS|SOLVER|SPARSE)_STATUS_\w*ALLOC\w*FAILED|CUFFT_ALLOC_FAILED"
)
PINNING = "pin memory thread|cudaHostAlloc|pin_memory"  # fails in the words of a GPU
MACHINE_MEMORY = "can't allocate memory|cannot allocate memory"  # torch's allocator on the CPU, and the kernel


def explain_out_of_memory(error: BaseException) -> str | None:
    """What ran out and what to lower; None: the error is none of memory.

    Torch raises an OutOfMemoryError only where its own allocator on a GPU fails. Everything else that takes memory
    (CUDA's start, cuDNN, cuBLAS, cuFFT, NCCL, pinned and ordinary memory of the machine) has other errors.
    """
    text = str(error)
    is_of_gpu = isinstance(error, torch.OutOfMemoryError) or bool(re.search(GPU_MEMORY, text, re.IGNORECASE))
    if is_of_gpu and not re.search(PINNING, text):
        return gpu_memory(line_about_memory(error, GPU_MEMORY))
    if is_of_gpu:
        return machine_memory(f"pinned, {line_about_memory(error, GPU_MEMORY)}")
    is_of_machine = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if is_of_machine or re.search(MACHINE_MEMORY, text, re.IGNORECASE):
        return machine_memory(line_about_memory(error, MACHINE_MEMORY))
    return None


def gpu_memory(symptom: str) -> str:
    return (
        f"the GPU's memory ran out ({symptom}). Lower train.images_per_device: the batch stays the same, made up of "
        "more micro-batches (BatchNorm sees one at a time). In an evaluation, lower data.val_batch_size."
    )


def machine_memory(symptom: str) -> str:
    return (
        f"the machine's memory ran out ({symptom}). Lower data.workers, whose batches lie in it (on a CPU "
        "train.images_per_device or data.val_batch_size too), or raise the limit (ulimit -v; docker: --memory); "
        f"{restart.remedy()}"
    )


def line_about_memory(error: BaseException, pattern: str) -> str:
    """The line of the message that says so, in whole sentences if it is long; a thread's begins with its trace."""
    for line in str(error).splitlines():
        if re.search(pattern, line, re.IGNORECASE) and not line.startswith("Caught"):
            return shortened(line.strip())
    return shortened(first_line(error)) or type(error).__name__


def shortened(line: str) -> str:
    """At most 100 characters, without the place in torch's source that an error of the CPU's allocator begins with."""
    line = re.sub(r"^\[enforce fail at [^\]]*\]( err == 0\.)? *", "", line)
    if len(line) > 100:
        line = line[:100].rpartition(". ")[0] or line[:100]
    return line.strip(" .")
