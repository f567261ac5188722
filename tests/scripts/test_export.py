"""Exports load strictly where they are meant to, give the same outputs there, and come back through --weights."""

from __future__ import annotations

import re
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from configs.schema import FinetuneConfig, PretrainConfig
from models.trunk import masked_frequency_model, resnet
from models.weights import start_from
from scripts import export_weights as script
from scripts.benchmark.memory_card import CARDS, PRECISIONS, SIZES, bytes_an_image, images_that_fit
from scripts.export_weights import LAYOUTS, PARTS, export_weights
from tests.support.launch import ROOT
from utils.config import parse_command_line, to_dict
from utils.distributed import World
from utils.errors import UserError


def lively(model):
    """Running statistics unlike a fresh model's."""
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.add_(0.1 * torch.rand_like(buffer))
    return model.eval()


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


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Paths of a finetuned (7 classes, with averaged weights) and a pretrained checkpoint, and their models."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    classifier, averaged = lively(resnet("resnet18", 7)), lively(resnet("resnet18", 7))
    pretrained = lively(masked_frequency_model("resnet18", 3))
    content = {"model": trained(classifier), "classes": list("abcdefg"), "config": config(FinetuneConfig)}
    content["ema"] = torch.optim.swa_utils.AveragedModel(averaged).state_dict()
    torch.save(content, folder / "bce.pt")
    torch.save({"model": trained(pretrained), "config": config(PretrainConfig)}, folder / "mfm.pt")
    return {
        "bce": str(folder / "bce.pt"), "mfm": str(folder / "mfm.pt"), "images": torch.randn(2, 3, 64, 64),
        "classifier": classifier, "ema": averaged, "pretraining": pretrained,
    }  # fmt: skip


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
@pytest.mark.parametrize("use_ema", [False, True])
def test_a_classifier_gives_the_same_logits_in_torchvision_and_timm(layout, use_ema, ours, tmp_path):
    told = export_weights(ours["bce"], tmp_path / "new/w.pth", layout=layout, use_ema=use_ema)
    assert f"classifier of resnet18, 122 tensors, layout {layout}; loads back strictly into {layout}'s" in told
    model = ours["ema" if use_ema else "classifier"]
    with torch.inference_mode():
        for make in (torchvision.models.resnet18, timm.models.resnet18):
            other = filled(make, read(tmp_path / "new/w.pth"), num_classes=7)
            torch.testing.assert_close(other(ours["images"]), model(ours["images"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("source", ["bce", "mfm"])
def test_a_trunk_gives_the_same_features_in_torchvision_timm_and_a_detection_backbone(source, ours, tmp_path):
    assert "trunk of resnet18, 120 tensors" in export_weights(ours[source], tmp_path / "w.pth", "trunk")
    state = read(tmp_path / "w.pth")
    theirs = torchvision.models.resnet18()
    assert theirs.load_state_dict(state, strict=False) == (["fc.weight", "fc.bias"], [])
    theirs.fc = nn.Identity()
    timms = filled(timm.models.resnet18, state, num_classes=0)
    body = filled(
        lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d).body, state
    )
    children = [child for name, child in ours["classifier" if source == "bce" else "pretraining"].named_children()
                if name not in ("avgpool", "fc", "decoder")]  # fmt: skip
    with torch.inference_mode():
        features = nn.Sequential(*children)(ours["images"])
        for pooled in (theirs.eval()(ours["images"]), timms(ours["images"])):
            torch.testing.assert_close(pooled, features.mean((2, 3)), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(body(ours["images"])["3"], features, atol=1e-6, rtol=1e-5)


def test_timm_takes_a_trunk_as_its_train_script_does(ours, tmp_path):
    """`--pretrained --pretrained-path trunk.pth` makes this call."""
    export_weights(ours["mfm"], tmp_path / "w.pth", layout="timm")
    overlay = {"file": str(tmp_path / "w.pth"), "num_classes": -1}
    model = timm.create_model("resnet18", pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.layer4[1].conv2.weight, ours["pretraining"].layer4[1].conv2.weight)


def test_files_of_the_public_codes_are_as_these_write_them(ours, tmp_path):
    names = set(ours["pretraining"].state_dict())
    export_weights(ours["mfm"], tmp_path / "a.pth", "pretraining", "code-a")
    assert set(read(tmp_path / "a.pth")) == {"model"} and set(read(tmp_path / "a.pth")["model"]) == names
    export_weights(ours["mfm"], tmp_path / "b.pth", "pretraining", "code-b")
    assert set(read(tmp_path / "b.pth")["model"]) == {n if "decoder" in n else f"encoder.{n}" for n in names}
    state = {n.removeprefix("encoder."): tensor for n, tensor in read(tmp_path / "b.pth")["model"].items()}
    trunk = {n: tensor for n, tensor in state.items() if "decoder" not in n}
    theirs = filled(timm.models.ResNet, trunk, timm.models.trunk.BasicBlock, [2, 2, 2, 2], num_classes=0)
    with torch.inference_mode():
        features = theirs.forward_features(ours["images"])
        torch.testing.assert_close(features, ours["pretraining"][:-1](ours["images"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", PARTS)
def test_every_export_comes_back_through_weights(what, layout, ours, tmp_path):
    source = "bce" if what == "classifier" else "mfm"
    if (what, layout) == ("classifier", "code-b"):
        with pytest.raises(UserError, match="code-b: that code has no ResNet classifier; take --what trunk, or"):
            export_weights(ours[source], tmp_path / "w.pth", what, layout)
        return
    export_weights(ours[source], tmp_path / "w.pth", what, layout)
    assert all(tensor.is_contiguous() for tensor in read(tmp_path / "w.pth").get("model", {}).values())
    mine = resnet("resnet18", 7) if what == "classifier" else masked_frequency_model("resnet18", 3)
    told, _ = start_from(mine, "resnet18", str(tmp_path / "w.pth"), False, World(0, 1, 1, torch.device("cpu")))
    assert f"{120 if what == 'trunk' else 122} tensors matched, 0 of the file left over" in told
    model = ours["classifier" if what == "classifier" else "pretraining"]
    assert torch.equal(mine.layer4[1].bn2.running_var, model.layer4[1].bn2.running_var)


def test_what_cannot_be_exported_is_told(ours, tmp_path):
    for name, what, use_ema, told in (
        ("mfm", "classifier", False, r"mfm.pt: has no fc.\*: --what classifier is not in it; take --what trunk"),
        ("bce", "pretraining", False, r"bce.pt: has no decoder.\*: --what pretraining is not in it"),
        ("mfm", None, True, "mfm.pt: holds no averaged weights"),
    ):
        with pytest.raises(UserError, match=told):
            export_weights(ours[name], tmp_path / "w.pth", what, use_ema=use_ema)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match="plain.pth: names no model; give a checkpoint of"):
        export_weights(str(tmp_path / "plain.pth"), tmp_path / "w.pth")
    with pytest.raises(UserError, match="is a folder; name the file to write"):
        export_weights(ours["mfm"], tmp_path)
    assert not (tmp_path / "w.pth").exists()


@pytest.mark.parametrize("name", ["layer3.0.bn1.running_mean", "fc.bias"])
def test_a_file_that_gives_other_outputs_is_removed_and_told(name, ours, tmp_path, monkeypatch):
    def spoiled(weights, layout):
        return weights | {name: weights[name] + 1}

    monkeypatch.setattr(script, "in_layout", spoiled)
    with pytest.raises(
        UserError, match="removed, since what was written is not what was to be: Tensor-likes are not close"
    ):
        export_weights(ours["bce"], tmp_path / "w.pth")
    monkeypatch.setattr(script, "in_layout", lambda weights, layout: {n: weights[n] for n in weights if n != name})
    with pytest.raises(UserError, match=r"removed, (.|\n)*Missing key"):
        export_weights(ours["bce"], tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


def test_without_timm_its_layout_is_checked_in_torchvision(ours, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    told = export_weights(ours["bce"], tmp_path / "w.pth", None, "timm")
    assert "layout timm; loads back strictly into torchvision's" in told


def test_the_command_line(ours, tmp_path, capsys):
    words = [ours["mfm"], str(tmp_path / "w.pth"), "--what", "pretraining", "--layout", "code-b"]
    script.main(words)
    assert "pretraining of resnet18, 122 tensors, layout code-b" in capsys.readouterr().out


def test_memory_card_counts_what_is_kept_and_what_fits():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    # Kept: the image and the ReLU's output; the linear layer's input is a view of it.
    assert bytes_an_image(model, 8, torch.float32) == (3 + 4) * 8 * 8 * 4
    # The same in two bytes; autocast copies the image, and the copy is what is kept.
    assert bytes_an_image(model, 8, torch.bfloat16) == (3 + 4) * 8 * 8 * 2
    # 8 GB: less 1 GB, less a tenth, less 16 bytes for each of 25 million parameters: 5.9 GB, 59 images of 100 MB.
    assert images_that_fit(8, 100_000_000, 25_000_000) == 32
    assert images_that_fit(8, 92_187_500, 25_000_000) == 64 and images_that_fit(8, 92_187_501, 25_000_000) == 32
    assert images_that_fit(1, 1, 1) == images_that_fit(8, 6_000_000_000, 25_000_000) == 0


def test_readme_has_the_memory_card_as_computed():
    """Its last row, which is the quickest to compute; the others by their shape."""
    rows = re.findall(r"^\| (?:224|160) \| float.*", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(SIZES) * len(PRECISIONS) and {row.count("|") for row in rows} == {4 + len(CARDS)}
    model = masked_frequency_model("resnet50", 3)
    per_image = bytes_an_image(model, 160, torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cells = " | ".join(str(images_that_fit(gigabytes, per_image, parameters)) for gigabytes in CARDS)
    assert rows[-1] == f"| 160 | float16, bfloat16 | {per_image / 1e6:.0f} | {cells} |"
