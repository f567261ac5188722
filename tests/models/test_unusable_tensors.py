"""Tensors of a file that no network may take over: not real, not dense, not finite; each is named, none is copied."""

from __future__ import annotations

import pytest
import torch

from tests.support.weights import Counts, classifier, counts, load
from utils.errors import UserError

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return classifier("resnet18", 3)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return classifier("resnet18", 3).state_dict()


def with_value(value: float):
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        spoilt = tensor.clone()
        spoilt.flatten()[-1:] = value  # a view: the tensor is contiguous
        return spoilt

    return spoil


def quantised(tensor: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


NOT_FINITE = r"holds 1 of [\d,]+ numbers that are not finite"
SPOILT = {
    "int64": ("conv1.weight", lambda t: t.long(), r"is torch\.int64; weights must be dense"),
    "bool": ("fc.bias", lambda t: t > 0, r"is torch\.bool"),
    "complex": ("layer1.0.conv1.weight", lambda t: t.to(torch.complex64), r"is torch\.complex64"),
    "float8": ("conv1.weight", lambda t: t.to(torch.float8_e4m3fn), r"is torch\.float8_e4m3fn"),
    "sparse": ("fc.weight", lambda t: t.to_sparse(), r"is sparse \(torch\.sparse_coo\), torch\.float32"),
    "sparse rows": ("fc.weight", lambda t: t.to_sparse_csr(), r"is sparse \(torch\.sparse_csr\), torch\.float32"),
    "quantised": ("conv1.weight", quantised, r"is quantised, torch\.qint8"),
    "without data": ("fc.weight", lambda t: t.to("meta"), r"is without data \(device meta\)"),
    "complex count": ("bn1.num_batches_tracked", lambda t: t.to(torch.complex64), r"is torch\.complex64"),
    "NaN in a weight": ("conv1.weight", with_value(float("nan")), NOT_FINITE),
    "NaN in a bias": ("fc.bias", with_value(float("nan")), NOT_FINITE),
    "NaN in statistics": ("layer4.1.bn2.running_var", with_value(float("nan")), NOT_FINITE),
    "infinity in statistics": ("bn1.running_mean", with_value(-float("inf")), NOT_FINITE),
    "beyond float32": ("conv1.weight", lambda t: with_value(1e300)(t.double()), NOT_FINITE),
    "NaN in a count": ("bn1.num_batches_tracked", lambda t: torch.tensor(float("nan")), NOT_FINITE),
    "negative variance": ("bn1.running_var", with_value(-1.0), "holds a negative variance"),
    "dead convolution": ("layer2.0.conv1.weight", torch.zeros_like, "is all zeros, so no image comes through it"),
    "dead statistics": ("layer3.1.bn1.running_var", torch.zeros_like, "is all zeros, so no image comes through it"),
}


@pytest.mark.parametrize("name, spoil, reason", SPOILT.values(), ids=SPOILT)
def test_an_unusable_tensor_is_named_and_nothing_is_copied(name, spoil, reason, network, state, tmp_path):
    spoilt = spoil(state[name])
    assert spoilt.shape == state[name].shape
    torch.save(state | {name: spoilt}, tmp_path / "w.pth")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=rf"w\.pth: {name} {reason}") as raised:
        load(network, tmp_path / "w.pth")
    assert len(str(raised.value).splitlines()) <= 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_nested_tensors_and_names_that_are_no_text_are_refused_or_left_out(network, state, tmp_path):
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    torch.save(state | {"conv1.weight": nested}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: conv1\.weight has shape none in the file"):
        load(network, tmp_path / "w.pth")
    torch.save(state | {"bn1.num_batches_tracked": nested}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: bn1\.num_batches_tracked is nested"):
        load(network, tmp_path / "w.pth")
    torch.save(state | {3: torch.zeros(1), b"fc": torch.zeros(1)}, tmp_path / "w.pth")
    assert counts(load(network, tmp_path / "w.pth").report) == Counts(matched=122, left_over=0, new=0)


def test_what_does_no_harm_is_taken(state, tmp_path):
    """Half precision, counts made floating point by float(), and numbers that are left over anyway."""
    more = {"bn1.num_batches_tracked": torch.tensor(7.0), "teacher.center": torch.tensor([float("nan")])}
    more["conv1.weight"] = state["conv1.weight"].half()
    more["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].double()
    torch.save(state | more, tmp_path / "w.pth")
    network = classifier("resnet18", 3)
    assert counts(load(network, tmp_path / "w.pth").report) == Counts(matched=122, left_over=1, new=0)
    assert torch.equal(network.conv1.weight, more["conv1.weight"].float()) and network.bn1.num_batches_tracked == 7


@pytest.mark.parametrize("name", ["evil\nerror: all is well", "\x1b[2J", "a\rb", "\ud800", "n" * 10**6])
def test_names_in_reports_and_errors_are_printable(name, network, state, tmp_path):
    torch.save(state | {name: torch.zeros(1)}, tmp_path / "w.pth")
    report = load(network, tmp_path / "w.pth").report
    assert report.isprintable() and len(report) < 500 and "1 (" in report
    for content in ({name: torch.zeros(1)}, {name: 3}):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError) as raised:
            load(network, tmp_path / "w.pth")
        assert str(raised.value).replace("\n", "").isprintable() and len(str(raised.value)) < 500
