"""BCE and cross-entropy on smoothed soft targets, against the formulas written out."""

import numpy as np
import pytest
import torch
from timm.loss import BinaryCrossEntropy
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


def value_and_gradient(loss, logits, targets):
    logits = logits.clone().requires_grad_()
    value = loss(logits, targets)
    value.backward()
    return value.detach(), logits.grad


def mixed_targets(share, classes=5):
    """One image: `share` of class 1, the rest of class 3."""
    targets = torch.zeros(1, classes, dtype=torch.float64)
    targets[0, 1], targets[0, 3] = share, 1 - share
    return targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("multi_label", [False, True])
def test_equals_timms_bce_in_value_and_gradient(multi_label, smoothing):
    """timm has dense targets smoothed before its loss, as its Mixup does; class numbers it smooths itself."""
    ours = ClassificationLoss("bce", smoothing, multi_label)
    timms = BinaryCrossEntropy(smoothing, target_threshold=0.2 if multi_label else None)
    logits, targets = logits_and_targets(batch=64)
    for expected, got in zip(
        value_and_gradient(timms, logits, smooth_labels(targets, smoothing)),
        value_and_gradient(ours, logits, targets),
        strict=True,
    ):
        assert expected.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=1e-15, atol=0)
    labels = torch.arange(64) % 5
    if multi_label or not smoothing:  # timm shares the smoothing among all classes, CoinCheung/MFM among the others
        one_hot = F.one_hot(labels, 5).double()
        for expected, got in zip(
            value_and_gradient(timms, logits, labels), value_and_gradient(ours, logits, one_hot), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-15, atol=0)


def test_multi_label_and_soft_targets_of_a_mixed_image_in_numbers():
    logits = torch.tensor([[0.5, 1.0, -2.0, 0.25, -1.0]], dtype=torch.float64)
    targets, picked = mixed_targets(0.7), torch.sigmoid(logits)[0].tolist()
    both = -np.log(picked[1]) - np.log(picked[3]) - sum(np.log(1 - picked[k]) for k in (0, 2, 4))
    np.testing.assert_allclose(float(ClassificationLoss("bce", 0.0, True)(logits, targets)), both / 5, rtol=1e-14)
    soft = float(ClassificationLoss("bce", 0.0)(logits, targets))
    np.testing.assert_allclose(soft, written_out("bce", logits.numpy(), targets.numpy(), 0.0), rtol=1e-12)
    assert abs(soft - both / 5) > 0.01


@pytest.mark.parametrize(
    ("share", "smoothing", "is_true"),
    [
        (0.3, 0.0, True), (0.2 + 1e-9, 0.0, True), (0.2, 0.0, False), (0.1, 0.0, False), (0.0, 0.0, False),
        (0.199, 0.1, False), (0.201, 0.1, True),
    ],
)  # fmt: skip
def test_a_class_with_a_share_of_a_fifth_or_less_is_false(share, smoothing, is_true):
    """Of five classes smoothing makes share s into s (1 − 0.125) + 0.025, so that 0.2 stays where it is."""
    logits = torch.zeros(1, 5, dtype=torch.float64)
    _, gradient = value_and_gradient(ClassificationLoss("bce", smoothing, True), logits, mixed_targets(share))
    expected = torch.full((1, 5), 0.1, dtype=torch.float64)  # (sigmoid(0) − target) / 5
    expected[0, 3] = -0.1
    expected[0, 1] = -0.1 if is_true else 0.1
    torch.testing.assert_close(gradient, expected)


def test_multi_label_is_off_unless_asked_for_and_for_bce_only():
    logits, targets = logits_and_targets()
    off = ClassificationLoss("bce", 0.1)(logits, targets)
    assert torch.equal(off, ClassificationLoss("bce", 0.1, multi_label=False)(logits, targets))
    with pytest.raises(ValueError, match="multi_label with name = 'ce': must be 'bce'"):
        ClassificationLoss("ce", 0.0, multi_label=True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("focal", 0.1), "'focal'"), (("bce", 1.0), "1.0"), (("ce", -0.1), "-0.1"), (("BCE",), "'bce' or 'ce'")],
)
def test_constructor_refuses(arguments, named):
    with pytest.raises(ValueError, match=named):
        ClassificationLoss(*arguments)
