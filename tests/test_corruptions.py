"""Pretraining with each corruption: configs, pictures, the loss of a batch, and resuming in the middle of an epoch."""

from __future__ import annotations

import shutil

import pytest
import torch

from configs.schema import PretrainConfig
from models.mfm import MaskedFrequencyModelling, network_from_config
from scripts.figures import plot, reconstruct
from tests.support.comparing import assert_same_state, log_lines, mathematics
from tests.support.helpers import data_set
from tests.support.launch import PRETRAIN, overriding, pretrain, small_run
from utils.config import parse_command_line
from utils.errors import UserError

RIVAL = ["filter.order=filter_first", "loss.scope=all", "loss.target=rgb"]
CORRUPTIONS = {
    "super_resolution": ["corruption.name=super_resolution", *RIVAL],
    "blur": ["corruption.name=blur", *RIVAL],
    "noise": ["corruption.name=noise", *RIVAL],
    "drawn_radius": ["filter.radius=[2,5]"],
    "magnitude": ["filter.mask=magnitude", "filter.share=0.1"],
}
KINDS = {"super_resolution": ["downscaled"], "blur": ["blurred"], "noise": ["noisy"]}
TWO_SIDES = ["low_pass", "high_pass"]


def config_of(*words):
    return parse_command_line(PretrainConfig, overriding(PRETRAIN, *words), "")


def task_of(*words):
    return MaskedFrequencyModelling.from_config(config_of(*words), torch.device("cpu"))


def random_pixels(count):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_loss_of_a_batch_is_that_of_its_images_alone(name):
    """The corruption of an image depends on its own choice alone; noise is drawn for the batch, so it is fixed here."""
    task, network = task_of(*CORRUPTIONS[name]), network_from_config(config_of(*CORRUPTIONS[name])).eval()
    pixels = random_pixels(6)
    choices = torch.tensor([task.draw(0, index) for index in range(6)])
    if name == "noise":
        task.corruption.std = 0.0
    loss, metrics = task.loss(network, pixels, choices)
    alone = torch.stack([task.loss(network, pixels[[n]], choices[[n]])[0] for n in range(6)])
    torch.testing.assert_close(loss, alone.mean(), rtol=1e-5, atol=1e-6)
    assert loss.requires_grad
    if name in KINDS:
        assert metrics == {}
        return
    assert sum(count for _, count in metrics.values()) == 6
    for kind in TWO_SIDES:
        total, _ = metrics[f"loss_{kind}"]
        torch.testing.assert_close(total, alone[task.corruption.is_kind(kind, choices)].sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_pictures_show_each_kind_and_disturb_no_random_number(name):
    task, network = task_of(*CORRUPTIONS[name]), network_from_config(config_of(*CORRUPTIONS[name]))
    random = torch.get_rng_state()
    first, again = (task.show(network, random_pixels(2)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random)
    assert list(first) == KINDS.get(name, TWO_SIDES)
    for kind, reconstruction in first.items():
        assert ("combined" in reconstruction.pictures) == (name not in KINDS)
        assert torch.equal(reconstruction.pictures["filtered"], again[kind].pictures["filtered"])
        assert not torch.equal(reconstruction.pictures["filtered"], reconstruction.pictures["original"])
        assert reconstruction.radial_error["error"].isfinite().all()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["corruption.name=noise", "loss.scope=all"], "filter.order = normalize_first: must be filter_first"),
        (["corruption.name=blur", "filter.order=filter_first"], "loss.scope = removed: must be all"),
        (["corruption.blur_sizes=[7, 20]"], "corruption.blur_sizes = [7, 20]: must be odd"),
        (["corruption.blur_sizes=[9, 7]"], "must have the smaller number first"),
        (["corruption.name=blur", *RIVAL, "corruption.blur_sizes=[7, 65]"], "corruption.blur_sizes = [7, 65]"),
        (["corruption.name=super_resolution", *RIVAL, "corruption.downscale=33"], "corruption.downscale = 33"),
        (["filter.radius=[5, 2]"], "filter.radius = [5.0, 2.0]: must have the smaller number first"),
        (["filter.radius=[2, 3, 4]"], "must be a list of 2 numbers"),
        (["filter.radius=[2, 23]"], "leaves no high frequency"),
        (["filter.radius=[2, 9]", "filter.outer_radius=9"], "must be above filter.radius = 9"),
        (["filter.mask=magnitude", "filter.share=0"], "filter.share = 0"),
        (["filter.mask=magnitude", "filter.share=1"], "filter.share = 1"),
        (["filter.mask=magnitude", "filter.share=0.0004"], "empty side of the 1024 frequencies"),
        (["loss.outer_radius=3"], "loss.outer_radius = 3.0: leaves no frequency from filter.radius = 3.0 on to count"),
        (["loss.patch_factor=2"], "loss.patch_factor = 2: needs loss.scope = all"),
        (["loss.average_spectrum=true"], "loss.average_spectrum = true: needs loss.scope = all"),
        (["loss.patch_factor=3", "loss.scope=all"], "loss.patch_factor = 3: must divide data.train_crop_size = 32"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(words, named):
    with pytest.raises(UserError) as caught:
        config_of(*words)
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("images"), ("ant", "bee"), val=2)


@pytest.mark.process
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_trains_resumes_exactly_and_can_be_looked_at(name, images, tmp_path):
    more = [*CORRUPTIONS[name], "schedule.epochs=2", "checkpoint.every_steps=1", "checkpoint.keep=9"]
    more += ["logging.pictures_every_steps=2", "loss.focal_alpha=1"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert pretrain(small_run(PRETRAIN, images, whole, *more)) == 0
    (part / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints/step_00000002.pt", part / "checkpoints")
    assert pretrain(small_run(PRETRAIN, images, part, *more, "--resume", "auto")) == 0
    assert_same_state(whole / "checkpoints/last.pt", part / "checkpoints/last.pt")
    assert mathematics(part) == mathematics(whole)[2:]
    losses = [line["loss"] for line in log_lines(whole)]
    assert len(losses) > 2 and len(set(losses)) == len(losses)
    checkpoint, figure = str(whole / "checkpoints/last.pt"), tmp_path / "reconstruction.png"
    assert reconstruct.main([checkpoint, str(images / "val"), "--output", str(figure)]) == 0
    assert figure.stat().st_size > 10_000
    assert plot.main([str(whole), "--output", str(tmp_path / "figures")]) == 0
    assert (tmp_path / "figures/radial_error_whole.png").is_file()


@pytest.mark.process
def test_a_radius_is_refused_where_none_decides(images, tmp_path):
    assert pretrain(small_run(PRETRAIN, images, tmp_path / "noise", *CORRUPTIONS["noise"])) == 0
    checkpoint = str(tmp_path / "noise/checkpoints/last.pt")
    with pytest.raises(UserError, match="--radius: .*last.pt was not trained with a radius"):
        reconstruct.main([checkpoint, str(images / "val"), "--radius", "3"])
