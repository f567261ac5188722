"""Who may import whom: `data` and `losses` know nothing of `models`, and nothing knows an entry file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import ROOT

ENTRIES = ("pretrain", "finetune")
OURS = ("configs", "data", "losses", "models", "scripts", "tests", "utils", *ENTRIES)
# Folder of a file -> what it may import of this project. Entry files and scripts may import everything.
ALLOWED = {
    "models": ("models", "losses", "utils", "configs.schema"),
    "data": ("data", "utils"),
    "losses": ("losses", "utils"),
    "configs": (),
    "utils/run": ("utils", "configs.schema"),
    "utils/training": ("utils", "configs.schema"),
    "utils/scoring": ("utils", "configs.schema", "data", "models"),
    "utils": ("utils",),
}


def imported_modules(source: str, root: Path) -> set[str]:
    """Every module that a source imports, at its top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"  # as in `from utils import files`
                modules.add(submodule if file_of(submodule, root).is_file() else node.module)
    return modules


def file_of(module: str, root: Path) -> Path:
    return root / f"{module.replace('.', '/')}.py"


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def is_script_of_another_folder(module: str, importer: Path, root: Path) -> bool:
    file = file_of(module, root)
    return file.is_file() and file.parent != importer.parent and 'if __name__ == "__main__":' in file.read_text()


def problem_of(importer: Path, module: str, root: Path) -> str | None:
    """What is wrong with this import of a module; None if nothing is."""
    if not is_within(module, OURS):
        return None
    if is_within(module, ENTRIES):
        return "an entry file"
    if importer.relative_to(root).parts[0] == "tests":
        return None  # tests may import everything else
    if is_within(module, ("tests",)):
        return "a test"
    if is_script_of_another_folder(module, importer, root):
        return "a script of another folder"
    folder = str(importer.parent.relative_to(root))
    if folder in ALLOWED and not is_within(module, ALLOWED[folder]):
        return f"files of {folder} may import {', '.join(ALLOWED[folder]) or 'nothing of this project'}"
    return None


def forbidden_imports(root: Path) -> list[str]:
    lines = []
    for importer in sorted(root.rglob("*.py")):
        name = importer.relative_to(root)
        if name.parts[0].startswith("."):
            continue
        for module in sorted(imported_modules(importer.read_text(), root)):
            problem = problem_of(importer, module, root)
            if problem:
                lines.append(f"{name} imports {module}: {problem}")
    return lines


def test_every_import_is_allowed():
    assert forbidden_imports(ROOT) == []


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        ("data/folder.py", "from utils.files import x", None),
        ("data/folder.py", "from models.trunk import x", "files of data may import data, utils"),
        ("losses/frequency.py", "from configs.schema import x", "files of losses may import losses, utils"),
        ("models/mfm.py", "from configs.schema import x", None),
        ("models/mfm.py", "def f():\n    import data.folder", "files of models may import models, losses"),
        ("configs/schema.py", "import math\nfrom utils.files import x", "files of configs may import nothing"),
        ("utils/run/job.py", "from configs.schema import x", None),
        ("utils/config.py", "from configs.schema import x", "files of utils may import utils"),
        ("utils/config.py", "from utils import run", None),
        ("utils/scoring/hook.py", "from data.folder import x\nfrom models.trunk import y", None),
        ("scripts/export.py", "from pretrain import main", "an entry file"),
        ("tests/test_end_to_end.py", "import finetune", "an entry file"),
        ("tests/test_end_to_end.py", "from scripts.figures.plot import x", None),
        ("scripts/figures/report.py", "from scripts.figures.plot import x", None),
        ("scripts/figures/report.py", "from scripts.study.arms import x", None),
        ("scripts/study/arms.py", "from scripts.figures.plot import x", "a script of another folder"),
        ("scripts/study/arms.py", "from scripts.figures import plot", "a script of another folder"),
        ("pretrain.py", "from tests.support import x", "a test"),
        ("pretrain.py", "from torchvision import models\nimport numpy", None),
    ],
)
def test_a_forbidden_import_is_seen_and_an_allowed_one_is_not(name, line, problem, tmp_path):
    script = tmp_path / "scripts/figures/plot.py"
    importer = tmp_path / name
    for path in (script, importer):
        path.parent.mkdir(parents=True, exist_ok=True)
    script.write_text('if __name__ == "__main__":\n    pass\n')
    importer.write_text(line)
    lines = forbidden_imports(tmp_path)
    if problem is None:
        assert lines == []
    else:
        assert len(lines) == 1 and lines[0].startswith(f"{name} imports ") and problem in lines[0]


@pytest.mark.process
def test_training_starts_without_the_libraries_of_figures():
    """matplotlib is imported where something is drawn, so that five packages are enough to train."""
    program = (
        "import runpy, sys; runpy.run_path('pretrain.py'); runpy.run_path('finetune.py'); "
        "print([name for name in ('matplotlib', 'scipy') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"
