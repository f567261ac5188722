"""Real runs with hostile names, shared by the tests of everything that draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.helpers import image_folder
from tests.support.launch import FINETUNE, PRETRAIN, finetune, overriding, pretrain

CLASSES = ("<script>alert(1)<script>", "qu\"o'te&amp;", "雪 Ёлка مرحبا $x_1^{2}$", "n" * 251 + ".bin")
RUNS = ("<img src=x onerror=alert(2)>", "_$\\frac{1}$ \"'`|", "r" * 255)
FILES_OF_RUN = ("config.yaml", "log.jsonl", "result.json")


@dataclass(frozen=True)
class HostileRuns:
    """A pretraining, and a finetuning with its sweep, twice, which differ in the seed that they state."""

    images: Path
    pretraining: Path
    finetuning: Path
    second_seed: Path

    @property
    def folders(self) -> list[Path]:
        return [self.pretraining, self.finetuning, self.second_seed]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> HostileRuns:
    root = tmp_path_factory.mktemp("runs")
    for split, count in (("train", 4), ("val", 2)):
        image_folder(root / "images" / split, CLASSES, per_class=count, seed=count)
    folder = root / "images/val" / CLASSES[0]
    (folder / "0.png").rename(folder / '"><script>1.png')
    first, second, third = (root / "logs" / name for name in RUNS)
    batch = ["--batch-size", "8", "train.images_per_device=8", "--data-path", str(root / "images")]
    words = [*PRETRAIN, *batch, "--output-dir", str(first)]
    assert pretrain([*words, "--epochs", "2", "logging.pictures_every_steps=2"]) == 0
    words = [*overriding(FINETUNE, "data.val_resize_size=[40]"), *batch, "--output-dir", str(second)]
    assert finetune([*words, "--epochs", "1"]) == 0
    words += ["--weights", str(second / "checkpoints/last.pt")]
    assert finetune([*words, "--eval-only", "--frequency-sweep"]) == 0
    third.mkdir()
    (sweep,) = second.glob("frequency_sweep_*.json")
    for name in (*FILES_OF_RUN, sweep.name):
        (third / name).write_text((second / name).read_text().replace("seed: 0", "seed: 1"))
    return HostileRuns(root / "images", first, second, third)
