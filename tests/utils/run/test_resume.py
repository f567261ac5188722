"""Resuming: what is continued, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import FinetuneConfig, PretrainConfig
from data.sampling import BatchPlan
from utils.config import keys_affecting, parse_command_line, to_dict
from utils.errors import UserError
from utils.run.checkpoint import Checkpoints
from utils.run.resume import LEFT_OPEN, Start, find_resume, position_after, read_resume, starting_point


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "run/checkpoints", 3, None, 15)


def config(*words, config_class=PretrainConfig):
    return parse_command_line(config_class, list(words), "a test")


# Finding what to resume.


@pytest.mark.parametrize("resume", [None, "auto"])
def test_an_empty_folder_starts_anew(checkpoints, resume):
    assert find_resume(checkpoints, resume) is None


def test_a_folder_in_use_is_refused_unless_told_to_resume(checkpoints):
    checkpoints.save(5, {})
    newest = checkpoints.save(10, {})
    with pytest.raises(UserError, match=r"step_00000010\.pt.*--resume auto.*--output-dir") as caught:
        find_resume(checkpoints, None)
    assert str(checkpoints.folder.parent) in str(caught.value)
    assert find_resume(checkpoints, "auto") == newest


def test_a_path_is_taken_as_it_is(checkpoints):
    checkpoints.save(5, {})
    assert find_resume(checkpoints, "other/step_00000003.pt") == Path("other/step_00000003.pt")


# Resuming.


def saved_by(checkpoints, *words, **content):
    return checkpoints.save(5, {"model": {}, "optimizer": {}, "config": to_dict(config(*words))} | content)


def test_the_same_config_resumes(checkpoints):
    path = saved_by(checkpoints, "--epochs", "50")
    assert read_resume(path, config("--epochs", "50"), {})["step"] == 5


def test_another_config_is_refused_with_every_key_that_differs(checkpoints):
    path = saved_by(checkpoints, "optimizer.learning_rate=1e-3")
    words = ["optimizer.learning_rate=2e-3", "data.crop_ratio=[0.3, 1.0]", "data.workers=3", "logging.every_steps=7"]
    with pytest.raises(UserError) as caught:
        read_resume(path, config(*words), {})
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "(data.crop_ratio: [0.2, 1.0] -> [0.3, 1.0]; optimizer.learning_rate: 0.001 -> 0.002)" in message
    assert "--allow-config-change" in message
    assert read_resume(path, config(*words, "--allow-config-change"), {})["step"] == 5


@pytest.mark.parametrize(
    "word",
    [
        "run.output_dir=elsewhere", "data.data_path=/data", "data.workers=3", "checkpoint.every_steps=9",
        "checkpoint.keep=1", "logging.every_steps=7", "run.timeout_minutes=1", "run.resume=auto",
    ],
)  # fmt: skip
def test_keys_that_leave_the_mathematics_alone_may_change(checkpoints, word):
    path = saved_by(checkpoints)
    assert read_resume(path, config(word), {})["step"] == 5


def changes_the_result():
    """Every other knob, with a value other than its default."""
    values = {str: "x", bool: True, int: 64, float: 0.123, list: [0.11, 0.22, 0.33]}
    for section, keys in to_dict(config()).items():
        for key, value in keys.items():
            knob = f"{section}.{key}"
            if knob in keys_affecting(PretrainConfig, "weights") and knob != LEFT_OPEN:
                kind = int if value is None else type(value)
                yield section, key, not value if kind is bool else values[kind]


@pytest.mark.parametrize(("section", "key", "value"), changes_the_result())
def test_every_other_key_may_not(checkpoints, section, key, value):
    now = config()
    now = replace(now, **{section: replace(getattr(now, section), **{key: value})})
    with pytest.raises(UserError, match=rf"{section}\.{key}: .* -> "):
        read_resume(saved_by(checkpoints), now, {})


@pytest.mark.parametrize(
    ("before", "now", "goes_on"),
    [("true", "null", True), ("null", "true", True), ("null", "false", True), ("true", "false", False)],
)
def test_a_layout_that_is_left_open_fits_every_other(checkpoints, before, now, goes_on):
    """true was the default before null was; an explicit change is one of the recipe."""
    path = saved_by(checkpoints, f"model.channels_last={before}")
    if goes_on:
        assert read_resume(path, config(f"model.channels_last={now}"), {})["step"] == 5
        return
    with pytest.raises(UserError, match="model.channels_last: True -> False"):
        read_resume(path, config(f"model.channels_last={now}"), {})


def test_what_computes_the_result_is_among_them():
    knobs = {f"{section}.{key}" for section, key, _ in changes_the_result()}
    assert {"run.seed", "data.crop_ratio", "filter.radius", "train.batch_size", "schedule.epochs"} <= knobs


def test_a_knob_newer_than_the_checkpoint_had_its_default(checkpoints):
    saved = to_dict(config())
    del saved["loss"]["scope"]
    path = checkpoints.save(5, {"model": {}, "optimizer": {}, "config": saved})
    assert read_resume(path, config(), {})["step"] == 5
    with pytest.raises(UserError, match=r"loss\.scope: removed -> all"):
        read_resume(path, config("loss.scope=all"), {})


def test_another_data_set_is_refused(checkpoints):
    path = saved_by(checkpoints, classes=["ant", "bee"])
    assert read_resume(path, config(), {"classes": ["ant", "bee"], "config": "any"})["step"] == 5
    for classes in (["bee", "ant"], ["ant"]):
        with pytest.raises(UserError, match="was trained on other data: classes differ"):
            read_resume(path, config("--allow-config-change"), {"classes": classes})


def test_another_optimizer_cannot_take_over_the_moments(checkpoints):
    path = saved_by(checkpoints)
    message = "was trained with optimizer.name = adamw, whose moments sgd cannot take over; .*--weights"
    with pytest.raises(UserError, match=message):
        read_resume(path, config("optimizer.name=sgd", "--allow-config-change"), {})


@pytest.mark.parametrize("content", [{"model": {}}, {"model": {}, "config": {}}])
def test_weights_alone_cannot_be_resumed(checkpoints, content):
    path = checkpoints.save(5, content)
    with pytest.raises(UserError, match="no training state to resume; .*--weights"):
        read_resume(path, config("--allow-config-change"), {})


def test_a_pretraining_is_not_continued_as_a_finetuning(checkpoints):
    path = saved_by(checkpoints)
    finetuning = config("--allow-config-change", config_class=FinetuneConfig)
    with pytest.raises(UserError, match="is of a pretraining, which this is not; .*--weights"):
        read_resume(path, finetuning, {})


# Which images.

IMAGES = {"images": 40, "classes": ["ant", "bee"], "fingerprint": "f", "sampled_files": list("abcdefgh")}


@pytest.mark.parametrize("part", ["train", "val", "held_out"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"images": 41, "fingerprint": "g"}, "number of images"),
        ({"classes": ["ant", "wasp"], "fingerprint": "g"}, "classes"),
        ({"fingerprint": "g"}, "names of images"),
        ({"sampled_files": list("abcxxxxx")}, "contents of images"),
    ],
)
def test_other_images_are_refused_whatever_part_they_are_of(checkpoints, part, change, what):
    path = saved_by(checkpoints, data={"train": IMAGES, part: IMAGES})
    now = {"train": IMAGES, part: IMAGES | change}
    with pytest.raises(UserError, match=f"other data: {what} in {part} differ"):
        read_resume(path, config("--allow-config-change"), {"data": now})


def test_a_few_mended_files_and_unknown_parts_are_accepted(checkpoints):
    path = saved_by(checkpoints, data={"train": IMAGES})
    mended = IMAGES | {"sampled_files": list("abcdxxxx")}
    assert read_resume(path, config(), {"data": {"train": mended, "val": IMAGES}})["step"] == 5


def test_a_changed_share_of_held_out_images_is_named_as_the_cause(checkpoints):
    path = saved_by(checkpoints, data={"train": IMAGES})
    words = ["data.holdout_fraction=0.1", "--allow-config-change"]
    with pytest.raises(UserError, match=r"number of images in train, data\.holdout_fraction: 0\.0 -> 0\.1 differ"):
        read_resume(path, config(*words), {"data": {"train": IMAGES | {"images": 36}}})


# Where.


def plan(batch_size, length=27, epochs=4):
    return BatchPlan.make(length, batch_size, None, epochs=epochs)


def saved_at(step, batch_size, **more):
    return {"step": step, "config": {"train": {"batch_size": batch_size}}} | more


@pytest.mark.parametrize(
    ("step", "batch_size", "new_size", "expected"),
    [
        (9, 8, 8, 9),
        (7, 8, 8, 7),
        (9, 8, 4, 18),
        (9, 8, 13, 6),
        (9, 8, 27, 3),
        (7, 8, 4, 14),
        (8, 8, 16, 3),
        (0, 8, 5, 0),
    ],
)
def test_a_checkpoint_lies_at_the_same_image_for_every_batch_size_with_or_without_a_position(
    step, batch_size, new_size, expected
):
    """27 images, so that each batch size leaves another tail out."""
    position = position_after(step, 27 // batch_size, batch_size)
    for more in ({"position": position}, {"images": 27}, {}):
        start = starting_point(Path("a.pt"), saved_at(step, batch_size, **more), plan(new_size))
        assert start == Start(expected, step, batch_size) and start.counts_anew == (expected != step)


def test_the_position_says_more_than_the_step():
    """Had the batch size changed before, the step alone would mislead nobody: the position is what counts."""
    saved = saved_at(9, 8, images=27, position={"epoch": 1, "images": 8})
    assert starting_point(Path("a.pt"), saved, plan(8)).step == 4


@pytest.mark.parametrize(("batch_size", "end"), [(8, 6), (4, 12), (27, 2)])
def test_after_the_end_there_is_nothing_to_do(batch_size, end):
    message = rf"a\.pt: the checkpoint is after step 9.*, the new schedule ends at step {end}: nothing is left to do"
    with pytest.raises(UserError, match=message):
        starting_point(Path("a.pt"), saved_at(9, 8), plan(batch_size, epochs=2))
    starting_point(Path("a.pt"), saved_at(6, 8), plan(batch_size, epochs=2))  # at the very end


def test_within_a_batch_there_is_no_start():
    with pytest.raises(UserError, match=r"a\.pt: train\.batch_size = 5: the run is 8 images into epoch 2"):
        starting_point(Path("a.pt"), saved_at(7, 8), plan(5))
