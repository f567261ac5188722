"""BCE and cross-entropy on smoothed soft targets, against the formulas written out."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from losses.classification import ClassificationLoss, smooth_labels


def logits_and_targets(batch=6, classes=5, scale=3.0, seed=0):
    draw = np.random.default_rng(seed)
    targets = draw.dirichlet(np.ones(classes) * 0.3, batch)
    return torch.from_numpy(draw.normal(0, scale, (batch, classes))), torch.from_numpy(targets)


def written_out(name, logits, targets, smoothing):
    """The loss in numpy float64, one class of one image at a time."""
    batch, classes = logits.shape
    total = 0.0
    for z, t in zip(logits, targets, strict=True):
        t = np.array([share * (1 - smoothing) + (1 - share) * smoothing / (classes - 1) for share in t])
        if name == "bce":
            p = 1 / (1 + np.exp(-z))
            total += np.mean(-t * np.log(p) - (1 - t) * np.log(1 - p))
        else:
            total += np.sum(-t * (z - np.log(np.exp(z).sum())))
    return total / batch


def test_smoothed_labels_of_five_classes():
    one_hot = torch.eye(5)[[2, 0]]
    expected = torch.tensor([[0.025, 0.025, 0.9, 0.025, 0.025], [0.9, 0.025, 0.025, 0.025, 0.025]])
    torch.testing.assert_close(smooth_labels(one_hot, 0.1), expected)
    torch.testing.assert_close(smooth_labels(one_hot, 0.0), one_hot, rtol=0, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_commutes_with_mixing(smoothing):
    _, targets = logits_and_targets()
    mixed = 0.3 * targets + 0.7 * targets.roll(1, 0)
    smoothed = smooth_labels(targets, smoothing)
    torch.testing.assert_close(smooth_labels(mixed, smoothing), 0.3 * smoothed + 0.7 * smoothed.roll(1, 0))
    torch.testing.assert_close(smoothed.sum(1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("name", ["bce", "ce"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("batch", "classes"), [(6, 5), (1, 2), (3, 11)])
def test_agrees_with_the_formula(name, smoothing, batch, classes):
    logits, targets = logits_and_targets(batch, classes)
    loss = ClassificationLoss(name, smoothing)(logits, targets)
    assert (loss.shape, loss.dtype) == ((), torch.float64)
    expected = written_out(name, logits.numpy(), targets.numpy(), smoothing)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-12)
    single = ClassificationLoss(name, smoothing)(logits.float(), targets.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(float(single), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["bce", "ce"])
def test_one_hot_targets_agree_with_class_numbers(name):
    logits, _ = logits_and_targets()
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    loss = ClassificationLoss(name)(logits, F.one_hot(labels, 5))
    picked = logits.log_softmax(1) if name == "ce" else F.logsigmoid(logits)
    expected = -picked[range(6), labels].mean()
    if name == "bce":
        others = F.logsigmoid(-logits).sum(1) - F.logsigmoid(-logits)[range(6), labels]
        expected = (-picked[range(6), labels] - others).mean() / 5
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", ["bce", "ce"])
def test_extreme_logits_stay_finite_and_have_a_gradient(name):
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = ClassificationLoss(name, 0.1)(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]


@pytest.mark.parametrize("name", ["bce", "ce"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    logits, targets = logits_and_targets(64, 10)
    logits, targets = logits.to(dtype), targets.float()
    with torch.autocast("cpu", dtype):
        loss = ClassificationLoss(name, 0.1)(logits, targets)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(
        float(loss), written_out(name, logits.double().numpy(), targets.double().numpy(), 0.1), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("focal", 0.1), "'focal'"), (("bce", 1.0), "1.0"), (("ce", -0.1), "-0.1"), (("BCE",), "'bce' or 'ce'")],
)
def test_constructor_refuses(arguments, named):
    with pytest.raises(ValueError, match=named):
        ClassificationLoss(*arguments)
