"""The share of its time that a GPU waits for images, from made event times."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.waiting import DeviceWait, HostWait, wait_share, workers_needed


@dataclass(frozen=True)
class MadeEvent:
    """What a torch.cuda.Event measures, at a time that the test chooses."""

    milliseconds: float

    def elapsed_time(self, end_event: "MadeEvent") -> float:
        return end_event.milliseconds - self.milliseconds


def steps_of_a_run(step: float, batch_every: float, launching: float, steps: int = 200) -> tuple[list, list, float]:
    """What the events of a GPU measure, and this process's clock, in a run that is in its stride.

    Args:
        step: milliseconds that the GPU computes.
        batch_every: milliseconds from one batch of the loader to the next.
        launching: milliseconds that this process takes to launch a step.
    Returns: waits by the GPU's clock, waits by this process's clock, seconds of the whole.
    """
    process, device_done = 0.0, 0.0
    by_device, by_process = [], []
    for number in range(steps):
        asked = process
        process = max(process, (number + 1) * batch_every)  # the batch is there
        by_process.append(HostWait((process - asked) / 1000))
        device_idle_from = max(device_done, asked)
        begins = max(device_done, process)
        by_device.append(DeviceWait(MadeEvent(device_idle_from), MadeEvent(begins)))
        process += launching
        device_done = max(begins, process - launching) + step
    return by_device[1:], by_process[1:], (device_done - batch_every) / 1000


def test_a_loader_that_is_5_percent_too_slow_is_told_as_such():
    """8 workers that make a batch in 105 ms for steps of 100 ms: 5 of 105 ms are waited for, and 9 would keep up."""
    by_device, by_process, seconds = steps_of_a_run(step=100, batch_every=105, launching=20)
    share = wait_share(by_device, seconds)
    assert share == pytest.approx(0.048, abs=0.001)
    assert workers_needed(8, share, len(by_device)) == 9
    assert wait_share(by_process, seconds) == pytest.approx(0.81, abs=0.01)  # that would ask for 42
    assert workers_needed(8, wait_share(by_process, seconds), len(by_process)) == 42


@pytest.mark.parametrize(("batch_every", "share"), [(99, 0.0), (50, 0.0), (200, 0.5), (400, 0.75)])
def test_the_share_of_other_loaders(batch_every, share):
    by_device, _, seconds = steps_of_a_run(step=100, batch_every=batch_every, launching=20)
    assert wait_share(by_device, seconds) == pytest.approx(share, abs=0.006)


def test_a_share_is_below_one_whatever_the_clocks_say():
    assert wait_share([HostWait(2.0)], 1.0) < 1
    assert wait_share([], 1.0) == 0


def test_of_few_steps_nothing_is_told():
    assert workers_needed(8, 0.5, steps=9) == 8
    assert workers_needed(8, 0.5, steps=10) == 16


@given(st.integers(1, 64), st.floats(0.021, 0.99))
def test_that_many_workers_do_keep_up_and_one_less_would_not(workers, share):
    """A worker makes a batch in `workers` seconds, so that all make one a second; a step without waiting is shorter."""
    step = 1 - share
    needed = workers_needed(workers, share, steps=50)
    assert workers / needed <= step * (1 + 1e-9)
    assert workers / (needed - 1) > step * (1 - 1e-9) or needed == 1
