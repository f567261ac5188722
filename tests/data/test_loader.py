"""Batches of the loader, and what a step gets of them."""

import shutil
import sys
import time
from dataclasses import dataclass, field

import pytest
import torch
from torch.utils.data import Dataset

from data.loader import StepBatches, batch_loader, collate

CPU = torch.device("cpu")


class NumberedSamples(Dataset):
    """Sample n is an image full of n, the target 10 n, and a note for every third."""

    def __init__(self):
        self.cannot_be_pickled = lambda: None

    def __getitem__(self, number):
        note = "" if number % 3 else f"image {number} was replaced"
        return torch.full((3, 4, 4), number, dtype=torch.uint8), 10 * number, note


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_take_the_loaders_batches_in_order_and_separate_the_notes(workers):
    loader = batch_loader(NumberedSamples(), [[2 * n, 2 * n + 1] for n in range(6)], workers, CPU)
    batches = StepBatches(loader, accumulation=2, device=CPU)
    numbers, notes = [], []
    for _ in range(3):
        step = batches.next_step()
        assert len(step.micro_batches) == 2
        for images, targets in step.micro_batches:
            assert (images.shape, images.dtype, targets.dtype) == ((2, 3, 4, 4), torch.uint8, torch.int64)
            assert (10 * images[:, 0, 0, 0].long()).tolist() == targets.tolist()
            numbers += images[:, 0, 0, 0].tolist()
        notes.append(step.notes)
    assert numbers == list(range(12))
    assert notes == [
        ["image 0 was replaced", "image 3 was replaced"], ["image 6 was replaced"], ["image 9 was replaced"],
    ]  # fmt: skip
    with pytest.raises(StopIteration):
        batches.next_step()


def test_the_time_spent_waiting_for_the_loader_is_measured():
    def slow_batches():
        for _ in range(2):
            time.sleep(0.05)
            yield [torch.zeros(1), torch.zeros(1), [""]]

    assert 0.1 <= StepBatches(slow_batches(), accumulation=2, device=CPU).next_step().waited.seconds < 5


@pytest.mark.parametrize("shape", [(3, 8, 6), (2, 3, 8, 6)])
def test_images_of_a_batch_are_hwc_in_memory(shape):
    images = torch.arange(2 * torch.Size(shape).numel()).reshape(2, *shape)
    batch, targets = collate([(images[0], 5), (images[1], 7)])
    assert torch.equal(batch, images) and targets.tolist() == [5, 7]
    assert batch.movedim(-3, -1).is_contiguous()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no safe fork")
def test_workers_are_forked_so_that_nothing_is_pickled(monkeypatch):
    """As on Python 3.14, whose default is another."""
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "forkserver")
    loader = batch_loader(NumberedSamples(), [[1]], 1, CPU)
    assert loader.multiprocessing_context.get_start_method() == "fork"
    assert [batch[1].tolist() for batch in loader] == [[10]]


class HangingSamples(Dataset):
    def __getitem__(self, number):
        time.sleep(60)


@pytest.mark.process
def test_a_worker_that_hangs_ends_the_wait():
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="DataLoader timed out after"):
        next(iter(batch_loader(HangingSamples(), [[0]], 1, CPU, timeout_minutes=0.01)))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("batch_bytes", "expected"), [(3 * 4 * 4, 4), (2**29, 2), (2**33, 1)])
def test_large_batches_are_not_made_far_ahead(batch_bytes, expected, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    loader = batch_loader(NumberedSamples(), [[1, 2]], 2, CPU, batch_bytes=batch_bytes)
    assert loader.prefetch_factor == expected


@dataclass
class FakeGpu:
    """Stands for a GPU: notes what is asked of it, in order."""

    events: list = field(default_factory=list)

    def tensor(self, name):
        return FakeTensor(name, self)

    def event(self, enable_timing):
        assert enable_timing
        return FakeEvent(self)

    def stream(self, device):
        self.events.append(("new stream", device))
        return FakeStream("copies", self)


@dataclass
class FakeStream:
    name: str
    gpu: FakeGpu

    def __enter__(self):
        self.gpu.events.append(("enter", self.name))

    def __exit__(self, *_error):
        self.gpu.events.append(("leave", self.name))

    def wait_stream(self, other):
        self.gpu.events.append((self.name, "waits for", other.name))


@dataclass
class FakeEvent:
    gpu: FakeGpu

    def record(self, stream):
        self.gpu.events.append(("event", stream.name))


@dataclass
class FakeTensor:
    name: str
    gpu: FakeGpu

    def to(self, device, non_blocking):
        assert non_blocking
        self.gpu.events.append(("copy", self.name, device))
        return FakeTensor(f"{self.name} on the GPU", self.gpu)

    def record_stream(self, stream):
        self.gpu.events.append((self.name, "used by", stream.name))


def test_on_a_gpu_copies_have_their_own_stream_and_their_memory_is_kept_for_the_step(monkeypatch):
    """The copies wait for nothing, the step waits for them, and no memory is given out again before its end."""
    gpu, device = FakeGpu(), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "Stream", gpu.stream)
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: FakeStream("step", gpu))
    batches = StepBatches([[gpu.tensor("images"), gpu.tensor("targets"), ["a note"]]], accumulation=1, device=device)
    step = batches.next_step()
    assert [tensor.name for tensor in step.micro_batches[0]] == ["images on the GPU", "targets on the GPU"]
    assert step.notes == ["a note"]
    assert gpu.events == [
        ("new stream", device),
        ("event", "step"),  # when all steps before are done
        ("enter", "copies"),
        ("copy", "images", device),
        ("copy", "targets", device),
        ("leave", "copies"),
        ("step", "waits for", "copies"),
        ("images on the GPU", "used by", "step"),
        ("targets on the GPU", "used by", "step"),
        ("event", "step"),  # when the images are there too
    ]
