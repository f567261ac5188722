"""Weights of other projects: every layout loads in full, and the report counts every tensor."""

from __future__ import annotations

import argparse
import collections
import copy
import sys
import types
from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from models.mfm import masked_frequency_network
from models.trunk import make_trunk
from models.weights import AUTHORS, COINCHEUNG, normalisation_warning, shapes_of
from tests.support.weights import Counts, as_timm, as_torchvision, classifier, counts, lively, load
from utils.errors import UserError

pytestmark = pytest.mark.process

TRUNK = 120  # tensors of a resnet18 but its fc


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def yacs(monkeypatch):
    """Makes what pickles as a yacs.config.CfgNode does."""
    node_class = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", types.ModuleType("yacs.config"))
    sys.modules["yacs.config"].CfgNode = node_class

    def node(**content):
        made = node_class(content)
        made.__dict__.update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={}, __new_allowed__=False)
        return made

    return node


def without_head(state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def as_coincheung(state: dict, node) -> dict:
    args = argparse.Namespace(lr=1.2e-3, epochs=300, output_dir="./res", betas=(0.9, 0.95), use_dali=True)
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    decoder = {"decoder.0.weight": torch.randn(1024, 512, 1, 1), "decoder.0.bias": torch.randn(1024)}
    model = without_head(state) | decoder
    return {"model": model, "optimizer": optimizer, "lr_scheduler": {}, "epoch": 299, "args": args}


def as_authors(state: dict, node) -> dict:
    decoder = {"decoder.0.weight": torch.randn(3072, 512, 1, 1), "decoder.0.bias": torch.randn(3072)}
    trunk = {f"encoder.{name}": tensor for name, tensor in without_head(state).items()}
    config = node(MODEL=node(TYPE="resnet", NAME="x"), BASE=[""], DATA=node(BATCH_SIZE=256, FILTER_TYPE="mfm"))
    return {"model": collections.OrderedDict(trunk | decoder), "epoch": 299, "max_accuracy": 0.0, "config": config}


def prefixed(*prefixes: str):
    return lambda state, node: {"".join(prefixes) + name: tensor for name, tensor in state.items()}


LAYOUTS = {
    "plain": lambda state, node: state,
    "under model": lambda state, node: {"model": state, "epoch": 3},
    "under state_dict": lambda state, node: {"state_dict": state, "arch": "resnet18"},
    "CoinCheung/MFM": as_coincheung,
    "authors' code": as_authors,
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "backbone.": prefixed("backbone."),
    "encoder.": prefixed("encoder."),
    "module._orig_mod.encoder.": prefixed("module.", "_orig_mod.", "encoder."),
    "_orig_mod.module.backbone.": prefixed("_orig_mod.", "module.", "backbone."),
}
NAMES = {"CoinCheung/MFM": COINCHEUNG, "authors' code": AUTHORS}


@dataclass(frozen=True)
class Source:
    """A resnet18 of a library."""

    state: dict
    features: torch.Tensor  # of IMAGES


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    """A resnet18 of each library, with unlike weights."""
    torch.manual_seed(0)
    torchvisions, timms = lively(torchvision.models.resnet18()), lively(timm.create_model("resnet18"))
    with torch.inference_mode():
        features = nn.Sequential(*list(torchvisions.children())[:-2])(IMAGES)
        sources = {
            "torchvision": Source(torchvisions.state_dict(), features),
            "timm": Source(timms.state_dict(), timms.forward_features(IMAGES)),
        }
    assert not torch.allclose(features, sources["timm"].features)
    return sources


@pytest.fixture(scope="module")
def empty_network():
    return masked_frequency_network(make_trunk("resnet18"), 3).eval()


CASES = [(layout, "torchvision", False) for layout in LAYOUTS]
CASES += [(layout, "timm", False) for layout in ("plain", "authors' code", "encoder.")]  # whose code is built on timm
CASES += [(layout, "torchvision", True) for layout in ("plain", "CoinCheung/MFM", "authors' code")]


@pytest.mark.parametrize("layout, library, legacy", CASES)
def test_every_layout_gives_the_whole_trunk_and_its_features(
    layout, library, legacy, sources, empty_network, tmp_path, yacs, monkeypatch
):
    source = sources[library]
    torch.save(LAYOUTS[layout](source.state, yacs), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "yacs.config")  # a reader has no yacs
    network = copy.deepcopy(empty_network)
    initial_decoder = network.decoder[0].weight.clone()
    report = load(network, tmp_path / "w.pth").report
    has_decoder = layout == "authors' code"  # CoinCheung's, of grey images, has another shape
    assert counts(report).matched == TRUNK + 2 * has_decoder and counts(report).new == 2 - 2 * has_decoder
    assert NAMES.get(layout, "a state dict") in report
    if layout.endswith("."):
        assert layout in report
    assert torch.equal(network.decoder[0].weight, initial_decoder) != has_decoder
    with torch.inference_mode():
        torch.testing.assert_close(network[:-1](IMAGES), source.features, atol=1e-6, rtol=0)


def test_a_report_names_the_layout_and_what_became_of_every_tensor(sources, empty_network, tmp_path, yacs):
    """The one test of its whole sentence."""
    torch.save(as_coincheung(sources["torchvision"].state, yacs), tmp_path / "w.pth")
    assert load(copy.deepcopy(empty_network), tmp_path / "w.pth").report == (
        f"{tmp_path}/w.pth: layout: a checkpoint of CoinCheung/MFM; 120 tensors matched, "
        "2 (decoder.0.weight, decoder.0.bias) of the file left over, "
        "2 (decoder.0.weight, decoder.0.bias) of the model stay at initialisation; "
        "decoder.0.weight is new: (3072, 512, 1, 1) here, (1024, 512, 1, 1) in the file; "
        "decoder.0.bias is new: (3072,) here, (1024,) in the file"
    )


def test_resnet50_of_timm_and_of_torchvision_have_the_same_names_and_load_whole(tmp_path):
    ours = classifier("resnet50", 10)
    timms = lively(timm.create_model("resnet50", num_classes=10))
    shapes = [shapes_of(model.state_dict()) for model in (ours, timms)]
    assert shapes[0] == shapes[1]
    save_file(timms.state_dict(), tmp_path / "timm.safetensors")
    report = load(ours, tmp_path / "timm.safetensors", "resnet50").report
    assert counts(report) == Counts(matched=320, left_over=0, new=0)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(IMAGES), timms(IMAGES), atol=1e-5, rtol=1e-5)


def test_another_number_of_classes_keeps_the_trunk_and_leaves_the_head_new(sources, tmp_path):
    state = sources["torchvision"].state
    torch.save(state, tmp_path / "w.pth")
    network = classifier("resnet18", 7)
    head = network.fc.weight.clone()
    report = load(network, tmp_path / "w.pth").report
    assert counts(report) == Counts(matched=TRUNK, left_over=2, new=2) and "fc.weight is new: (7, 512) here" in report
    assert torch.equal(network.fc.weight, head)
    assert torch.equal(network.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_files_without_counts_of_batches_load(sources, tmp_path):
    """As torchvision's and timm's oldest files are."""
    whole = sources["torchvision"].state
    state = {name: tensor for name, tensor in whole.items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    report = load(classifier("resnet18"), tmp_path / "old.pth").report
    assert counts(report) == Counts(matched=102, left_over=0, new=20)


# Checkpoints of this project.


@pytest.mark.parametrize("use_ema", [False, True])
def test_own_checkpoints_give_model_or_average_and_their_config(use_ema, tmp_path):
    model, averaged = classifier("resnet18", 7), classifier("resnet18", 7)
    average = torch.optim.swa_utils.AveragedModel(averaged)
    config = {"run": {}, "train": {}, "model": {"name": "resnet18"}, "data": {"mean": [0.4] * 3, "std": [0.2] * 3}}
    torch.save({"model": model.state_dict(), "ema": average.state_dict(), "config": config}, tmp_path / "own.pt")
    network = classifier("resnet18", 7)
    loaded = load(network, tmp_path / "own.pt", use_ema=use_ema)
    assert counts(loaded.report) == Counts(matched=122, left_over=0, new=0) and loaded.config == config
    assert (loaded.mean, loaded.std) == ([0.4] * 3, [0.2] * 3)
    assert torch.equal(network.conv1.weight, averaged.conv1.weight if use_ema else model.conv1.weight)


def own_content(classes: object) -> dict:
    torch.manual_seed(5)
    config = {"run": {}, "train": {}, "model": {"name": "resnet18"}, "data": {"mean": [0.4] * 3, "std": [0.2] * 3}}
    return {"model": classifier("resnet18", 3).state_dict(), "config": config, "classes": classes}


@pytest.mark.parametrize(
    ("classes", "is_new"),
    [
        (["ant", "bee", "cat"], False), (["x", "y", "z"], True), (["ant", "bee", "dog"], True),
        (["bee", "ant", "cat"], True), (None, False),
    ],
)  # fmt: skip
def test_the_head_starts_anew_where_the_file_names_other_classes(classes, is_new, tmp_path):
    """A head of three classes fits by its shape, whatever the three are."""
    content = own_content(classes)
    torch.save(content, tmp_path / "own.pt")
    torch.manual_seed(0)
    network = classifier("resnet18", 3)
    initial = network.fc.weight.clone()
    report = load(network, tmp_path / "own.pt", classes=["ant", "bee", "cat"]).report
    assert counts(report) == (Counts(120, 2, 2) if is_new else Counts(122, 0, 0))
    assert torch.equal(network.fc.weight, initial if is_new else content["model"]["fc.weight"])
    assert torch.equal(network.layer4[1].conv2.weight, content["model"]["layer4.1.conv2.weight"])
    assert ("the head starts anew: the file's was trained for 3 classes: " in report) == is_new
    if is_new:
        assert ", ".join(classes) in report


@pytest.mark.parametrize("classes", ["abc", [1, 2, 3], [], ["ant", "ant", "bee"], {"ant": 1}])
def test_classes_that_are_no_list_of_names_are_refused(classes, tmp_path):
    torch.save(own_content(classes), tmp_path / "own.pt")
    with pytest.raises(UserError, match=r"own\.pt: `classes` "):
        load(classifier("resnet18", 3), tmp_path / "own.pt")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("mean", "x", r"data\.mean = x: must be"),
        ("mean", [0.4], r"data\.mean = \[0\.4\]: must be a list of 3"),
        ("std", [0.2, 0.2, 0.0], r"data\.std = .*: must be > 0"),
        ("st\nd", 1, r"data\.st\\nd = 1: unknown key"),
    ],
)
def test_the_config_of_a_checkpoint_is_checked_as_a_yaml_is(key, value, reason, tmp_path):
    content = own_content(["ant", "bee", "cat"])
    content["config"]["data"][key] = value
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(UserError, match=rf"own\.pt: {reason}"):
        load(classifier("resnet18", 3), tmp_path / "own.pt")


def test_a_config_without_a_normalisation_tells_none(tmp_path):
    content = own_content(None)
    del content["config"]["data"]["mean"]
    torch.save(content, tmp_path / "own.pt")
    loaded = load(classifier("resnet18", 3), tmp_path / "own.pt")
    assert loaded.mean is None and normalisation_warning(loaded, (0.1,) * 3, (0.2,) * 3) is None


def test_a_file_without_average_cannot_give_it(tmp_path):
    torch.save(classifier("resnet18", 7).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(UserError, match=r"plain.pt: holds no averaged weights; take run.use_ema=false"):
        load(classifier("resnet18", 7), tmp_path / "plain.pt", use_ema=True)


# Normalisations.


@pytest.mark.parametrize(
    ("make", "mean", "std"),
    [(as_coincheung, [0.4] * 3, [0.2] * 3), (as_authors, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])],
)
def test_a_run_is_warned_of_another_normalisation_than_that_of_its_weights(make, mean, std, sources, tmp_path, yacs):
    torch.save(make(sources["torchvision"].state, yacs), tmp_path / "w.pth")
    loaded = load(classifier("resnet18"), tmp_path / "w.pth")
    assert (loaded.mean, loaded.std) == (mean, std)
    assert normalisation_warning(loaded, tuple(mean), tuple(std)) is None
    for other_mean, other_std in ((mean, [0.1] * 3), ([0.1] * 3, std)):
        warning = normalisation_warning(loaded, tuple(other_mean), tuple(other_std))
        assert f"trained with data.mean {mean}, data.std {std}" in warning


def write_timm(state, tmp_path):
    return as_timm(state, tmp_path)


def write_torchvision(state, tmp_path):
    torch.save(as_torchvision(state), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def write_arguments_alone(state, tmp_path):
    torch.save({"model": state, "args": argparse.Namespace()}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def write_simmim(state, tmp_path):
    config = {"DATA": {"MASK_RATIO": 0.6}, "MODEL": {"TYPE": "swin"}}
    torch.save({"model": {f"encoder.{n}": t for n, t in state.items()}, "config": config}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize("write", [write_timm, write_torchvision, write_arguments_alone, write_simmim])
def test_other_codes_that_save_arguments_or_a_config_are_not_taken_for_one_of_mfm(write, sources, tmp_path):
    loaded = load(classifier("resnet18"), write(sources["torchvision"].state, tmp_path))
    assert counts(loaded.report) == Counts(matched=122, left_over=0, new=0)
    assert "layout: a state dict in torchvision's and timm's names" in loaded.report and "MFM" not in loaded.report
    assert loaded.mean is None and normalisation_warning(loaded, (0.1,) * 3, (0.2,) * 3) is None


def test_finetuned_files_of_coincheung_are_known_as_well(sources, tmp_path):
    """Its finetuning script has --use_dali too, whatever its value."""
    content = as_torchvision(sources["torchvision"].state)
    content["args"].use_dali = False
    torch.save(content, tmp_path / "w.pth")
    loaded = load(classifier("resnet18"), tmp_path / "w.pth")
    assert COINCHEUNG in loaded.report and (loaded.mean, loaded.std) == ([0.4] * 3, [0.2] * 3)


def test_nothing_is_said_of_a_normalisation_that_is_not_known(sources, tmp_path):
    torch.save(sources["torchvision"].state, tmp_path / "w.pth")
    loaded = load(classifier("resnet18"), tmp_path / "w.pth")
    assert loaded.mean is None and normalisation_warning(loaded, (0.1,) * 3, (0.2,) * 3) is None
