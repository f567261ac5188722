"""Every script answers --help, and the files that scripts name exist."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import ROOT

PYTHON_FILES = sorted((ROOT / "scripts").rglob("*.py"))
SCRIPTS = [path for path in PYTHON_FILES if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")]
SHELL_SCRIPTS = sorted((ROOT / "scripts").glob("*.s[hb]*"))
FILE_OF_REPOSITORY = re.compile(
    r"(?<![\w/.])(?:configs|scripts|data|models|losses|utils)/[\w/]+\.(?:yaml|py|sh|sbatch)"
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_scripts():
    assert {"config_diff.py", "study.py", "plot.py", "benchmark.py"} <= {path.name for path in SCRIPTS}
    assert len(SHELL_SCRIPTS) >= 5


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_scripts_answer_help(script, capsys):
    module = importlib.import_module(".".join(script.relative_to(ROOT).with_suffix("").parts))
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: ")


@pytest.mark.process
@pytest.mark.parametrize("script", ["config_diff.py", "study/summarize.py", "figures/plot.py"])
def test_scripts_run_from_anywhere(script, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / script), "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stdout.startswith("usage: "), ended.stderr


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=name_of)
def test_shell_scripts_parse(script):
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


@pytest.mark.parametrize("script", [*PYTHON_FILES, *SHELL_SCRIPTS], ids=name_of)
def test_files_that_scripts_name_exist(script):
    for name in FILE_OF_REPOSITORY.findall(script.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name
