"""pretrain.py and finetune.py as a person runs them: torchrun, checkpoints, resuming, stopping, and bad input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from data.sampling import BatchPlan
from losses.classification import ClassificationLoss
from losses.frequency import MaskedFrequencyLoss
from tests.support.comparing import assert_same_state, log_lines, mathematics
from tests.support.helpers import data_set
from tests.support.launch import (
    FINETUNE,
    PRETRAIN,
    endings,
    finetune,
    newest_result,
    overriding,
    pretrain,
    start,
    torchrun,
)
from utils.errors import UserError
from utils.run.checkpoint import Checkpoints, read_checkpoint

pytestmark = pytest.mark.process
BATCH = ["--batch-size", "8", "train.images_per_device=4"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A data set of 27 training images (3 steps of 8, a tail of 3) and 9 validation images in 3 classes."""
    return data_set(tmp_path_factory.mktemp("images"))


def run(main, words: list[str], images: Path, output: Path, *more: str) -> int:
    """The entry point in this process."""
    batch = [] if "--batch-size" in more else BATCH
    return main([*overriding([*words, *batch], *more), "--data-path", str(images), "--output-dir", str(output)])


def test_pretrain_finetune_and_evaluate_on_two_ranks(images, tmp_path):
    """The README's three commands under torchrun, small."""
    data = ["--data-path", str(images), *BATCH]
    code, printed = torchrun(2, "pretrain.py", *PRETRAIN, *data, "--epochs", "1", "--output-dir", str(tmp_path / "mfm"))
    assert code == 0, printed
    assert [line["step"] for line in log_lines(tmp_path / "mfm")] == [1, 2, 3]
    checkpoint = tmp_path / "mfm/checkpoints/last.pt"
    assert os.readlink(checkpoint) == "step_00000003.pt"

    words = ["--weights", str(checkpoint), "--output-dir", str(tmp_path / "bce")]
    code, printed = torchrun(2, "finetune.py", *FINETUNE, *data, "--epochs", "1", "--val-resize-size", "32", *words)
    assert code == 0, printed
    words = " ".join(printed.split())  # the report may take several lines
    assert "120 tensors matched, 2 (decoder.0.weight, decoder.0.bias) of the file left over, 2 (fc.weight" in words

    sizes = ["--eval-only", "--val-resize-size", "32", "36", "40"]
    words = ["--weights", str(tmp_path / "bce/checkpoints/last.pt"), "--output-dir", str(tmp_path / "bce")]
    code, printed = torchrun(2, "finetune.py", *FINETUNE, *sizes, "--data-path", str(images), *words)
    assert code == 0, printed
    assert [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")][1:] == [
        "32",
        "36",
        "40",
    ]
    trained = json.loads((tmp_path / "bce/result.json").read_text())["results"]
    evaluated = newest_result(tmp_path / "bce")["results"]
    assert [row["images"] for row in evaluated] == [9, 9, 9]
    assert evaluated[0] == trained[0]


@pytest.mark.parametrize("main, words", [(pretrain, PRETRAIN), (finetune, FINETUNE)])
def test_resuming_in_the_middle_of_an_epoch_is_exact(main, words, images, tmp_path):
    """Bit for bit: with accumulation, EMA, mixing and augmentation, and another number of workers after resuming."""
    more = ["--epochs", "2", "optimizer.ema_decay=0.9", "checkpoint.every_steps=1", "checkpoint.keep=9"]
    if main is finetune:
        more += ["data.mixup_alpha=0.1", "data.cutmix_alpha=1", "data.rand_augment_ops=2", "--val-resize-size", "32"]
    assert run(main, words, images, tmp_path / "whole", *more) == 0
    part = tmp_path / "part"
    (part / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "whole/checkpoints/step_00000002.pt", part / "checkpoints")
    lines = (tmp_path / "whole/log.jsonl").read_text().splitlines(keepends=True)
    (part / "log.jsonl").write_text("".join(lines[:4]) + '{"step": 5, "lo')  # a later line, and one cut short
    where = "auto" if main is finetune else str(tmp_path / "whole/checkpoints/step_00000002.pt")
    assert run(main, words, images, part, *more, "--resume", where, "data.workers=2") == 0
    assert_same_state(tmp_path / "whole/checkpoints/last.pt", part / "checkpoints/last.pt")
    assert mathematics(part) == mathematics(tmp_path / "whole")
    if main is finetune:
        results = [json.loads((tmp_path / name / "result.json").read_text())["results"] for name in ("whole", "part")]
        assert results[0] == results[1] and {row["weights"] for row in results[0]} == {"model", "ema"}


def test_one_failing_rank_ends_all_and_says_why(images, tmp_path):
    """A file that one rank meets and the other does not."""
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    (broken / "train/bee/4.png").write_bytes(b"\x89PNG\r\n\x1a\n, the rest is missing")
    words = [*PRETRAIN, *BATCH, "--data-path", str(broken), "--output-dir", str(tmp_path / "out"), "--epochs", "3"]
    code, printed = torchrun(2, "pretrain.py", *overriding(words, "data.workers=1"))
    assert code != 0
    assert printed.count("] error: ") == 1 and "stopped on request" not in printed, printed
    error = printed.partition("] error: ")[2]
    assert error.startswith(str(broken / "train/bee/4.png")) and "not a readable image" in " ".join(error.split())


def test_loss_that_is_not_finite_stops_and_leaves_weights_and_checkpoints_clean(images, tmp_path):
    more = ["checkpoint.every_steps=1", "checkpoint.keep=20", "--epochs", "4"]
    with pytest.raises(
        UserError, match=r"(?s)not finite in step \d+ \(its images: .*; lower optimizer\.learning_rate.*step_\d+\.pt"
    ):
        run(pretrain, PRETRAIN, images, tmp_path, *more, "optimizer.learning_rate=1e36")
    saved = sorted((tmp_path / "checkpoints").glob("step_*.pt"))
    assert saved and len(saved) < 12
    for tensor in read_checkpoint(saved[-1])["model"].values():
        assert tensor.isfinite().all()
    assert all(line["loss"] == line["loss"] for line in log_lines(tmp_path))
    report = json.loads((tmp_path / "not_finite.json").read_text())
    plan = BatchPlan.make(length=27, batch_size=8, images_per_device=4, epochs=4)
    assert report["images"] == plan.images_of(report["step"] - 1).tolist() and len(report["images"]) == 8
    assert (report["epoch"], report["checkpoint"]) == ((report["step"] - 1) // 3, str(saved[-1]))


def test_a_nan_between_two_log_lines_ends_the_run_too(images, tmp_path, monkeypatch):
    """Its step is masked, so that later ones are finite: the flag must stay."""
    real = MaskedFrequencyLoss.reduce
    calls = iter(range(1000))
    monkeypatch.setattr(MaskedFrequencyLoss, "reduce", lambda *a: real(*a) * (float("nan") if next(calls) == 4 else 1))
    with pytest.raises(UserError, match=r"not finite in step 3 \(its images: .*last good checkpoint: none yet"):
        run(pretrain, PRETRAIN, images, tmp_path, "--epochs", "3", "logging.every_steps=50")
    assert not (tmp_path / "checkpoints").exists()


def test_resuming_an_earlier_checkpoint_sets_the_later_ones_aside_and_other_classes_are_refused(images, tmp_path):
    more = ["--epochs", "1", "checkpoint.every_steps=1", "--val-resize-size", "32"]
    run(finetune, FINETUNE, images, tmp_path / "out", *more)
    whole = read_checkpoint(tmp_path / "out/checkpoints/last.pt")
    renamed = tmp_path / "images"
    shutil.copytree(images, renamed)
    for part in ("train", "val"):
        (renamed / part / "bee").rename(renamed / part / "wasp")
    earlier = str(tmp_path / "out/checkpoints/step_00000001.pt")
    with pytest.raises(UserError, match="other data: classes differ"):
        run(finetune, FINETUNE, renamed, tmp_path / "out", *more, "--resume", earlier)
    run(finetune, FINETUNE, images, tmp_path / "out", *more, "--resume", earlier)
    names = {path.name for path in (tmp_path / "out/checkpoints").iterdir()}
    assert {"step_00000002.pt.abandoned", "step_00000003.pt.abandoned", "step_00000003.pt"} <= names
    again = read_checkpoint(tmp_path / "out/checkpoints/last.pt")["model"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole["model"].items())


def missing_in_val(root):
    shutil.rmtree(root / "val/bee")


def empty_class(root):
    (root / "train/dog").mkdir()


def no_root(root):
    shutil.rmtree(root)


@pytest.mark.parametrize(
    "main, words, spoil, more, message",
    [
        (finetune, FINETUNE, missing_in_val, [], "val: its class folders are not those.*missing bee"),
        (finetune, FINETUNE, empty_class, [], "train/dog: this class has no image"),
        (pretrain, PRETRAIN, no_root, [], "train: no such image folder.*--data-path"),
        (
            pretrain,
            PRETRAIN,
            None,
            ["--batch-size", "7", *BATCH[2:]],
            "7: a rank's 7 images divide.*nearest that fit: 4 or 8",
        ),
        (pretrain, PRETRAIN, None, ["--batch-size", "32"], "32: more than the 27 training images"),
        (finetune, FINETUNE, None, ["--eval-only", "--weights", "nowhere.pt"], "nowhere.pt: no such checkpoint"),
        (finetune, FINETUNE, None, ["model.name=resnet51"], "model.name = resnet51: no such trunk; there are"),
        (pretrain, PRETRAIN, None, ["model.sync_batch_norm=true"], "sync_batch_norm.*GPUs only"),
        (pretrain, PRETRAIN, None, ["data.train_crop_size=40"], "40: must be a multiple .* stride 32: 32 or 64"),
    ],
)
def test_bad_input_is_refused_with_a_reason(main, words, spoil, more, message, images, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(images, root)
    if spoil:
        spoil(root)
    with pytest.raises(UserError, match=message):
        run(main, words, root, tmp_path / "out", *more)
    assert not (tmp_path / "out/checkpoints").exists()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_weights_that_run_code_or_do_not_fit_are_refused(images, tmp_path):
    trace = tmp_path / "executed"
    torch.save({"model": Payload(trace), "config": {}}, tmp_path / "zip.pt")
    (tmp_path / "legacy.pt").write_bytes(pickle.dumps({"model": Payload(trace)}))
    for name in ("zip.pt", "legacy.pt"):
        with pytest.raises(UserError, match=f"{name}: (refused|not a checkpoint)"):
            run(finetune, FINETUNE, images, tmp_path / "out", "--weights", str(tmp_path / name))
    assert not trace.exists()
    torch.save({"model": {"conv1.weight": torch.zeros(64, 3, 3, 3)}, "config": {}}, tmp_path / "shape.pt")
    with pytest.raises(UserError, match=r"shape.pt: no trunk tensor matches"):
        run(finetune, FINETUNE, images, tmp_path / "out", "--weights", str(tmp_path / "shape.pt"))


def test_a_stop_at_the_end_of_an_epoch_stops_before_the_evaluation_which_is_made_up_for(images, tmp_path, monkeypatch):
    more = ["--epochs", "2", "run.evaluate_every_epochs=1", "--val-resize-size", "32"]
    run(finetune, FINETUNE, images, tmp_path / "whole", *more)
    real, calls = ClassificationLoss.__call__, iter(range(1000))

    def signalled(*arguments):
        if next(calls) == 5:  # the second micro-batch of the third and last step of an epoch
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(*arguments)

    monkeypatch.setattr(ClassificationLoss, "__call__", signalled)
    assert run(finetune, FINETUNE, images, tmp_path / "part", *more) == 75
    assert read_checkpoint(tmp_path / "part/checkpoints/last.pt")["step"] == 3
    assert run(finetune, FINETUNE, images, tmp_path / "part", *more, "--resume", "auto") == 0
    results = [json.loads((tmp_path / name / "result.json").read_text())["results"] for name in ("whole", "part")]
    assert results[0] == results[1]


@pytest.mark.parametrize("main, words", [(pretrain, PRETRAIN), (finetune, FINETUNE)])
def test_a_finished_run_that_is_started_again_says_so_and_changes_nothing(main, words, images, tmp_path, capsys):
    more = ["--epochs", "1", *(["--val-resize-size", "32"] if main is finetune else [])]
    assert run(main, words, images, tmp_path, *more) == 0

    def contents():
        files = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != "run.lock")
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = contents()
    assert tmp_path / "result.json" in before and tmp_path / "config.yaml" in before
    capsys.readouterr()
    assert run(main, words, images, tmp_path, *more, "--resume", "auto", "logging.every_steps=7") == 0
    assert f"{tmp_path}: finished already" in capsys.readouterr().out
    assert contents() == before


def test_sgd_with_momentum_trains_and_resumes_exactly(images, tmp_path):
    more = ["--epochs", "2", "optimizer.name=sgd", "optimizer.learning_rate=0.01", "checkpoint.every_steps=1"]
    more += ["checkpoint.keep=9", "--val-resize-size", "32"]
    assert run(finetune, FINETUNE, images, tmp_path / "whole", *more) == 0
    part = tmp_path / "part"
    (part / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "whole/checkpoints/step_00000002.pt", part / "checkpoints")
    assert run(finetune, FINETUNE, images, part, *more, "--resume", "auto") == 0
    assert_same_state(tmp_path / "whole/checkpoints/last.pt", part / "checkpoints/last.pt")
    saved = read_checkpoint(part / "checkpoints/last.pt")
    assert {name for state in saved["optimizer"]["state"].values() for name in state} == {"momentum_buffer"}


def test_a_signal_outside_of_training_ends_at_once_with_the_code_to_requeue_on(images, tmp_path):
    program = (
        "import os, runpy, signal\nfrom utils.training import evaluation\n"
        "evaluation.evaluate = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "runpy.run_path('finetune.py', run_name='__main__')"
    )
    words = overriding([*FINETUNE, *BATCH], "--epochs", "1", "--data-path", str(images), "--val-resize-size", "32")
    command = [sys.executable, "-c", program, *words, "--output-dir", str(tmp_path)]
    [(code, printed)] = endings([start(command)])
    assert code == 75 and "stopped on request, outside of training steps" in printed, printed
    assert read_checkpoint(tmp_path / "checkpoints/last.pt")["step"] == 3


def test_a_save_at_the_end_of_an_epoch_may_fail_where_that_is_allowed(images, tmp_path, monkeypatch, capsys):
    real = Checkpoints.save

    def full(checkpoints, step, content):
        if step == 3:
            raise UserError("no room")
        return real(checkpoints, step, content)

    monkeypatch.setattr(Checkpoints, "save", full)
    more = ["--epochs", "2", "run.evaluate_every_epochs=1", "--val-resize-size", "32"]
    with pytest.raises(UserError, match="no room"):
        run(finetune, FINETUNE, images, tmp_path / "stop", *more)
    assert run(finetune, FINETUNE, images, tmp_path / "on", *more, "checkpoint.on_save_error=continue") == 0
    assert "warning: no room\nTraining goes on" in capsys.readouterr().out


def test_an_output_directory_in_use_is_refused_and_left_alone(images, tmp_path):
    more = ["--epochs", "1"]
    run(pretrain, PRETRAIN, images, tmp_path, *more)

    def contents():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "run.lock"}

    before = contents()
    with pytest.raises(UserError, match=r"holds checkpoints of an earlier run \(step_00000003.pt\).*--resume auto"):
        run(pretrain, PRETRAIN, images, tmp_path, *more)
    with pytest.raises(UserError, match="another config .*filter.radius: 3.0 -> 4.0"):
        run(pretrain, PRETRAIN, images, tmp_path, *more, "--resume", "auto", "filter.radius=4")
    assert contents() == before
