"""torchvision's pretrained weights: from the cache of torch's hub, or downloaded there by one rank of a machine."""

from __future__ import annotations

import types

import pytest
import torch
import torchvision

from models.hub import hub_file
from models.mfm import masked_frequency_network
from models.trunk import make_trunk
from tests.support.weights import classifier, counts, load
from utils.distributed import World
from utils.errors import UserError

pytestmark = pytest.mark.process


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
def test_weights_are_taken_from_the_cache(version, file, hub):
    other = torchvision.models.resnet50()
    hub.folder.mkdir(parents=True)
    torch.save(other.state_dict(), hub.folder / file)
    network = masked_frequency_network(make_trunk("resnet50"), 1)
    loaded = load(network, f"torchvision:IMAGENET1K_{version}", "resnet50")
    assert counts(loaded.report).matched == 318 and hub.downloads == []
    assert (loaded.mean, loaded.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.equal(network.layer4[2].conv3.weight, other.layer4[2].conv3.weight)


def test_weights_are_downloaded_once_with_their_hash_checked(hub):
    hub.source = torchvision.models.resnet18().state_dict()
    for _ in range(2):
        load(classifier("resnet18"), "torchvision:IMAGENET1K_V1")
    assert hub.downloads == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd", False)]


def test_a_download_that_fails_says_where_to_put_the_file(hub):
    remedy = r"cannot download https://.* \(no network here\); put it at .*hub/checkpoints/res"
    with pytest.raises(UserError, match=f"V1: {remedy}"):
        load(classifier("resnet18"), "torchvision:IMAGENET1K_V1")


def test_unknown_weights_are_refused_with_the_known_ones(hub):
    with pytest.raises(UserError, match="V9: torchvision has for resnet18: torchvision:IMAGENET1K_V1"):
        load(classifier("resnet18"), "torchvision:IMAGENET1K_V9")


@pytest.mark.parametrize("local_rank, downloads", [(0, 1), (1, 0)])
def test_one_rank_of_a_machine_downloads_and_the_others_wait(local_rank, downloads, hub, monkeypatch):
    downloads_when_waiting = []

    def wait(_world, _tensor):
        downloads_when_waiting.append(len(hub.downloads))
        (hub.folder / "resnet18-f37072fd.pth").touch()  # as the first rank leaves it

    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(World, "sum", wait)
    hub.source = {}
    hub.folder.mkdir(parents=True, exist_ok=True)
    hub_file("torchvision:IMAGENET1K_V1", "resnet18", World(5, 8, 2, torch.device("cpu")))
    assert downloads_when_waiting == [downloads] and len(hub.downloads) == downloads
