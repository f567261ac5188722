"""What a run writes down: values of that very step, in lines that outlive an interruption once."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.distributed import World
from utils.run.log import RunLog, peak_memory
from utils.waiting import HostWait

TIMES = {"images_per_second", "data_wait_share", "workers_needed", "peak_memory_gb", "time"}


def run_log(folder, every=2, first=0, total=9, rank=0, workers=0):
    folder.mkdir(exist_ok=True)
    return RunLog(
        folder, World(rank, 1, 1, torch.device("cpu")), every_steps=every, first_step=first, total_steps=total,
        steps_per_epoch=3, batch_size=16, workers=workers,
    )  # fmt: skip


def metrics(step):
    """Sums and counts whose quotients tell the step: the loss is the step's number."""

    def pair(total, count):
        return torch.tensor(float(total)), torch.tensor(float(count))

    return {
        "loss": pair(4.0 * step, 4), "loss_low_pass": pair(6 * step + 3, 3), "loss_high_pass": pair(0, 0),
        "grad_norm": pair(step / 8, 1),
    }  # fmt: skip


def take_step(log, step, values=None, waited=0.0):
    """As the loop does, for a step counted from 0."""
    log.count(0.5 / (step + 1), values or metrics(step), HostWait(waited))
    if log.due(step + 1):
        log.run(step + 1)


def take(log, steps):
    for step in steps:
        take_step(log, step)
    log.close()


def evaluation_rows(top1=50.0):
    """As an evaluation of a model and its average at two sizes gives them."""
    rows = []
    for weights in ("model", "ema"):
        for size in (40, 33):
            row = {"weights": weights, "val_resize_size": size, "images": 8, "top1_count": 4, "top5_count": 6}
            rows.append(row | {"top1": top1, "top5": 75.0, "loss": 1.5})
    return rows


def lines(folder):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "log.jsonl").read_text().splitlines()]


def scalars(folder, name="train/loss"):
    """Value by step, as TensorBoard shows it: no step twice."""
    events = EventAccumulator(str(folder)).Reload().Scalars(name)
    found = {event.step: event.value for event in events}
    assert len(found) == len(events)
    return found


def test_lines_hold_the_values_of_their_step(tmp_path):
    take(run_log(tmp_path), range(9))
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [2, 4, 6, 8, 9]  # counted from 1, the last one too
    for line in found:
        step = line["step"] - 1
        assert {key: value for key, value in line.items() if key not in TIMES} == {
            "step": step + 1, "epoch": step // 3, "loss": step, "loss_low_pass": 2 * step + 1, "grad_norm": step / 8,
            "learning_rate": 0.5 / (step + 1),
        }  # fmt: skip
        assert TIMES <= line.keys()
        assert line["images_per_second"] > 0


@pytest.mark.parametrize(("every", "due"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (50, [5])])
def test_due_every_so_many_steps_and_at_the_last(tmp_path, every, due):
    log = run_log(tmp_path, every, total=5)
    assert [step for step in range(6) if log.due(step)] == due
    log.close()


def test_last_line_is_at_hand_for_the_result(tmp_path):
    log = run_log(tmp_path)
    take(log, range(9))
    assert log.last_line == lines(tmp_path)[-1]


@pytest.mark.parametrize("evaluation_seconds", [0.0, 30.0])
def test_throughput_counts_all_steps_since_the_last_line_and_no_evaluation(evaluation_seconds, tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = run_log(tmp_path)
    for step in range(8):
        now[0] += 2.0
        take_step(log, step, waited=0.5)
        with log.paused():
            now[0] += evaluation_seconds
    log.close()
    assert [line["images_per_second"] for line in lines(tmp_path)] == [pytest.approx(16 / 2.0)] * 4
    assert [line["data_wait_share"] for line in lines(tmp_path)] == [pytest.approx(0.25)] * 4


@pytest.mark.parametrize(
    ("workers", "waited", "needed"),
    [(3, 0.5, 4), (3, 1.0, 6), (16, 1.9, 320), (3, 0.04, 3), (3, 0.05, 4), (0, 0.5, 1), (0, 1.5, 3), (8, 0.0, 8)],
)
def test_too_few_workers_are_told_with_how_many_would_do(tmp_path, monkeypatch, capsys, workers, waited, needed):
    """Steps of 2 s. Of w workers that are waited for during a share s of it, w / (1 - s) would have kept up."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = run_log(tmp_path, workers=workers, every=10, total=30)
    for step in range(30):
        now[0] += 2.0
        take_step(log, step, waited=waited)
    log.close()
    assert [line["workers_needed"] for line in lines(tmp_path)] == [workers, needed, needed]  # the start is slow anyway
    printed = " ".join(capsys.readouterr().out.split())
    is_long = waited / 2 > 0.1
    assert printed.count(f"(data.workers {workers}: {needed}, on as many cores a rank, would keep up)") == is_long
    assert printed.count(f"data wait {waited / 2:.0%}") == 2 * is_long


def test_of_a_few_steps_no_workers_are_asked_for(tmp_path, monkeypatch, capsys):
    """As with logging.every_steps=1, where a single slow image could ask for any number."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = run_log(tmp_path, workers=3, every=9, total=27)
    for step in range(27):
        now[0] += 2.0
        take_step(log, step, waited=1.0)
    log.close()
    assert [line["workers_needed"] for line in lines(tmp_path)] == [3, 3, 3]
    assert [line["data_wait_share"] for line in lines(tmp_path)] == [pytest.approx(0.5)] * 3
    assert "warning: steps wait" not in capsys.readouterr().out


def test_console_says_where_we_are_and_the_mean_loss_since_the_line_before(tmp_path, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = run_log(tmp_path, every=4)
    for step in range(9):
        now[0] += 50.0 if step < 4 else 2.0  # the start is slow
        take_step(log, step)
    log.close()
    assert capsys.readouterr().out.splitlines() == [
        # Losses of steps 0 to 3, 4 to 7 and 8; no image was high-passed. 16 images a step.
        "epoch 2/3  step 4/9  loss 1.5000  low 4.000  lr 1.25e-01  0 img/s  eta 4m10s",
        "epoch 3/3  step 8/9  loss 5.5000  low 12.000  lr 6.25e-02  8 img/s  eta 2s",
        "epoch 3/3  step 9/9  loss 8.0000  low 17.000  lr 5.56e-02  8 img/s  eta 0s",
    ]
    assert [line["loss"] for line in lines(tmp_path)] == [3, 7, 8]  # of the very step


def test_the_mean_weighs_each_image_alike(tmp_path, capsys):
    log = run_log(tmp_path, every=2)
    one = torch.tensor(1.0)
    for step, (total, count) in enumerate([(6.0, 3.0), (8.0, 1.0)]):
        pair = torch.tensor(total), torch.tensor(count)
        take_step(log, step, {"loss": (one, one), "loss_high_pass": pair})
    log.close()
    assert "high 3.500" in capsys.readouterr().out  # 14 / 4, and not the mean of 2 and 8


def test_the_longest_line_of_a_recipe_fits(tmp_path, monkeypatch, capsys):
    """300 epochs of ImageNet, at the end."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = RunLog(
        tmp_path, World(0, 1, 1, torch.device("cpu")), every_steps=50, first_step=0, total_steps=187500,
        steps_per_epoch=625, batch_size=2048,
    )  # fmt: skip
    for step in (100_000, 187_450):
        for _ in range(50):
            now[0] += 0.7
            log.count(1.2e-5, metrics(0) | {"loss_high_pass": (torch.tensor(1.0), torch.tensor(2.0))}, HostWait(0.0))
        log.run(step)
    log.close()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("high 0.500 lr 1.20e-05 2926 img/s eta 17h")
    assert printed[1].startswith("epoch 300/300 ") and "step 187450/187500" in printed[1]
    assert len(printed) == 2 and max(map(len, printed)) <= 100


def test_other_ranks_write_nothing(tmp_path, capsys):
    log = run_log(tmp_path, rank=1)
    log.say("hello")
    log.evaluation(evaluation_rows(), 9)
    take(log, range(9))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_every_line_is_json(tmp_path, bad):
    """A float16 overflow is not fatal, and may fall on a log step."""
    log = run_log(tmp_path)
    take_step(log, 1, metrics(1) | {"grad_norm": (torch.tensor(bad), torch.tensor(1.0))})
    log.close()
    assert (lines(tmp_path)[0]["loss"], lines(tmp_path)[0]["grad_norm"]) == (1, None)


# Resuming.


def test_resuming_drops_later_and_cut_lines(tmp_path):
    take(run_log(tmp_path), range(8))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 9, "epo')  # the machine went down here
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 5
    log = run_log(tmp_path, first=4)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]
    take(log, range(4, 9))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(2, 1), (4, 3), (6, 5), (8, 7), (9, 8)]


@pytest.mark.parametrize("cut", [b"", b"{", b'{"step": 9, "epo', b"\x00\x00", b'"\xff\xc3', b"null", b"{}"])
def test_a_cut_line_is_dropped_even_where_nothing_is_later(tmp_path, cut):
    take(run_log(tmp_path), range(4))
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(cut)
    run_log(tmp_path, first=8).close()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]


def test_a_new_run_starts_a_new_log(tmp_path):
    take(run_log(tmp_path), range(8))
    run_log(tmp_path, first=0).close()
    assert lines(tmp_path) == []


# TensorBoard.


def test_tensorboard_holds_the_same_values(tmp_path):
    take(run_log(tmp_path), range(9))
    assert scalars(tmp_path) == {line["step"]: line["loss"] for line in lines(tmp_path)}
    assert scalars(tmp_path, "train/grad_norm") == {2: 0.125, 4: 0.375, 6: 0.625, 8: 0.875, 9: 1.0}
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert set(tags) == {
        f"train/{name}" for name in ("loss", "loss_low_pass", "grad_norm", "learning_rate", *(TIMES - {"time"}))
    }


def test_an_evaluation_is_a_line_for_each_weights_and_size(tmp_path, capsys):
    log = run_log(tmp_path)
    for step in range(6):
        take_step(log, step)
    log.evaluation(evaluation_rows(), step=6)
    take(log, range(6, 9))
    evaluations = [line for line in lines(tmp_path) if "split" in line]
    assert evaluations[2] == {
        "step": 6, "epoch": 1, "split": "val", "weights": "ema", "val_resize_size": 40, "images": 8, "top1": 50.0,
        "top5": 75.0, "loss": 1.5,
    }  # fmt: skip
    assert [(line["step"], "split" in line) for line in lines(tmp_path)] == [
        (2, False), (4, False), (6, False), *[(6, True)] * 4, (8, False), (9, False),
    ]  # fmt: skip
    assert "epoch 2/3  step 6/9  val ema at 33  top-1 50.000 %  top-5 75.000 %  loss 1.5000" in capsys.readouterr().out
    for weights in ("model", "ema"):
        for size in (40, 33):
            assert scalars(tmp_path, f"val/top1_{weights}_at_{size}") == {6: 50.0}
            assert scalars(tmp_path, f"val/loss_{weights}_at_{size}") == {6: 1.5}


def test_the_line_of_a_step_is_at_hand_after_an_evaluation_and_a_resume(tmp_path):
    log = run_log(tmp_path)
    for step in range(4):
        take_step(log, step)
    log.evaluation(evaluation_rows(), step=4)
    assert log.last_line["learning_rate"] == 0.125
    log.close()
    log = run_log(tmp_path, first=4)
    assert log.last_line["learning_rate"] == 0.125 and log.last_line["loss"] == 3
    log.close()


@pytest.mark.parametrize(("first", "steps_of_evaluations"), [(2, []), (3, [3]), (5, [3]), (6, [3, 6]), (8, [3, 6])])
def test_resuming_drops_later_evaluations(tmp_path, first, steps_of_evaluations):
    log = run_log(tmp_path)
    for step in range(8):
        take_step(log, step)
        if (step + 1) % 3 == 0:
            log.evaluation(evaluation_rows(), step + 1)
    log.close()
    run_log(tmp_path, first=first).close()
    assert [line["step"] for line in lines(tmp_path) if "split" in line] == [
        step for step in steps_of_evaluations for _ in range(4)
    ]


@pytest.mark.parametrize("rows_before", [0, 1, 4])
def test_an_evaluation_that_is_made_again_after_a_resume_is_there_once(tmp_path, rows_before):
    """An earlier start ended before it, within it, or just after it."""
    log = run_log(tmp_path)
    for step in range(3):
        take_step(log, step)
    log.evaluation(evaluation_rows()[:rows_before], step=3)
    log.close()
    log = run_log(tmp_path, first=3)
    log.evaluation(evaluation_rows(), step=3)
    take(log, range(3, 9))
    expected = [("model", 40), ("model", 33), ("ema", 40), ("ema", 33)]
    evaluations = [line for line in lines(tmp_path) if "split" in line]
    assert [(line["weights"], line["val_resize_size"]) for line in evaluations] == expected
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, 3, 3, 3, 4, 6, 8, 9]
    for weights, size in expected:
        assert scalars(tmp_path, f"val/top1_{weights}_at_{size}") == {3: 50.0}


@pytest.mark.parametrize("first", [3, 5])
def test_tensorboard_drops_later_values_on_resuming(tmp_path, first):
    take(run_log(tmp_path), range(8))
    take(run_log(tmp_path, first=first), range(first, 9))
    assert scalars(tmp_path) == {2: 1, 4: 3, 6: 5, 8: 7, 9: 8}
    assert scalars(tmp_path) == {line["step"]: line["loss"] for line in lines(tmp_path)}


def test_tensorboard_keeps_the_value_at_the_step_that_is_resumed(tmp_path):
    """A checkpoint after step 4, and a line of log.jsonl for step 4: both logs keep it."""
    take(run_log(tmp_path), range(8))
    take(run_log(tmp_path, first=4), range(4, 9))
    assert scalars(tmp_path) == {line["step"]: line["loss"] for line in lines(tmp_path)}


def test_lines_that_a_full_disk_refuses_are_written_later_and_in_order(tmp_path, monkeypatch, capsys):
    """/dev/full fails as a full disk does; the file that was there is kept whole."""
    log = run_log(tmp_path, every=1)
    take_step(log, 0)
    real, log.file.path = log.file.path, Path("/dev/full")
    monkeypatch.setattr(os, "truncate", lambda path, size: None)
    for step in (1, 2):
        take_step(log, step)
    assert capsys.readouterr().out.count("warning: /dev/full: cannot be written (No space left on device)") == 2
    with pytest.raises(OSError, match="last lines could not be written"):
        log.close()
    log.file.path = real
    take_step(log, 3)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_tensorboard_goes_on_after_a_full_disk(tmp_path, monkeypatch, capsys):
    log = run_log(tmp_path, every=1)
    take_step(log, 0)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log.board.writer, "add_scalar", refuse)
    take_step(log, 1)
    assert "warning: " in capsys.readouterr().out
    take_step(log, 2)
    log.close()
    assert set(scalars(tmp_path)) >= {3}
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_replaced_images_are_lines_of_their_own(tmp_path, capsys):
    log = run_log(tmp_path, every=1)
    log.replaced_images(1, [[], ["a.jpg: broken; replaced by b.jpg"]])
    take_step(log, 0)
    log.close()
    assert lines(tmp_path)[0] == {"step": 1, "replaced_images": 1, "replaced": ["a.jpg: broken; replaced by b.jpg"]}
    assert "step 1  a.jpg: broken; replaced by b.jpg" in capsys.readouterr().out
    run_log(tmp_path, every=1, first=0).close()
    assert lines(tmp_path) == []


def test_peak_memory_is_in_gigabytes():
    """Of this process, which has just had another half of one in use; the kernel's own figure is in KiB."""
    hog = torch.ones(500 * 10**6, dtype=torch.uint8)
    status = Path("/proc/self/status").read_text()
    expected = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    assert peak_memory(torch.device("cpu")) == pytest.approx(expected, rel=0.05)
    assert peak_memory(torch.device("cpu")) > 0.5
    del hog
