"""Checkpoints that were damaged after they were written, or that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.comparing import state_of, unequal
from tests.support.launch import PRETRAIN, in_one_line, pretrain, small_run
from utils.errors import UserError
from utils.run.checkpoint import Checkpoints
from utils.run.resume import find_resume


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(50).numpy().tobytes()) + 41] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit_of_a_weight, empty])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(damage, tmp_path, capsys):
    saver = Checkpoints(tmp_path / "checkpoints", 3, None, 15)
    first, second, third = (saver.save(step, {"model": {"w": torch.ones(50)}}) for step in (1, 2, 3))
    damage(third)
    assert find_resume(saver, "auto") == second
    assert f"warning: {third}: " in in_one_line(capsys.readouterr().out)
    damage(second)
    assert find_resume(saver, "auto") == first
    damage(first)
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        find_resume(saver, "auto")


def test_a_run_goes_on_before_its_damaged_checkpoint_and_ends_alike(images, tmp_path):
    command = small_run(PRETRAIN, images, tmp_path / "out", "checkpoint.every_steps=1", "schedule.epochs=2")
    assert pretrain(command) == 0
    folder = tmp_path / "out/checkpoints"
    undisturbed = state_of(folder / "last.pt")
    cut_short(folder / "step_00000004.pt")
    (folder / "step_00000009.pt.tmp").write_bytes(b"cut short by a kill")
    assert pretrain([*command, "--resume", "auto"]) == 0
    again = state_of(folder / "last.pt")
    assert again["step"] == 4 and unequal(again, undisturbed) == []
    assert (folder / "step_00000004.pt.abandoned").exists() and not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("content", [{}, {"config": None}, {"config": "x", "model": {}}])
def test_what_holds_no_training_state_is_refused(content, images, tmp_path):
    torch.save({"optimizer": {}, "step": 1} | content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: holds no training state to resume"):
        pretrain(small_run(PRETRAIN, images, tmp_path / "out", "--resume", str(tmp_path / "other.pt")))
