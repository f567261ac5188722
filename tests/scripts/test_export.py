"""Exports load strictly where they are meant to, give the same outputs there, and come back through --weights."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from configs.schema import FinetuneConfig, PretrainConfig
from models.description import weights_fingerprint
from models.mfm import masked_frequency_network
from models.trunk import make_trunk
from scripts import export_weights as script
from scripts.export_files import class_order_note, natural_key
from scripts.export_weights import LAYOUTS, PARTS, export_weights
from tests.support.weights import classifier, counts, lively, load
from utils.config import parse_command_line, to_dict
from utils.errors import UserError

pytestmark = pytest.mark.process


def trained(model):
    """The state dict of a model in the memory layout of training."""
    state = model.state_dict().items()
    return {n: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.clone() for n, t in state}


def config(kind, *words):
    return to_dict(parse_command_line(kind, ["model.name=resnet18", *words], "a test"))


def filled(make, state, *arguments, **more):
    """make(...) for evaluation with every tensor from `state`, and none of its own."""
    with torch.device("meta"):
        model = make(*arguments, **more)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


@dataclass(frozen=True)
class Checkpoints:
    """Two checkpoints as training writes them, and the networks that they were made from."""

    finetuned: str  # path of a classifier of 7 classes, with averaged weights
    pretrained: str  # to predict colours
    pretrained_gray: str
    classifier: nn.Module
    averaged: nn.Module
    pretraining: nn.Module
    pretraining_gray: nn.Module
    images: torch.Tensor

    def path(self, what: str) -> str:
        """Of the checkpoint that has this part."""
        return self.finetuned if what == "classifier" else self.pretrained


def pretraining_network(out_channels: int = 3) -> nn.Sequential:
    return masked_frequency_network(make_trunk("resnet18"), out_channels)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Checkpoints:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    finetuned, averaged = lively(classifier("resnet18", 7)), lively(classifier("resnet18", 7))
    pretrained, gray = lively(pretraining_network()), lively(pretraining_network(1))
    content = {"model": trained(finetuned), "classes": list("abcdefg"), "config": config(FinetuneConfig)}
    content |= {"step": 700, "images": 16 * 2048 + 5}  # of 100 epochs of 16 steps, 43 and a part
    content["ema"] = torch.optim.swa_utils.AveragedModel(averaged).state_dict()
    torch.save(content, folder / "bce.pt")
    torch.save({"model": trained(pretrained), "config": config(PretrainConfig)}, folder / "mfm.pt")
    torch.save({"model": trained(gray), "config": config(PretrainConfig)}, folder / "gray.pt")
    return Checkpoints(
        finetuned=str(folder / "bce.pt"),
        pretrained=str(folder / "mfm.pt"),
        pretrained_gray=str(folder / "gray.pt"),
        classifier=finetuned,
        averaged=averaged,
        pretraining=pretrained,
        pretraining_gray=gray,
        images=torch.randn(2, 3, 64, 64),
    )


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
@pytest.mark.parametrize("use_ema", [False, True])
def test_a_classifier_gives_the_same_logits_in_torchvision_and_timm(layout, use_ema, ours, tmp_path):
    message = export_weights(ours.finetuned, tmp_path / "new/w.pth", layout=layout, use_ema=use_ema)
    assert f"classifier of resnet18, 122 tensors, layout {layout}; loads back strictly into {layout}'s" in message
    model = ours.averaged if use_ema else ours.classifier
    with torch.inference_mode():
        for make in (torchvision.models.resnet18, timm.models.resnet18):
            other = filled(make, read(tmp_path / "new/w.pth"), num_classes=7)
            torch.testing.assert_close(other(ours.images), model(ours.images), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("source", ["classifier", "pretraining"])
def test_a_trunk_gives_the_same_features_in_torchvision_timm_and_a_detection_backbone(source, ours, tmp_path):
    assert "trunk of resnet18, 120 tensors" in export_weights(ours.path(source), tmp_path / "w.pth", "trunk")
    state = read(tmp_path / "w.pth")
    theirs = torchvision.models.resnet18()
    assert theirs.load_state_dict(state, strict=False) == (["fc.weight", "fc.bias"], [])
    theirs.fc = nn.Identity()
    timms = filled(timm.models.resnet18, state, num_classes=0)
    body = filled(
        lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d).body, state
    )
    trunk = []
    for name, child in getattr(ours, source).named_children():
        if name not in ("avgpool", "fc", "decoder"):
            trunk.append(child)
    with torch.inference_mode():
        features = nn.Sequential(*trunk)(ours.images)
        for pooled in (theirs.eval()(ours.images), timms(ours.images)):
            torch.testing.assert_close(pooled, features.mean((2, 3)), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(body(ours.images)["3"], features, atol=1e-6, rtol=1e-5)


def test_timm_takes_a_trunk_as_its_train_script_does(ours, tmp_path):
    """`--pretrained --pretrained-path trunk.pth` makes this call."""
    export_weights(ours.pretrained, tmp_path / "w.pth", layout="timm")
    overlay = {"file": str(tmp_path / "w.pth"), "num_classes": -1}
    model = timm.create_model("resnet18", pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.layer4[1].conv2.weight, ours.pretraining.layer4[1].conv2.weight)


def test_files_of_the_public_codes_are_as_these_write_them(ours, tmp_path):
    names = set(ours.pretraining.state_dict())
    export_weights(ours.pretrained_gray, tmp_path / "a.pth", "pretraining", "code-a")
    assert set(read(tmp_path / "a.pth")) == {"model"} and set(read(tmp_path / "a.pth")["model"]) == names
    export_weights(ours.pretrained, tmp_path / "b.pth", "pretraining", "code-b")
    assert set(read(tmp_path / "b.pth")["model"]) == {n if "decoder" in n else f"encoder.{n}" for n in names}
    state = {n.removeprefix("encoder."): tensor for n, tensor in read(tmp_path / "b.pth")["model"].items()}
    trunk = {n: tensor for n, tensor in state.items() if "decoder" not in n}
    theirs = filled(timm.models.ResNet, trunk, timm.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=0)
    with torch.inference_mode():
        features = theirs.forward_features(ours.images)
        torch.testing.assert_close(features, ours.pretraining[:-1](ours.images), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "onnx"])
@pytest.mark.parametrize("what", PARTS)
def test_every_export_comes_back_through_weights(what, layout, ours, tmp_path):
    path = ours.path(what)
    gray = (what, layout) == ("pretraining", "code-a")
    if gray:
        path = ours.pretrained_gray
    if (what, layout) == ("classifier", "code-b"):
        with pytest.raises(UserError, match="code-b: that code has no ResNet classifier; take --what trunk, or"):
            export_weights(path, tmp_path / "w.pth", what, layout)
        return
    export_weights(path, tmp_path / "w.pth", what, layout)
    content = read(tmp_path / "w.pth")
    assert all(tensor.is_contiguous() for tensor in content.get("model", content).values())
    network = classifier("resnet18", 7) if what == "classifier" else pretraining_network(1 if gray else 3)
    loaded = counts(load(network, tmp_path / "w.pth").report)
    assert (loaded.matched, loaded.left_over) == (120 if what == "trunk" else 122, 0)
    source = ours.classifier if what == "classifier" else ours.pretraining
    if gray:
        source = ours.pretraining_gray
    assert torch.equal(network.layer4[1].bn2.running_var, source.layer4[1].bn2.running_var)


def as_coincheung_tests(path, model):
    """What `train_finetune.py --resume PATH --test-only --amp` does with a file; a KeyError if it lacks something."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(checkpoint["model"])
    start_epoch = checkpoint["epoch"] + 1
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(checkpoint["scaler"])
    return start_epoch, scaler.get_scale()


def test_coincheungs_test_command_finds_all_that_it_reads(ours, tmp_path):
    export_weights(ours.finetuned, tmp_path / "w.pth", layout="code-a")
    theirs = torchvision.models.resnet18(num_classes=7)
    start_epoch, scale = as_coincheung_tests(tmp_path / "w.pth", theirs)
    assert (start_epoch, scale) == (700 // 16, 65536.0)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(ours.images), ours.classifier(ours.images), atol=1e-6, rtol=1e-5)


def test_a_checkpoint_without_a_step_is_taken_for_that_of_the_last_epoch(ours, tmp_path):
    content = read(ours.finetuned)
    del content["step"]
    torch.save(content, tmp_path / "bce.pt")
    export_weights(str(tmp_path / "bce.pt"), tmp_path / "w.pth", layout="code-a")
    epoch = read(tmp_path / "w.pth")["epoch"]
    assert type(epoch) is int and epoch == content["config"]["schedule"]["epochs"] - 1


@pytest.mark.parametrize(
    ("source", "layout", "reason"),
    [
        ("pretrained_gray", "code-b", r"decoder predicts 3 channels an image, this one 1\n\(loss.target = gray\)"),
        ("pretrained", "code-a", r"decoder predicts 1 channels an image, this one 3\n\(loss.target = rgb\)"),
    ],
)
def test_a_decoder_that_does_not_fit_the_other_code_is_refused(source, layout, reason, ours, tmp_path):
    with pytest.raises(UserError, match=f"--layout {layout}: that code's {reason}; take --what trunk"):
        export_weights(getattr(ours, source), tmp_path / "w.pth", "pretraining", layout)
    assert not (tmp_path / "w.pth").exists()
    export_weights(getattr(ours, source), tmp_path / "w.pth", "trunk", layout)


def test_what_cannot_be_exported_is_told(ours, tmp_path):
    for path, what, use_ema, sentence in (
        (
            ours.pretrained,
            "classifier",
            False,
            r"mfm.pt: has no fc.\*: --what classifier is not in it; take --what trunk",
        ),
        (ours.finetuned, "pretraining", False, r"bce.pt: has no decoder.\*: --what pretraining is not in it"),
        (ours.pretrained, None, True, "mfm.pt: holds no averaged weights"),
    ):
        with pytest.raises(UserError, match=sentence):
            export_weights(path, tmp_path / "w.pth", what, use_ema=use_ema)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match="plain.pth: names no model; give a checkpoint of"):
        export_weights(str(tmp_path / "plain.pth"), tmp_path / "w.pth")
    with pytest.raises(UserError, match="is a folder; name the file to write"):
        export_weights(ours.pretrained, tmp_path)
    assert not (tmp_path / "w.pth").exists()


@pytest.mark.parametrize("name", ["layer3.0.bn1.running_mean", "fc.bias"])
def test_a_file_that_gives_other_outputs_is_removed_and_told(name, ours, tmp_path, monkeypatch):
    def spoiled(weights, layout):
        return weights | {name: weights[name] + 1}

    monkeypatch.setattr(script, "in_layout", spoiled)
    with pytest.raises(
        UserError, match="removed, since what was written is not what was to be: Tensor-likes are not close"
    ):
        export_weights(ours.finetuned, tmp_path / "w.pth")
    monkeypatch.setattr(script, "in_layout", lambda weights, layout: {n: weights[n] for n in weights if n != name})
    with pytest.raises(UserError, match=r"removed, (.|\n)*Missing key"):
        export_weights(ours.finetuned, tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


def test_without_timm_its_layout_is_checked_in_torchvision(ours, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = export_weights(ours.finetuned, tmp_path / "w.pth", None, "timm")
    assert "layout timm; loads back strictly into torchvision's" in message


def test_the_command_line(ours, tmp_path, capsys):
    words = [ours.pretrained, str(tmp_path / "w.pth"), "--what", "pretraining", "--layout", "code-b"]
    script.main(words)
    assert "pretraining of resnet18, 122 tensors, layout code-b" in capsys.readouterr().out


@pytest.mark.parametrize("use_ema", [False, True])
def test_a_classifier_gives_the_same_outputs_in_onnxruntime(use_ema, ours, tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    message = export_weights(ours.finetuned, tmp_path / "w.onnx", layout="onnx", use_ema=use_ema)
    assert "layout onnx; gives equal outputs in onnxruntime, for normalised images (B, 3, 224, 224)" in message
    session = onnxruntime.InferenceSession(str(tmp_path / "w.onnx"), providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 224, 224)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        expected = (ours.averaged if use_ema else ours.classifier)(images)
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "w.onnx.json").read_text())["classes"] == list("abcdefg")


@pytest.mark.parametrize("what", ["trunk", "pretraining"])
def test_the_other_parts_go_to_onnx_too(what, ours, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    message = export_weights(ours.pretrained, tmp_path / "w.onnx", what, "onnx")
    assert f"{what} of resnet18" in message and "equal outputs in onnxruntime" in message


def test_without_onnx_or_onnxruntime_it_is_told(ours, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="--layout onnx: needs a library; pip install onnx onnxruntime"):
        export_weights(ours.finetuned, tmp_path / "w.onnx", layout="onnx")
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_that_gives_other_outputs_is_removed(ours, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda self, *words: [output + 1 for output in run(self, *words)]
    )
    with pytest.raises(UserError, match=r"w\.onnx: removed, since onnxruntime's outputs are others"):
        export_weights(ours.finetuned, tmp_path / "w.onnx", layout="onnx")
    assert not list(tmp_path.iterdir())


def test_a_json_beside_the_file_says_what_its_reader_needs(ours, tmp_path):
    message = export_weights(ours.finetuned, tmp_path / "w.pth", use_ema=True)
    assert f"wrote {tmp_path / 'w.pth.json'}: classes, normalisation and sizes" in message
    described = json.loads((tmp_path / "w.pth.json").read_text())
    data = config(FinetuneConfig)["data"]
    for key in ("mean", "std", "val_resize_size", "val_crop_size", "interpolation"):
        assert described[key] == data[key]
    assert described["classes"] == list("abcdefg") and described["weights"] == "ema"
    assert described["fingerprint"] == weights_fingerprint(read(tmp_path / "w.pth"))
    export_weights(ours.pretrained, tmp_path / "trunk.pth")
    described = json.loads((tmp_path / "trunk.pth.json").read_text())
    assert described["train_crop_size"] == 224 and described["mean"] == data["mean"] and "classes" not in described


@pytest.mark.parametrize(
    "names",
    [
        ["b10", "B2", "a", "b", "1", "01", "", "10", "b10c2", "b10c", "b2c"],
        ["n02", "n1", "n01440764", "N3", "é9", "e10"],
    ],
)
def test_timms_order_of_folders_is_timms(names):
    """timm's ReaderImageFolder sorts class names by its natural_key; torchvision's ImageFolder by the name itself."""
    theirs = sorted(names, key=timm.utils.misc.natural_key)
    assert sorted(names, key=natural_key) == theirs != sorted(names)
    assert "timm (numbers by value, without case) sorts them otherwise: give it --class-map" in class_order_note(
        sorted(names)
    )
    assert "timm (numbers by value, without case) sorts these folders as the outputs" in class_order_note(theirs)


def test_torchvision_sorts_folders_as_ours_do(tmp_path):
    names = ["b10", "B2", "a", "1", "01", "10", "é", "Z"]
    for name in names:
        (tmp_path / name).mkdir()
    assert torchvision.datasets.folder.find_classes(str(tmp_path))[0] == sorted(names)
    assert "torchvision's ImageFolder (by name) sorts these folders as the outputs" in class_order_note(sorted(names))
