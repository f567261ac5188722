"""Reconstructing, tables, and that what the README and the shell scripts name is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from scripts import check_data, config_diff, export_weights
from scripts.benchmark import benchmark
from scripts.figures import plot, reconstruct, report
from scripts.figures.reconstruct import pick_images
from scripts.study import study, summarize
from tests.support.helpers import image_folder
from tests.support.launch import ROOT
from utils.errors import UserError


def test_images_are_picked_evenly_from_folders(tmp_path):
    image_folder(tmp_path / "images", per_class=3, size=(32, 32))
    paths = pick_images([str(tmp_path / "images")], 4)
    assert len(set(paths)) == 4 and {Path(path).parent.name for path in paths} == {"ant", "bee"}
    with pytest.raises(UserError, match="nowhere: no such image"):
        pick_images([str(tmp_path / "nowhere")], 4)


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.s[hb]*")))
def test_shell_scripts_parse_and_name_files_that_exist(script):
    path = ROOT / "scripts" / script
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    for name in re.findall(r"(?:configs|scripts)/[\w.]+\.(?:yaml|py|sh)", path.read_text()):
        assert (ROOT / name).is_file(), name


def test_readme_names_files_and_knobs_that_exist(capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(
        r"(?<![\w/])(?:configs|scripts|data|models|losses|utils)/[\w/]+\.(?:yaml|py|sh|sbatch|png|json)", text
    ):
        assert (ROOT / name).is_file(), name
    told = ""
    for entry in ("pretrain", "finetune"):
        with pytest.raises(SystemExit):
            __import__(entry).main(["--help"])
        told += capsys.readouterr().out
    for script in (benchmark, check_data, config_diff, export_weights, plot, reconstruct, report, study, summarize):
        with pytest.raises(SystemExit):
            script.main(["--help"])
        told += capsys.readouterr().out
    for command in ("plan", "step"):
        with pytest.raises(SystemExit):
            benchmark.main([command, "--help"])
        told += capsys.readouterr().out
    text = re.sub(r"^ +torchrun .* train\.py(.|\n)*?\n\n(.|\n)*?\n\n", "", text, flags=re.MULTILINE)  # timm's own flags
    sections = "run|data|filter|loss|model|optimizer|schedule|train|checkpoint|logging"
    knobs = set(re.findall(rf"`(?:{sections})\.\w+", text))
    assert len(knobs) > 10
    for knob in knobs:
        assert knob[1:] in told or (ROOT / (knob[1:].replace(".", "/") + ".py")).exists(), knob
    for flag in re.findall(r"--(?!nproc|logdir|nodes|max-restarts)[a-z][a-z-]+", text):
        assert flag in told or flag in ("--output", "--load"), flag  # --load_fast is TensorBoard's
