"""Reconstructing, tables, and that what the README and the shell scripts name is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from configs.schema import PretrainConfig
from data.frequency_filter import FrequencyFilter
from data.pixels import unit_float
from losses.frequency import grayscale
from models.resnet import masked_frequency_model
from scripts import check_data, config_diff, export_weights, study, summarize
from scripts.reconstruct import draw, pick_images, reconstruct
from tests.helpers import image_folder
from tests.launch import ROOT
from utils.config import parse_command_line, to_dict
from utils.errors import UserError


@pytest.fixture
def pretrained(tmp_path):
    words = ["model.name=resnet18", "data.train_crop_size=32", "filter.radius=3"]
    config = to_dict(parse_command_line(PretrainConfig, words, ""))
    torch.manual_seed(0)
    torch.save({"model": masked_frequency_model("resnet18", 1).state_dict(), "config": config}, tmp_path / "mfm.pt")
    return tmp_path / "mfm.pt"


def test_completed_image_keeps_the_input_frequencies_and_the_figure_shows_it(pretrained, tmp_path):
    image_folder(tmp_path / "images", per_class=3, size=(32, 32))
    paths = pick_images([str(tmp_path / "images")], 4)
    assert len(set(paths)) == 4 and {Path(path).parent.name for path in paths} == {"ant", "bee"}
    torch.manual_seed(0)
    images = (100 + 40 * torch.rand(4, 3, 32, 32)).byte()  # low contrast, so that nothing is clipped
    columns = reconstruct(str(pretrained), images)
    assert torch.equal(columns["original"], unit_float(images))
    low_pass, keep_low = FrequencyFilter(3), torch.ones(4, dtype=torch.bool)
    expected = low_pass(grayscale(unit_float(images)), keep_low)
    inside = (columns["completed\nlow-pass"] > 0) & (columns["completed\nlow-pass"] < 1)
    assert inside.all()
    torch.testing.assert_close(low_pass(columns["completed\nlow-pass"], keep_low), expected, atol=2e-3, rtol=0)
    draw(columns, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 7 * 100 and len(figure.convert("L").getcolors()) > 100
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
    for script in (check_data, config_diff, export_weights, study, summarize):
        with pytest.raises(SystemExit):
            script.main(["--help"])
        told += capsys.readouterr().out
    text = re.sub(r"^ +torchrun .* train\.py(.|\n)*?\n\n(.|\n)*?\n\n", "", text, flags=re.MULTILINE)  # timm's own flags
    sections = "run|data|filter|loss|model|optimizer|schedule|train|checkpoint|logging"
    knobs = set(re.findall(rf"`(?:{sections})\.\w+", text))
    assert len(knobs) > 10
    for knob in knobs:
        assert knob[1:] in told or (ROOT / (knob[1:].replace(".", "/") + ".py")).exists(), knob
    for flag in re.findall(r"--(?!nproc|logdir|nodes|max-restarts)[a-z][a-z-]+", text):
        assert flag in told or flag == "--output", flag
