"""Exact evaluation: every image once, in integers, against numpy."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.launch import in_one_line
from utils.distributed import World
from utils.errors import UserError
from utils.precision import set_tf32
from utils.training.evaluation import (
    MeaninglessScoreError,
    Mistakes,
    evaluate,
    in_evaluation_layout,
    results_table,
    share_of_rank,
)

CPU = torch.device("cpu")
ALONE = World(0, 1, 1, CPU)
LENGTH, CLASSES, SIDE = 103, 12, 4


class SizeViews:
    """Two resize sizes, or the first one alone."""

    def __init__(self, *sizes):
        self.names = [{"val_resize_size": size} for size in sizes]

    def __call__(self, crops):
        for images in crops.unbind(1):
            yield images.float() / 255 - 0.5


VIEWS, ONE_VIEW = SizeViews(40, 32), SizeViews(40)


class Tiny(nn.Module):
    def __init__(self, classes=CLASSES):
        super().__init__()
        torch.manual_seed(3)
        self.norm, self.linear = nn.BatchNorm2d(3), nn.Linear(3 * SIDE * SIDE, classes)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        return self.linear(self.drop(self.norm(images)).flatten(1))


def data(length=LENGTH, classes=CLASSES, sizes=2):
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (length, sizes, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return crops, torch.randint(0, classes, (length,), generator=generator)


def batches(crops, labels, batch_size):
    return [(crops[numbers], labels[numbers]) for numbers in share_of_rank(len(labels), ALONE, batch_size)]


def by_numpy(model, crops, labels):
    """Counts and mean loss, one image at a time in float64."""
    weight, bias = (parameter.detach().double().numpy() for parameter in model.linear.parameters())
    top1 = top5 = 0
    loss = 0.0
    for image, label in zip(crops.numpy().astype(float), labels.tolist(), strict=True):
        x = (image / 255 - 0.5) / np.sqrt(1 + model.norm.eps)  # BatchNorm's first statistics: mean 0, variance 1
        logits = weight @ x.ravel() + bias
        above = int((logits > logits[label]).sum())
        top1, top5 = top1 + (above < 1), top5 + (above < 5)
        loss += np.log(np.exp(logits).sum()) - logits[label]
    return top1, top5, loss / len(labels)


@pytest.mark.parametrize("batch_size", [1, 7, 103, 1000])
@pytest.mark.parametrize("classes", [CLASSES, 5, 3, 2])
def test_agrees_with_numpy_for_any_batch_size(batch_size, classes):
    model = Tiny(classes)
    crops, labels = data(classes=classes)
    rows = evaluate(model, batches(crops, labels, batch_size), VIEWS, LENGTH, ALONE)
    assert [row["val_resize_size"] for row in rows] == [40, 32]
    for size, row in enumerate(rows):
        top1, top5, loss = by_numpy(model, crops[:, size], labels)
        assert (row["images"], row["top1_count"], row["top5_count"]) == (LENGTH, top1, top5)
        assert all(type(row[name]) is int for name in ("images", "top1_count", "top5_count"))
        assert row["top1"] == 100 * top1 / LENGTH
        assert row["top5"] == 100 * top5 / LENGTH
        assert row["loss"] == pytest.approx(loss, rel=1e-6)
    assert rows[0]["top1_count"] != rows[1]["top1_count"] or rows[0]["loss"] != rows[1]["loss"]
    if classes <= 5:
        assert rows[0]["top5"] == 100
    else:
        assert 0 < rows[0]["top1"] < rows[0]["top5"] < 100


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = Tiny().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, batches(*data(), 7), VIEWS, LENGTH, ALONE)
    assert model.training == model.norm.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("length", "shown"), [(LENGTH + 1, LENGTH), (LENGTH - 1, LENGTH)])
def test_a_count_that_is_not_the_sets_is_an_error(length, shown):
    with pytest.raises(AssertionError, match=f"{shown} images counted, the set has {length}"):
        evaluate(Tiny(), batches(*data(), 7), VIEWS, length, ALONE)


def test_an_image_counted_twice_is_an_error():
    whole = batches(*data(), 50)
    with pytest.raises(AssertionError, match="153 images counted"):
        evaluate(Tiny(), [*whole, whole[0]], VIEWS, LENGTH, ALONE)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 200), st.integers(1, 5), st.integers(1, 40))
def test_ranks_share_the_images_without_overlap_or_padding(length, ranks, batch_size):
    shares = [share_of_rank(length, World(rank, ranks, ranks, CPU), batch_size) for rank in range(ranks)]
    assert sorted(number for share in shares for batch in share for number in batch) == list(range(length))
    assert all(0 < len(batch) <= batch_size for share in shares for batch in share)
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_the_ranks_counts_add_up(ranks):
    model = Tiny()
    crops, labels = data()
    (whole,) = evaluate(model, batches(crops[:, :1], labels, 7), ONE_VIEW, LENGTH, ALONE)
    parts = []
    for rank in range(ranks):
        share = share_of_rank(LENGTH, World(rank, ranks, ranks, CPU), 7)
        count = sum(map(len, share))
        parts += evaluate(model, [(crops[i, :1], labels[i]) for i in share], ONE_VIEW, count, ALONE)
    for name in ("images", "top1_count", "top5_count"):
        assert sum(part[name] for part in parts) == whole[name]
    assert sum(part["loss"] * part["images"] for part in parts) / LENGTH == pytest.approx(whole["loss"], rel=1e-6)


def test_table_is_markdown():
    row = {"val_resize_size": 235, "top1": 78.8264, "top5": 94.1, "loss": 1.23456, "images": 50000}
    assert results_table([row, row | {"val_resize_size": 236, "top1": 5.0}]) == (
        "| val_resize_size | top-1 % | top-5 % | loss | images |\n"
        "|---|---|---|---|---|\n"
        "| 235 | 78.826 | 94.100 | 1.2346 | 50000 |\n"
        "| 236 | 5.000 | 94.100 | 1.2346 | 50000 |"
    )


def collect(world: World, logits, labels, number_of_classes=CLASSES, most=8) -> Mistakes:
    mistakes = Mistakes(number_of_classes, world, most)
    for numbers in share_of_rank(len(labels), world, 7):
        mistakes.add(logits[numbers], labels[numbers])
    return mistakes


@pytest.mark.parametrize("classes", [CLASSES, 101])
def test_mistakes_are_counted_and_the_surest_found(classes):
    generator = torch.Generator().manual_seed(1)
    logits, labels = 3 * torch.randn(LENGTH, classes, generator=generator), data(classes=classes)[1]
    confusion, surest = collect(ALONE, logits, labels, classes).collected()
    predicted = logits.argmax(1)
    if classes > 100:
        assert len(confusion) == 0
    else:
        expected = np.zeros((classes, classes), int)
        for true, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
            expected[true, guess] += 1
        assert confusion.dtype == torch.int64 and confusion.tolist() == expected.tolist()
    exponentials = np.exp(logits.double().numpy())
    confidence = (exponentials / exponentials.sum(1, keepdims=True)).max(1)
    wrong = [n for n in np.argsort(-confidence) if predicted[n] != labels[n]][:8]
    assert [row[1:] for row in surest] == [(n, labels[n], predicted[n]) for n in wrong]
    assert [row[0] for row in surest] == pytest.approx(confidence[wrong].tolist())


def test_mistakes_of_ranks_are_those_of_one():
    logits, labels = 3 * torch.randn(LENGTH, CLASSES, generator=torch.Generator().manual_seed(2)), data()[1]
    whole, parts = collect(ALONE, logits, labels), [collect(World(r, 3, 3, CPU), logits, labels) for r in range(3)]
    assert torch.equal(sum(part.confusion for part in parts), whole.confusion)
    surest = sorted((row for part in parts for row in part.surest.tolist()), reverse=True)[:8]
    assert surest == sorted(whole.surest.tolist(), reverse=True)


def test_no_mistake_is_none():
    labels = data()[1]
    confusion, surest = collect(ALONE, torch.nn.functional.one_hot(labels, CLASSES).float(), labels).collected()
    assert surest == [] and confusion.trace() == LENGTH


@pytest.mark.parametrize("batch_size", [1, 7, LENGTH])
def test_of_equally_sure_mistakes_the_first_images_are_named(batch_size):
    """Whatever the batches: all logits are alike, so every mistake is as sure as the next."""
    logits, labels = torch.zeros(LENGTH, CLASSES), data()[1]
    logits[:, 4] = 1.0
    mistakes = Mistakes(CLASSES, ALONE)
    for numbers in share_of_rank(LENGTH, ALONE, batch_size):
        mistakes.add(logits[numbers], labels[numbers])
    wrong = [number for number in range(LENGTH) if labels[number] != 4]
    assert [mistake.image for mistake in mistakes.collected()[1]] == wrong[:8]


def test_of_equally_sure_mistakes_of_two_ranks_the_first_images_are_named():
    """Each rank keeps its own first ones; together they are put into the order of the images."""
    logits, labels = torch.zeros(LENGTH, CLASSES), data()[1]
    logits[:, 4] = 1.0
    parts = [collect(World(rank, 2, 2, CPU), logits, labels) for rank in range(2)]

    class Both(World):
        def gather(self, value):
            return [parts[1].surest.tolist(), value]

        def sum(self, tensor):
            return tensor

    parts[0].world = Both(0, 2, 2, CPU)
    wrong = [number for number in range(LENGTH) if labels[number] != 4]
    assert [mistake.image for mistake in parts[0].collected()[1]] == wrong[:8]


def test_the_model_sees_float32_without_tf32_or_search_whatever_the_run_trains_with(monkeypatch):
    seen = []
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)

    class Watch(Tiny):
        def forward(self, images):
            seen.append((cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, images.dtype))
            return super().forward(images)

    set_tf32(True)
    try:
        evaluate(Watch(), batches(*data(), 50), VIEWS, LENGTH, ALONE)
        outside = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    finally:
        set_tf32(False)
    assert set(seen) == {(False, False, True, torch.float32)}
    assert outside == (True, True, False)


def test_an_evaluation_sees_the_layout_that_is_asked_for():
    """On a GPU that of float32: a copy, so that the weights in training stay in the layout of their moments."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    assert in_evaluation_layout(model, None) is model and in_evaluation_layout(model, True) is model  # on a CPU
    copied = in_evaluation_layout(model, False)
    assert copied[0].weight.is_contiguous() and not model[0].weight.is_contiguous()
    for name, tensor in model.state_dict().items():
        assert torch.equal(copied.state_dict()[name], tensor)
    assert in_evaluation_layout(copied, False) is copied  # nothing to convert


class NotFinite(nn.Module):
    """Logits of which those of some images hold a number that is not finite, by the images' first pixel."""

    def __init__(self, value: float, brightest: float):
        super().__init__()
        self.value, self.brightest = value, brightest

    def forward(self, images):
        logits = torch.zeros(len(images), CLASSES)
        logits[images[:, 0, 0, 0] > self.brightest, 3] = self.value
        return logits


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_logits_that_are_not_finite_are_an_error_that_counts_the_images(value, batch_size):
    crops, labels = data()
    bad = int((crops[:, 1, 0, 0, 0] / 255 - 0.5 > 0.3).sum())
    assert 0 < bad < LENGTH and (crops[:, 0, 0, 0, 0] / 255 - 0.5 > 0.3).sum() > 0
    views = SizeViews(40, 32)
    crops[:, 0] = 0  # of the first view all are finite
    with pytest.raises(UserError, match=rf"val_resize_size 32\): the logits of {bad} of {LENGTH} images are not"):
        evaluate(NotFinite(value, 0.3), batches(crops, labels, batch_size), views, LENGTH, ALONE)


def test_large_but_finite_logits_give_a_score_and_a_warning(capsys):
    crops, labels = data(sizes=1)
    [row] = evaluate(NotFinite(3e38, 0.3), batches(crops, labels, 10), ONE_VIEW, LENGTH, ALONE)
    assert np.isfinite(row["loss"]) and row["images"] == LENGTH
    assert "the weights or BatchNorm's statistics have run away" in in_one_line(capsys.readouterr().out)


@pytest.mark.parametrize("part", ["linear.weight", "norm.weight"])
@pytest.mark.parametrize("batch_size", [1, 10, LENGTH])
def test_logits_that_are_all_the_same_are_no_score(part, batch_size):
    crops, labels = data()
    model = Tiny()
    with torch.no_grad():
        model.get_parameter(part).zero_()
    with pytest.raises(MeaninglessScoreError, match=f"the logits of all {LENGTH} images are the same: no score"):
        evaluate(model, batches(crops, labels, batch_size), VIEWS, LENGTH, ALONE)


@pytest.mark.parametrize("level_apart", [0, 1])
def test_a_real_network_tells_one_level_of_255_from_rounding(level_apart):
    """In batches of 5 and 1, whose kernels round differently."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3).to(memory_format=torch.channels_last)
    crops = torch.full((6, 1, 3, 32, 32), 20, dtype=torch.uint8)
    crops[3:] += level_apart
    of_views = batches(crops, torch.zeros(6, dtype=torch.int64), 5)
    if level_apart:
        assert evaluate(network, of_views, ONE_VIEW, 6, ALONE)[0]["images"] == 6
        return
    with pytest.raises(MeaninglessScoreError):
        evaluate(network, of_views, ONE_VIEW, 6, ALONE)


def test_one_view_without_differences_is_a_score_beside_others():
    """As in a sweep, where a filter may leave nothing of the images."""
    crops, labels = data()
    crops[:, 1] = 128
    rows = evaluate(Tiny(), batches(crops, labels, 10), VIEWS, LENGTH, ALONE)
    assert [row["images"] for row in rows] == [LENGTH, LENGTH]


def test_of_a_single_image_nothing_is_said():
    crops, labels = data(length=1)
    assert evaluate(Tiny(), batches(crops, labels, 10), VIEWS, 1, ALONE)[0]["images"] == 1
