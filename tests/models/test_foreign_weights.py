"""Weights of other projects: every layout loads in full, nothing in a file runs, what does not fit is told."""

from __future__ import annotations

import argparse
import collections
import copy
import os
import pickle
import sys
import types

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from models.trunk import masked_frequency_model, resnet
from models.weights import hub_file, start_from
from utils.distributed import World
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint

ALONE = World(0, 1, 1, torch.device("cpu"))
TRUNK = 120  # tensors of a resnet18 but its fc


def start(model, path, name="resnet18", use_ema=False, **normalisation):
    return start_from(model, name, str(path), use_ema, ALONE, **normalisation)[0]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lively(model):
    """Running statistics unlike a fresh model's, so that a lost buffer shows."""
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.add_(0.1 * torch.rand_like(buffer))
    return model.eval()


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


def code_a(state, node):
    args = argparse.Namespace(lr=1.2e-3, epochs=300, output_dir="./res", weights=None, betas=(0.9, 0.95))
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    decoder = {"decoder.0.weight": torch.randn(1024, 512, 1, 1), "decoder.0.bias": torch.randn(1024)}
    trunk = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    return {"model": trunk | decoder, "optimizer": optimizer, "lr_scheduler": {}, "epoch": 299, "args": args}


def code_b(state, node):
    decoder = {"decoder.0.weight": torch.randn(3072, 512, 1, 1), "decoder.0.bias": torch.randn(3072)}
    trunk = {f"encoder.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")}
    config = node(MODEL=node(TYPE="resnet", NAME="x"), BASE=[""], DATA=node(BATCH_SIZE=256))
    return {"model": collections.OrderedDict(trunk | decoder), "epoch": 299, "max_accuracy": 0.0, "config": config}


def prefixed(*prefixes):
    return lambda state, node: {"".join(prefixes) + name: tensor for name, tensor in state.items()}


LAYOUTS = {
    "plain": lambda state, node: state,
    "under model": lambda state, node: {"model": state, "epoch": 3},
    "under state_dict": lambda state, node: {"state_dict": state, "arch": "resnet18"},
    "code A": code_a,
    "code B": code_b,
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "backbone.": prefixed("backbone."),
    "encoder.": prefixed("encoder."),
    "module._orig_mod.encoder.": prefixed("module.", "_orig_mod.", "encoder."),
    "_orig_mod.module.backbone.": prefixed("_orig_mod.", "module.", "backbone."),
}


@pytest.fixture(scope="module")
def networks():
    """A resnet18 of each library with unlike weights, its features of two images, and a model of ours to fill."""
    torch.manual_seed(0)
    made = types.SimpleNamespace(images=torch.randn(2, 3, 64, 64), mine=masked_frequency_model("resnet18", 3).eval())
    theirs, timms = lively(torchvision.models.resnet18()), lively(timm.create_model("resnet18"))
    with torch.inference_mode():
        features = torch.nn.Sequential(*list(theirs.children())[:-2])(made.images)
        made.sources = {
            "torchvision": (theirs.state_dict(), features),
            "timm": (timms.state_dict(), timms.forward_features(made.images)),
        }
    assert not torch.allclose(features, made.sources["timm"][1])
    return made


CASES = [(layout, "torchvision", False) for layout in LAYOUTS]
CASES += [(layout, "timm", False) for layout in ("plain", "code B", "encoder.")]  # whose code is built on timm
CASES += [(layout, "torchvision", True) for layout in ("plain", "code A", "code B")]


@pytest.mark.parametrize("layout, source, legacy", CASES)
def test_every_layout_gives_the_whole_trunk_and_its_features(
    layout, source, legacy, networks, tmp_path, yacs, monkeypatch
):
    state, features = networks.sources[source]
    torch.save(LAYOUTS[layout](state, yacs), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "yacs.config")  # a reader has no yacs
    mine = copy.deepcopy(networks.mine)
    fresh = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    told = start(mine, tmp_path / "w.pth")
    has_decoder = layout == "code B"
    assert f"{TRUNK + 2 * has_decoder} tensors matched" in told
    whose = {"code A": "public code A's", "code B": "the paper's code's"}
    assert f"layout: {whose.get(layout, 'a state dict')}" in told
    if layout.endswith("."):
        assert f"names after {layout}" in told
    if layout == "code A":
        assert "decoder.0.weight is new: (3072, 512, 1, 1) here, (1024, 512, 1, 1) in the file" in told
    if not has_decoder:
        assert torch.equal(mine.decoder[0].weight, fresh["decoder.0.weight"])
    with torch.inference_mode():
        torch.testing.assert_close(mine[:-1](networks.images), features, atol=1e-6, rtol=0)


def test_resnet50_of_timm_and_of_torchvision_have_the_same_names_and_load_whole(tmp_path):
    ours = resnet("resnet50", 10)
    other = lively(timm.create_model("resnet50", num_classes=10))
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (ours, other)]
    assert shapes[0] == shapes[1]
    save_file(other.state_dict(), tmp_path / "timm.safetensors")
    told = start(ours, tmp_path / "timm.safetensors", "resnet50")
    assert "320 tensors matched, 0 of the file left over, 0 of the model stay at initialisation" in told
    with torch.inference_mode():
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(ours.eval()(images), other(images), atol=1e-5, rtol=1e-5)


def test_another_number_of_classes_keeps_the_trunk_and_says_that_the_head_is_new(tmp_path):
    other = torchvision.models.resnet18()
    torch.save(other.state_dict(), tmp_path / "w.pth")
    mine = resnet("resnet18", 7)
    head = mine.fc.weight.clone()
    told = start(mine, tmp_path / "w.pth")
    assert "120 tensors matched, 2 (fc.weight, fc.bias) of the file left over, 2 (fc.weight, fc.bias) of the" in told
    assert "; fc.weight is new: (7, 512) here, (1000, 512) in the file; fc.bias is new: (7,) here" in told
    assert torch.equal(mine.fc.weight, head) and torch.equal(mine.layer4[1].conv2.weight, other.layer4[1].conv2.weight)


def test_own_checkpoints_give_model_or_ema_and_warn_of_another_normalisation(tmp_path):
    one, two = resnet("resnet18", 7), resnet("resnet18", 7)
    average = torch.optim.swa_utils.AveragedModel(two)
    config = {"run": {}, "train": {}, "model": {"name": "resnet18"}, "data": {"mean": [0.4] * 3, "std": [0.2] * 3}}
    torch.save({"model": one.state_dict(), "ema": average.state_dict(), "config": config}, tmp_path / "own.pt")
    mine = resnet("resnet18", 7)
    for use_ema, source in ((False, one), (True, two)):
        told = start(mine, tmp_path / "own.pt", use_ema=use_ema, mean=(0.4,) * 3, std=(0.2,) * 3)
        assert "layout: a checkpoint of this project; 122 tensors matched, 0 of the file left" in told
        assert torch.equal(mine.conv1.weight, source.conv1.weight) and "warning" not in told
    told = start(mine, tmp_path / "own.pt", mean=(0.5,) * 3, std=(0.2,) * 3)
    assert "warning: " in told and "was trained with data.mean [0.4, 0.4, 0.4], data.std [0.2, 0.2, 0.2]" in told
    torch.save(one.state_dict(), tmp_path / "plain.pt")
    with pytest.raises(UserError, match="plain.pt: holds no averaged weights"):
        start(mine, tmp_path / "plain.pt", use_ema=True)


def test_foreign_checkpoints_warn_of_the_normalisation_their_code_uses(tmp_path, yacs):
    state, mine = torchvision.models.resnet18().state_dict(), resnet("resnet18")
    for make, mean in ((code_a, "0.4, 0.4, 0.4"), (code_b, "0.485, 0.456, 0.406")):
        torch.save(make(state, yacs), tmp_path / "w.pth")
        assert f"trained with data.mean [{mean}]" in start(mine, tmp_path / "w.pth", mean=(0.1,) * 3, std=(0.2,) * 3)
        assert "warning" not in start(mine, tmp_path / "w.pth")  # pretraining has its own


def test_files_without_counts_of_batches_load(tmp_path):
    """As torchvision's and timm's oldest files are."""
    other = torchvision.models.resnet18()
    state = {name: tensor for name, tensor in other.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    assert "102 tensors matched, 0 of the file left over, 20 (bn1.num_b" in start(
        resnet("resnet18"), tmp_path / "old.pth"
    )


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


POSITIONS = {
    "top": lambda state, bad: bad,
    "args": lambda state, bad: {"model": state, "args": bad},
    "in args": lambda state, bad: {"model": state, "args": argparse.Namespace(lr=bad)},
    "config": lambda state, bad: {"model": state, "config": bad},
    "in config": lambda state, bad: {"model": state, "config": collections.OrderedDict(DATA=bad)},
    "model": lambda state, bad: {"model": bad},
    "among tensors": lambda state, bad: state | {"layer9": bad},
    "optimizer": lambda state, bad: {"model": state, "optimizer": {"state": [bad]}},
}


@pytest.mark.parametrize("foreign", [True, False], ids=["weights", "resume"])
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_payload_is_refused_wherever_it_is_and_nothing_runs(position, how, foreign, tmp_path):
    path, trace = tmp_path / "bad.pth", tmp_path / "ran"
    content = POSITIONS[position]({"conv1.weight": torch.zeros(2)}, Payload(trace))
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(
        UserError,
        match=r"bad.pth: refused: .*GLOBAL (posix.system|torch.storage._load)"
        if foreign or how == "zip"
        else "not a checkpoint",
    ):
        read_checkpoint(path, foreign)
    assert not trace.exists()


def test_the_payload_is_a_real_one(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))  # noqa: S301
    assert (tmp_path / "ran").exists()


def test_two_classes_are_let_in_and_no_third(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    for number, harmful in enumerate((argparse.Action, World(0, 1, 1, None), os.path.exists)):
        torch.save({"model": {}, "args": argparse.Namespace(x=harmful)}, tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match=r"refused: .*GLOBAL (argparse.Action|utils.distributed.World|genericpath)"):
            read_checkpoint(tmp_path / f"{number}.pth", foreign=True)
    assert set(torch.serialization.get_safe_globals()) == before  # let in while we read, and not after


def page(path):
    path.write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>")


def cut_short(path):
    torch.save(torchvision.models.resnet18().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def cut_short_legacy(path):
    torch.save(torchvision.models.resnet18().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])


def flipped_bit(path):
    torch.save(torchvision.models.resnet18().state_dict(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def saved(content):
    return lambda path: torch.save(content, path)


def changed(change, name="resnet18"):
    """A file of this ResNet after `change(state_dict)`."""

    def write(path):
        state = dict(torchvision.models.get_model(name).state_dict())
        change(state)
        torch.save(state, path)

    return write


def transposed(name):
    return changed(lambda state: state.update({name: state[name].transpose(0, 1).contiguous()}))


TWO = {"encoder.conv1.weight": torch.zeros(1), "module.conv1.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    "write, told",
    [
        (lambda path: path.mkdir(), "a folder, not a checkpoint; give a file"),
        (lambda path: None, "no such checkpoint"),
        (lambda path: path.touch(), "empty; copy or download it again"),
        (page, "a web page, not weights"),
        (cut_short, "not a checkpoint, or cut short"),
        (cut_short_legacy, "not a checkpoint, or cut short"),
        (flipped_bit, r"damaged \(checksum of .*data/\d+\)"),
        (lambda path: path.write_bytes(os.urandom(999)), "not a checkpoint|refused"),
        (saved([torch.zeros(1)]), "holds a list, not a checkpoint or state dict"),
        (saved({"epoch": 3, "net": {"conv1.weight": torch.zeros(1)}}), "holds no state dict, .* but epoch, net"),
        (saved({}), "holds no state dict, .* but nothing"),
        (saved({"model": {"conv1.weight": "text"}}), "holds no state dict, .* but model"),
        (saved({"blocks.0.attn.qkv.weight": torch.zeros(3)}), "no trunk tensor matches .* holds blocks.0.attn"),
        (saved(TWO), "holds two networks"),
        (changed(lambda state: None, "resnet50"), r"layer1.0.conv1.weight has shape \(64, 64, 1, 1\) in the file"),
        (changed(lambda state: None, "resnet34"), "layer1.2.conv1.weight has shape .* in the file, none in the model"),
        (changed(lambda state: state.pop("bn1.running_var")), r"bn1.running_var has shape none in the file"),
        (transposed("layer2.0.conv1.weight"), r"layer2.0.conv1.weight .*\(transposed\) \(1 such tensors\)"),
        (transposed("fc.weight"), r"fc.weight has shape \(512, 1000\) in the file, \(1000, 512\) .*\(transposed\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_and_leaves_the_model_alone(write, told, tmp_path):
    write(tmp_path / "w.pth")
    model = resnet("resnet18")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=rf"w.pth: {told}"):
        start(model, tmp_path / "w.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_resnet18_into_resnet50_is_told_with_the_remedy(tmp_path):
    changed(lambda state: None)(tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"layer1.0.conv1.weight has shape .* such tensors\); model.name must be that of"
    ):
        start(resnet("resnet50"), tmp_path / "w.pth", "resnet50")


def test_safetensors_without_the_library_names_it(tmp_path, monkeypatch):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-2])
    with pytest.raises(UserError, match="cut.safetensors: not a checkpoint, or cut short"):
        read_checkpoint(tmp_path / "cut.safetensors", foreign=True)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="w.safetensors: needs a library to be read; pip install safetensors"):
        read_checkpoint(tmp_path / "w.safetensors", foreign=True)


def test_a_file_to_resume_must_have_checksums(tmp_path):
    torch.save({"model": {}, "optimizer": {}, "step": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    read_checkpoint(tmp_path / "old.pt", foreign=True)
    with pytest.raises(UserError, match="old.pt: not a checkpoint"):
        read_checkpoint(tmp_path / "old.pt")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's hub cache in a folder of the test; a download is noted, and fails unless `source` says what to bring."""
    noted = types.SimpleNamespace(downloads=[], source=None, folder=tmp_path / "hub/checkpoints")

    def download(url, file, hash_prefix, progress):
        noted.downloads.append((url, hash_prefix, progress))
        if noted.source is None:
            raise OSError("no network here")
        torch.save(noted.source, file)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return noted


@pytest.mark.parametrize("version, file", [("V1", "resnet50-0676ba61.pth"), ("V2", "resnet50-11ad3fa6.pth")])
def test_torchvision_weights_are_taken_from_the_hub_cache(version, file, hub):
    other = torchvision.models.resnet50()
    hub.folder.mkdir(parents=True)
    torch.save(other.state_dict(), hub.folder / file)
    mine = masked_frequency_model("resnet50", 1)
    told = start(mine, f"torchvision:IMAGENET1K_{version}", "resnet50", mean=(0.4,) * 3, std=(0.2,) * 3)
    assert f"torchvision:IMAGENET1K_{version}: layout: a state dict in torchvision's and timm's names; 318 tens" in told
    assert "trained with data.mean [0.485, 0.456, 0.406]" in told and hub.downloads == []
    assert torch.equal(mine.layer4[2].conv3.weight, other.layer4[2].conv3.weight)


def test_torchvision_weights_are_downloaded_once_with_their_hash_checked(hub):
    hub.source = torchvision.models.resnet18().state_dict()
    for _ in range(2):
        start(resnet("resnet18"), "torchvision:IMAGENET1K_V1")
    assert hub.downloads == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd", False)]


def test_torchvision_weights_that_cannot_be_had_are_told(hub):
    with pytest.raises(
        UserError, match="V1: cannot download https://.* .no network here.; put it at .*hub/checkpoints/res"
    ):
        start(resnet("resnet18"), "torchvision:IMAGENET1K_V1")
    with pytest.raises(UserError, match="V9: torchvision has for resnet18: torchvision:IMAGENET1K_V1"):
        start(resnet("resnet18"), "torchvision:IMAGENET1K_V9")


@pytest.mark.parametrize("local_rank, downloads", [(0, 1), (1, 0)])
def test_one_rank_of_a_machine_downloads_and_the_others_wait(local_rank, downloads, hub, monkeypatch):
    there = [len(hub.downloads)]

    def wait(_world, _tensor):
        there.append(len(hub.downloads))
        (hub.folder / "resnet18-f37072fd.pth").touch()  # as the first rank leaves it

    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(World, "sum", wait)
    hub.source = {}
    hub.folder.mkdir(parents=True, exist_ok=True)
    hub_file("torchvision:IMAGENET1K_V1", "resnet18", World(5, 8, 2, torch.device("cpu")))
    assert there == [0, downloads] and len(hub.downloads) == downloads
