"""What a run shows while it trains, that showing it changes nothing, and the frequency sweep against one by hand."""

from __future__ import annotations

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.util.tensor_util import make_ndarray

from configs.schema import FinetuneConfig, PretrainConfig
from data.augment import evaluation_crops
from data.decode import decode_image
from data.folder import ImageFolder
from data.samples import fixed_images
from models.frequency_filter import FrequencyFilter
from models.mfm import MaskedFrequencyModelling, network_from_config
from models.normalize import Normalizer, unit_float
from models.trunk import make_trunk
from tests.support.helpers import data_set, image_folder
from tests.support.launch import FINETUNE, PRETRAIN, finetune, in_one_line, newest_result, overriding, pretrain
from utils.config import parse_command_line
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint
from utils.training import hooks

COLUMNS = "original | filtered | prediction | combined"
BATCH = ["--batch-size", "8", "train.images_per_device=4", "--epochs", "1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("images"), ("ant", "bee", "<b>|cat"))


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    """Two pretraining runs alike but for the pictures: after each step, and none."""
    root = tmp_path_factory.mktemp("runs")
    for name, every in (("shown", "1"), ("blind", "null")):
        words = [*PRETRAIN, *BATCH, f"logging.pictures_every_steps={every}", "--data-path", str(images)]
        assert pretrain([*words, "--output-dir", str(root / name)]) == 0
    return root


@pytest.mark.process
def test_pictures_leave_the_training_as_it_is(pretrained):
    shown, blind = (read_checkpoint(pretrained / name / "checkpoints/last.pt") for name in ("shown", "blind"))
    for key, tensor in shown["model"].items():
        assert torch.equal(tensor, blind["model"][key]), key
    for number, moments in shown["optimizer"]["state"].items():
        assert all(torch.equal(t, blind["optimizer"]["state"][number][name]) for name, t in moments.items())


@pytest.mark.process
def test_pretraining_shows_pictures_of_each_kind_where_due(pretrained, images):
    found, kinds = events(pretrained / "shown"), ("low_pass", "high_pass")
    pictures = [f"pictures/{what}_{kind}: {COLUMNS}" for what in ("reconstruction", "log_magnitude") for kind in kinds]
    for tag in [*pictures, "pictures/radial_error", "pictures/radial_relative"]:
        assert [event.step for event in found.Images(tag)] == [1, 2, 3], tag
    assert not events(pretrained / "blind").Tags()["images"]
    # The numbers are those of the model that was saved at the end.
    saved = read_checkpoint(pretrained / "shown/checkpoints/last.pt")
    config = parse_command_line(PretrainConfig, overriding(PRETRAIN), "")
    network = network_from_config(config)
    network.load_state_dict(saved["model"])
    six = fixed_images(ImageFolder(str(images / "val")), 6, 32, config.data.interpolation)
    assert len(six) == 6
    reconstructions = MaskedFrequencyModelling.from_config(config, torch.device("cpu")).show(network, six)
    for kind in kinds:
        last = found.Tensors(f"radial_error/relative/{kind}")[-1]
        logged = torch.from_numpy(make_ndarray(last.tensor_proto))
        assert last.step == 3
        expected = reconstructions[kind].radial_error["relative"]
        torch.testing.assert_close(logged, expected, rtol=1e-2, atol=1e-3, check_dtype=False)


@pytest.mark.process
def test_a_picture_that_fails_is_told_and_changes_nothing(pretrained, images, monkeypatch, capsys):
    def fail(_):
        raise RuntimeError("CUDA out of memory\nmore")

    monkeypatch.setattr(hooks, "sheet", fail)
    words = [*PRETRAIN, *BATCH, "logging.pictures_every_steps=1", "--data-path", str(images)]
    assert pretrain([*words, "--output-dir", str(pretrained / "failing")]) == 0
    assert "warning: step 2: no pictures (RuntimeError: CUDA out of memory)" in capsys.readouterr().out
    failing, blind = (read_checkpoint(pretrained / name / "checkpoints/last.pt") for name in ("failing", "blind"))
    assert all(torch.equal(tensor, blind["model"][key]) for key, tensor in failing["model"].items())


@pytest.mark.process
def test_pictures_are_of_train_where_val_cannot_be_used(images, tmp_path, capsys):
    """Pretraining needs no val; a broken one is said, and does not end it."""
    data = tmp_path / "data"
    (data / "val/empty_class").mkdir(parents=True)
    (data / "train").symlink_to(images / "train")
    words = [*PRETRAIN, *BATCH, "logging.pictures_every_steps=1", "--data-path", str(data)]
    assert pretrain([*words, "--output-dir", str(tmp_path / "run")]) == 0
    printed = in_one_line(capsys.readouterr().out)
    assert "warning: " in printed and "shows images of train instead" in printed
    assert f"pictures/reconstruction_low_pass: {COLUMNS}" in events(tmp_path / "run").Tags()["images"]


def test_fixed_images_are_of_what_can_be_read(tmp_path):
    folder = ImageFolder(str(image_folder(tmp_path / "some", per_class=3)))
    (tmp_path / "some/ant/0.png").write_bytes(b"no image")
    assert fixed_images(folder, 4, 32, "bicubic").shape == (3, 3, 32, 32)
    assert fixed_images(folder, 99, 32, "bicubic").shape == (5, 3, 32, 32)


@pytest.fixture(scope="module")
def finetuned(images, pretrained):
    words = overriding(FINETUNE, "data.val_resize_size=[40,48]", "run.evaluate_every_epochs=1")
    words += [*BATCH[:3], "--epochs", "2", "--weights", str(pretrained / "shown/checkpoints/last.pt")]
    assert finetune([*words, "--data-path", str(images), "--output-dir", str(pretrained / "classes")]) == 0
    return pretrained / "classes"


@pytest.mark.process
def test_finetuning_shows_confusions_and_names_the_surest_mistakes(finetuned):
    found = events(finetuned)
    assert [event.step for event in found.Scalars("val/top1_model_at_40")] == [3, 6]  # one each epoch
    assert [event.step for event in found.Images("val/confusion_matrix")] == [3, 6]
    result = json.loads((finetuned / "result.json").read_text())["results"][0]
    assert found.Scalars("final/top1")[0].value == pytest.approx(result["top1"])
    content = found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams  # in the run's own folder
    assert hparams["train.batch_size"].number_value == 8 and hparams["run.weights"].string_value.endswith("last.pt")
    assert {path.name for path in finetuned.iterdir() if path.is_dir()} == {"checkpoints"}
    (*_, last) = found.Tensors("val/surest_mistakes/text_summary")
    text = make_ndarray(last.tensor_proto).item().decode()
    assert len(text.splitlines()) == 2 + min(8, 9 - result["top1_count"])
    assert "<b>" not in text and "&#60;b&#62;&#124;cat" in text  # the class's name, as text
    assert all(line.count("|") == 6 for line in text.splitlines())


@pytest.mark.process
def test_frequency_sweep_is_the_evaluation_of_filtered_pixels(finetuned, images):
    words = overriding(FINETUNE, "data.val_resize_size=[40]", "run.sweep_radii=[3,5.5,40]")
    words += ["--eval-only", "--frequency-sweep", "--weights", str(finetuned / "checkpoints/last.pt")]
    assert finetune([*words, "--data-path", str(images), "--output-dir", str(finetuned)]) == 0
    rows = newest_result(finetuned, "frequency_sweep")["results"]
    assert [(row["kind"], row["radius"]) for row in rows] == [
        ("all", None), ("low_pass", 3), ("low_pass", 5.5), ("high_pass", 3), ("high_pass", 5.5),
    ]  # fmt: skip
    saved = read_checkpoint(finetuned / "checkpoints/last.pt")
    model = make_trunk("resnet18", 3).classifier
    model.load_state_dict(saved["model"])
    model.eval()
    folder, data = ImageFolder(str(images / "val"), saved["classes"]), saved["config"]["data"]
    normalize = Normalizer(data["mean"], data["std"])
    for row in rows:
        right, loss = 0, 0.0
        for index, label in enumerate(folder.labels.tolist()):
            crop = evaluation_crops(decode_image(folder.path(index)), (40,), 32, data["interpolation"])
            pixels = unit_float(crop)
            if row["radius"]:
                pixels = FrequencyFilter(row["radius"])(pixels, torch.tensor([row["kind"] == "low_pass"]))
                pixels = pixels + (normalize.mean if row["kind"] == "high_pass" else 0)
            with torch.no_grad():
                logits = model(normalize(pixels))[0]
            right += int(logits.argmax()) == label
            loss += torch.nn.functional.cross_entropy(logits, torch.tensor(label)).item() / len(folder)
        assert row["images"] == len(folder) and row["top1_count"] == right
        assert row["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.process
def test_a_sweep_needs_one_size_and_a_checkpoint(finetuned, images):
    with pytest.raises(UserError, match="frequency_sweep = true: needs run.eval_only .--eval-only."):
        parse_command_line(FinetuneConfig, ["--frequency-sweep"], "")
    words = ["--eval-only", "--frequency-sweep", "--val-resize-size", "40", "44", "--data-path", str(images)]
    with pytest.raises(UserError, match=r"val_resize_size = \[40, 44\] \(the command line's\): .* takes one size"):
        finetune([*FINETUNE, *words, "--weights", str(finetuned / "checkpoints/last.pt")])
