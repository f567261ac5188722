"""Weights from one model to another: every tensor is accounted for, and none goes astray silently."""

import pytest
import torch

from models.resnet import masked_frequency_model, resnet
from models.weights import load_weights, start_from, weights_of
from utils.distributed import World
from utils.errors import UserError
from utils.training import TrainingState

NAME = "resnet18"
MEAN, STD = (0.4, 0.4, 0.4), (0.2, 0.2, 0.2)


def changed(model, seed=0):
    """The model with all its weights and statistics drawn anew, so that no two tensors are alike."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        else:
            tensor.fill_(seed + 3)
    return model


@pytest.fixture(scope="module")
def pretrained():
    return changed(masked_frequency_model(NAME, 3), 1).state_dict()


@pytest.fixture(scope="module")
def trunk_names(pretrained):
    return [name for name in pretrained if not name.startswith("decoder.")]


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_pretraining_to_classifier(pretrained, trunk_names):
    model = changed(resnet(NAME, 5), 2)
    before = copied(model)
    report = load_weights(model, pretrained, "x.pt")
    assert report.matched == trunk_names
    assert report.left_over == ["decoder.0.weight", "decoder.0.bias"]
    assert report.at_initialisation == ["fc.weight", "fc.bias"]
    after = model.state_dict()
    assert all(torch.equal(after[name], pretrained[name]) for name in trunk_names)
    assert all(torch.equal(after[name], before[name]) for name in ("fc.weight", "fc.bias"))
    assert len(trunk_names) == 120
    assert str(report) == (
        "120 tensors matched, 2 (decoder.0.weight, decoder.0.bias) of the file left over, "
        "2 (fc.weight, fc.bias) of the model stay at initialisation"
    )


def test_same_model_takes_everything(pretrained):
    model = masked_frequency_model(NAME, 3)
    report = load_weights(model, pretrained, "x.pt")
    assert (report.left_over, report.at_initialisation) == ([], [])
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("made", [lambda: resnet(NAME, 9), lambda: masked_frequency_model(NAME, 1)])
def test_head_of_another_size_stays_at_initialisation(made, pretrained):
    """A classifier of other classes, a decoder of other channels."""
    model = changed(made(), 2)
    head = [name for name in model.state_dict() if name.startswith(("fc.", "decoder."))]
    weights = resnet(NAME, 5).state_dict() if head[0].startswith("fc.") else pretrained
    before = copied(model)
    report = load_weights(model, weights, "x.pt")
    assert report.left_over == report.at_initialisation == head
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in head)
    assert torch.equal(model.conv1.weight, weights["conv1.weight"])


def test_torchvisions_weights_start_pretraining():
    report = load_weights(masked_frequency_model(NAME, 1), resnet(NAME).state_dict(), "x.pt")
    assert (report.left_over, len(report.matched)) == (["fc.weight", "fc.bias"], 120)


def transposed(weights):
    return weights | {"layer2.0.conv1.weight": weights["layer2.0.conv1.weight"].transpose(0, 1)}


def without(weights, name):
    return {key: tensor for key, tensor in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: {f"backbone.{name}": tensor for name, tensor in w.items()}, "no trunk tensor .* backbone.conv1"),
        (lambda w: {"fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)}, "no trunk tensor matches"),
        (lambda w: {}, "holds nothing"),
        (lambda w: resnet("resnet50", 5).state_dict(), r"layer1\.0\.conv1\.weight has shape \(64, 64, 1, 1\)"),
        (lambda w: resnet("resnet34", 5).state_dict() | {"conv1.weight": torch.zeros(1)}, r"\(1,\).*\(64, 3, 7, 7\)"),
        (transposed, r"layer2\.0\.conv1\.weight has shape \(64, 128, 3, 3\), the model wants \(128, 64, 3, 3\)"),
        (lambda w: without(w, "bn1.running_var"), r"bn1\.running_var is missing.*\(1 such tensors\)"),
    ],
    ids=["prefixed", "head only", "empty", "resnet50", "wrong stem", "transposed", "missing"],
)
def test_a_trunk_that_does_not_fit_is_refused_and_loads_nothing(change, told, pretrained):
    model = changed(resnet(NAME, 5), 2)
    before = copied(model)
    with pytest.raises(UserError, match=told) as caught:
        load_weights(model, change(pretrained), "some/x.pt")
    assert str(caught.value).startswith("some/x.pt: ")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# What a checkpoint holds.


def averaged(model):
    """The `ema` entry of a checkpoint whose average has seen two steps."""
    optimizer = torch.optim.AdamW(model.parameters())
    state = TrainingState(model, optimizer, World(0, 1, 1, torch.device("cpu")), torch.float32, ema_decay=0.9)
    for seed in (5, 6):
        changed(model, seed)
        state.average.update_parameters(model)
    return state.state_dict()["ema"]


def test_model_weights_unless_the_average_is_asked_for():
    model = resnet(NAME, 5)
    saved = {"ema": averaged(model), "model": model.state_dict()}
    assert "n_averaged" in saved["ema"] and "module.conv1.weight" in saved["ema"]
    assert weights_of(saved, "x.pt") is saved["model"]
    average = weights_of(saved, "x.pt", use_ema=True)
    assert list(average) == list(saved["model"])
    assert torch.equal(average["conv1.weight"], saved["ema"]["module.conv1.weight"])
    assert not torch.equal(average["conv1.weight"], saved["model"]["conv1.weight"])
    loaded = resnet(NAME, 5)
    assert load_weights(loaded, average, "x.pt").at_initialisation == []
    assert torch.equal(loaded.fc.bias, average["fc.bias"])


@pytest.mark.parametrize("saved", [{"ema": None}, {}])
def test_an_average_that_is_not_there(saved):
    with pytest.raises(UserError, match=r"x\.pt: holds no averaged weights.*run\.use_ema=false.*ema_decay"):
        weights_of({"model": resnet(NAME, 5).state_dict()} | saved, "x.pt", use_ema=True)


@pytest.mark.parametrize(
    "saved", [{}, {"model": None}, {"model": 3}, {"model": {"conv1.weight": 1.0}}, {"state_dict": {}}]
)
def test_no_state_dict(saved):
    with pytest.raises(UserError, match=r"x\.pt: holds no state dict under `model`"):
        weights_of(saved, "x.pt")


def config(mean=MEAN, std=STD):
    return {"data": {"mean": list(mean), "std": list(std)}}


@pytest.mark.parametrize(
    ("saved", "mean", "std", "warned"),
    [
        ({"config": config()}, MEAN, STD, False),
        ({"config": config()}, list(MEAN), list(STD), False),
        ({"config": config()}, (0.485, 0.456, 0.406), STD, True),
        ({"config": config(std=(0.2, 0.2, 0.3))}, MEAN, STD, True),
        ({"config": config()}, None, None, False),
        ({}, MEAN, STD, False),
    ],
)
def test_starting_from_a_checkpoint_tells_of_another_normalisation(tmp_path, pretrained, saved, mean, std, warned):
    path = str(tmp_path / "step_00000001.pt")
    torch.save({"model": pretrained} | saved, path)
    model = resnet(NAME, 5)
    told = start_from(model, path, mean=mean, std=std)
    assert told.startswith(f"{path}: 120 tensors matched")
    assert ("warning" in told and "data.mean [0.4, 0.4, 0.4]" in told) == warned
    assert torch.equal(model.conv1.weight, pretrained["conv1.weight"])


def test_starting_from_the_average(tmp_path):
    model = resnet(NAME, 5)
    saved = {"ema": averaged(model), "model": model.state_dict()}
    torch.save(saved, tmp_path / "x.pt")
    started = resnet(NAME, 5)
    start_from(started, str(tmp_path / "x.pt"), use_ema=True)
    assert torch.equal(started.conv1.weight, saved["ema"]["module.conv1.weight"])
