"""Files that --weights refuses: what runs code, what is damaged, what does not fit; the network stays as it was."""

from __future__ import annotations

import argparse
import collections
import functools
import os
import pickle
import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from tests.support.weights import classifier, load
from utils.distributed import World
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint

pytestmark = pytest.mark.process


class Payload:
    """Unpickled, it leaves a file."""

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
@pytest.mark.parametrize("file_format", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_payload_is_refused_wherever_it_is_and_nothing_runs(position, file_format, foreign, tmp_path):
    path, trace = tmp_path / "bad.pth", tmp_path / "ran"
    content = POSITIONS[position]({"conv1.weight": torch.zeros(2)}, Payload(trace))
    if file_format == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=file_format == "zip")
    reason = "not a checkpoint"  # what has no checksums, where a run is to be resumed
    if foreign or file_format == "zip":
        reason = r"refused: .*GLOBAL (posix.system|torch.storage._load)"
    with pytest.raises(UserError, match=rf"bad.pth: {reason}"):
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


def test_a_file_to_resume_must_have_checksums(tmp_path):
    torch.save({"model": {}, "optimizer": {}, "step": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    read_checkpoint(tmp_path / "old.pt", foreign=True)
    with pytest.raises(UserError, match="old.pt: not a checkpoint"):
        read_checkpoint(tmp_path / "old.pt")


def test_safetensors_without_the_library_names_it(tmp_path, monkeypatch):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-2])
    with pytest.raises(UserError, match="cut.safetensors: not a checkpoint, or cut short"):
        read_checkpoint(tmp_path / "cut.safetensors", foreign=True)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="w.safetensors: needs a library to be read; pip install safetensors"):
        read_checkpoint(tmp_path / "w.safetensors", foreign=True)


# What does not fit.


@functools.cache
def weights_of(name: str) -> dict[str, torch.Tensor]:
    return torchvision.models.get_model(name).state_dict()


def web_page(path):
    path.write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>")


def cut_short(path):
    torch.save(weights_of("resnet18"), path)
    path.write_bytes(path.read_bytes()[:-1000])


def cut_short_legacy(path):
    torch.save(weights_of("resnet18"), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])


def flipped_bit(path):
    torch.save(weights_of("resnet18"), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def file_of(content):
    return lambda path: torch.save(content, path)


def other_network(name):
    return lambda path: torch.save(weights_of(name), path)


def without_a_tensor(path):
    state = dict(weights_of("resnet18"))
    del state["bn1.running_var"]
    torch.save(state, path)


def transposed(name):
    def write(path):
        state = dict(weights_of("resnet18"))
        state[name] = state[name].transpose(0, 1).contiguous()
        torch.save(state, path)

    return write


TWO_NETWORKS = {"encoder.conv1.weight": torch.zeros(1), "module.conv1.weight": torch.zeros(1)}
REFUSED = {
    "a folder": (lambda path: path.mkdir(), "a folder, not a checkpoint; give a file"),
    "missing": (lambda path: None, "no such checkpoint"),
    "empty": (lambda path: path.touch(), "empty; copy or download it again"),
    "a web page": (web_page, "you downloaded the web page about the file"),
    "cut short": (cut_short, "not a checkpoint, or cut short"),
    "cut short, legacy": (cut_short_legacy, "not a checkpoint, or cut short"),
    "a flipped bit": (flipped_bit, r"damaged \(checksum of .*data/\d+\)"),
    "random bytes": (lambda path: path.write_bytes(os.urandom(999)), "not a checkpoint|refused"),
    "a list": (file_of([torch.zeros(1)]), "holds a list, not a checkpoint or state dict"),
    "another key": (file_of({"epoch": 3, "net": {"w": torch.zeros(1)}}), "holds no state dict, .* but epoch, net"),
    "nothing": (file_of({}), "holds no state dict, .* but nothing"),
    "no tensor": (file_of({"model": {"conv1.weight": "text"}}), "holds no state dict, .* but model"),
    "a ViT": (
        file_of({"blocks.0.attn.qkv.weight": torch.zeros(3)}), "no trunk tensor matches .* holds blocks.0.attn"
    ),
    "two networks": (file_of(TWO_NETWORKS), "holds two networks"),
    "resnet50": (other_network("resnet50"), r"layer1.0.conv1.weight has shape \(64, 64, 1, 1\) in the file"),
    "resnet34": (other_network("resnet34"), "layer1.2.conv1.weight has shape .* in the file, none in the model"),
    "a tensor less": (without_a_tensor, r"bn1.running_var has shape none in the file"),
    "transposed": (transposed("layer2.0.conv1.weight"), r"layer2.0.conv1.weight .*\(transposed\)"),
    "transposed head": (
        transposed("fc.weight"), r"fc.weight has shape \(512, 1000\) in the file, \(1000, 512\) .*\(transposed\)"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    return classifier("resnet18")


@pytest.mark.parametrize("write, reason", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_the_network_alone(write, reason, network, tmp_path):
    write(tmp_path / "w.pth")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=rf"w.pth: {reason}"):
        load(network, tmp_path / "w.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_resnet18_into_resnet50_is_refused_with_the_remedy(tmp_path):
    other_network("resnet18")(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"layer1.0.conv1.weight has shape .*; model.name must be that of the file"):
        load(classifier("resnet50"), tmp_path / "w.pth", "resnet50")
