"""Tiers, skips that fail in CI, property tests without deadlines, one long run that many tests share."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.support.helpers import image_folder
from tests.support.launch import PRETRAIN, SharedRun, overriding, torchrun
from tests.support.tiers import is_avoidable, tier_to_add

# Machines are noisy, so nothing has a deadline. In CI the examples are the same each time.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        markers = {marker.name for marker in item.iter_markers()}
        tier = tier_to_add(markers, folder=item.path.parent.name)
        if tier:
            item.add_marker(tier)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    fail_if_avoidable(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    fail_if_avoidable(report)
    return report


def fail_if_avoidable(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a test that is skipped for want of an installation fails: a green run has run it."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if is_avoidable(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not accept: {reason}"


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> SharedRun:
    """Ten epochs of 3 steps of 4 micro-batches on two ranks with two loader workers each, by nothing disturbed."""
    ranks, workers = 2, 2
    root = tmp_path_factory.mktemp("images")
    image_folder(root / "train", ("ant", "bee", "cat"), per_class=17)
    words = overriding(PRETRAIN, f"data.workers={workers}", "checkpoint.every_steps=4", "optimizer.ema_decay=0.9")
    words += ["logging.pictures_every_steps=null"]
    words += ["--epochs", "10", "--batch-size", "16", "train.images_per_device=4", "--data-path", str(root)]
    output = tmp_path_factory.mktemp("uninterrupted")
    code, printed = torchrun(ranks, "pretrain.py", *words, "--output-dir", str(output))
    assert code == 0, printed
    return SharedRun(words=words, output=output, ranks=ranks, workers=workers, steps=30)
