"""The tiers and the rule about skips, on made-up tests."""

from __future__ import annotations

import sys

import pytest

from tests.support.launch import ROOT, endings, start
from tests.support.tiers import is_avoidable

MADE_UP = """
import pytest

def test_quick(): pass

@pytest.mark.process
def test_job(): pass

@pytest.mark.slow
def test_long(): pass
"""
IN_FAULTS = """
import pytest

def test_kill(): pass

@pytest.mark.slow
def test_many_kills(): pass
"""
SKIPPING = """
import os
import pytest

def test_library(): pytest.importorskip("a_library_that_is_nowhere")

@pytest.mark.skipif(True, reason="needs root to become another user")
def test_root(): pass
"""


def run_pytest(folder, *words, **environment) -> tuple[int, str]:
    """This project's pytest set-up on the tests in a folder. Returns: exit code, output."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml")]
    process = start([*command, "--rootdir", str(folder), "-vv", str(folder), *words], **environment)
    [(code, printed)] = endings([process])
    return code, printed


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "selected"),
    [
        ([], ["test_quick"]),
        (["-m", "process"], ["test_job"]),
        (["-m", "not slow"], ["test_job", "test_kill", "test_quick"]),
        (["-m", "slow"], ["test_long", "test_many_kills"]),
    ],
)
def test_a_tier_is_chosen_by_its_marker(words, selected, tmp_path):
    (tmp_path / "faults").mkdir()
    (tmp_path / "test_made_up.py").write_text(MADE_UP)
    (tmp_path / "faults/test_made_up.py").write_text(IN_FAULTS)
    code, printed = run_pytest(tmp_path, *words)
    passed = [line.partition("::")[2].split()[0] for line in printed.splitlines() if "PASSED" in line]
    assert code == 0 and sorted(passed) == selected, printed


@pytest.mark.process
@pytest.mark.parametrize(("ci", "expected_code"), [("true", 1), ("false", 0)])
def test_a_skip_for_want_of_a_library_fails_in_ci_alone(ci, expected_code, tmp_path):
    (tmp_path / "test_made_up.py").write_text(SKIPPING)
    code, printed = run_pytest(tmp_path, "-rs", CI=ci)
    assert code == expected_code, printed
    assert ("1 failed, 1 skipped" in printed) == (ci == "true"), printed
    assert "needs root to become another user" in printed


def test_what_a_machine_lacks_is_no_fault_of_the_set_up():
    assert is_avoidable("could not import 'timm': No module named 'timm'")
    assert is_avoidable("could not import 'timm': No module named 'timm'")
    assert not is_avoidable("needs network namespaces: root and iproute2")
    assert not is_avoidable("needs Linux's list of instructions")
