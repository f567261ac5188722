"""Studies: killed and started again, changed under way, refused with a reason, and listed for a cluster."""

from __future__ import annotations

import collections
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.study import study
from scripts.study.comparisons import summarize
from scripts.study.plan import read_study
from scripts.study.planned_run import FINETUNING, PRETRAINING, PROBE, PlannedRun
from scripts.study.read_runs import read_results
from scripts.study.scheduler import Machine, Scheduler
from tests.support.helpers import image_folder
from tests.support.launch import ROOT
from utils.config import to_dict, to_yaml, with_value
from utils.errors import UserError
from utils.run.log_file import is_training_line, read_lines
from utils.run.reading import resolved_config

STUDY = """
study:
  pretrain: >-
    --config {root}/configs/sample_pretrain.yaml model.name=resnet18 data.train_crop_size=32 filter.radius=3 --epochs 4
    schedule.warmup_epochs=0 {shared}
  finetune: >-
    --config {root}/configs/sample_finetune.yaml model.name=resnet18 data.train_crop_size=32 --epochs 4
    schedule.warmup_epochs=0 data.val_crop_size=32 --val-resize-size 32 36 {shared}
pretrainings:
  mfm: optimizer.learning_rate=1e-3
arms:
  scratch: {{finetune: loss.name=bce}}
  mfm: {{pretraining: mfm, finetune: loss.name=bce}}
"""
SHARED = (
    "train.precision=float32 data.workers=0 logging.every_steps=1 checkpoint.keep=1 checkpoint.every_steps=2 "
    "--batch-size 4 train.images_per_device=4 --data-path {}"
)
RUNS = ["pretrain/mfm/p0", "finetune/mfm/p0_f0", "finetune/scratch/f0"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A study of three runs of 12 steps."""
    root = tmp_path_factory.mktemp("study")
    image_folder(root / "images/train", per_class=6)
    image_folder(root / "images/val", per_class=8, seed=1)
    (root / "tiny.yaml").write_text(STUDY.format(root=ROOT, shared=SHARED.format(root / "images")))
    return root / "tiny.yaml"


def start(path: Path, output: Path) -> subprocess.Popen:
    script = str(ROOT / "scripts/study/study.py")
    words = [sys.executable, script, str(path), "--output-dir", str(output), "--jobs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def wait_for(condition, what: str, seconds: float = 120):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    pytest.fail(f"waited in vain for {what}")


def checkpoints(output: Path) -> set[Path]:
    return set(output.glob("*/*/*/checkpoints/step_*.pt"))


def holder(folder: Path) -> int:
    """The process that works on a run."""
    return int(re.search(r"pid (\d+)", (folder / "run.lock").read_text())[1])


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def fresh_checkpoint(output: Path, before: set[Path]) -> Path:
    """The folder of a run under way that has saved something since `before`, and is not yet done."""

    def found():
        folders = [path.parent.parent for path in checkpoints(output) - before]
        return next((folder for folder in folders if not (folder / "result.json").exists()), None)

    return wait_for(found, "a checkpoint")


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    process = start(tiny, output)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return output


@pytest.mark.process
def test_killed_three_times_a_study_ends_with_the_same_table_and_runs_nothing_twice(tiny, uninterrupted, tmp_path):
    output, results = tmp_path / "killed", {}

    def remember_results():
        for path in output.glob("*/*/*/result.json"):
            results.setdefault(path, path.stat().st_mtime_ns)

    process = start(tiny, output)  # first: study.py's process group, outright
    run = holder(fresh_checkpoint(output, set()))
    os.kill(run, signal.SIGSTOP)  # so that it cannot just finish
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    try:
        wait_for(lambda: not alive(run), "the run to die with its study", seconds=20)
    finally:
        if alive(run):
            os.kill(run, signal.SIGKILL)
    remember_results()

    process = start(tiny, output)  # second: asked to stop, as a terminal or a batch system does
    fresh_checkpoint(output, checkpoints(output))
    process.terminate()
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75 and "stopped on request" in printed, printed
    stopped = [path.read_text() for path in output.glob("*/*/*/console.log")]
    assert any("stopped on request" in text for text in stopped)
    remember_results()

    process = start(tiny, output)  # third: one run alone; the study goes on with the others and tells
    run = fresh_checkpoint(output, checkpoints(output))
    os.kill(holder(run), signal.SIGKILL)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and f"FAILED {run}: exit code -9\n    " in printed, printed
    remember_results()

    process = start(tiny, output)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert f"{len(results)} of 3 runs finished already" in printed
    assert all(path.stat().st_mtime_ns == written for path, written in results.items())
    for name in ("results.csv", "table.md"):
        assert (output / name).read_text() == (uninterrupted / name).read_text()
    for run in RUNS:
        steps = [line["step"] for line in read_lines(output / run / "log.jsonl") if is_training_line(line)]
        assert steps == list(range(1, 13)), run


@pytest.mark.process
def test_the_study_leaves_table_csv_and_configs(uninterrupted):
    rows = (uninterrupted / "results.csv").read_text().splitlines()
    assert rows[0] == "arm,pretrain_seed,finetune_seed,val_resize_size,score,labels,after,top1"
    scored = ["mfm,0,0,32", "mfm,0,0,36", "scratch,,0,32", "scratch,,0,36"]
    assert [row.rsplit(",", 1)[0] for row in rows[1:]] == [f"{run},finetuning,1," for run in scored]
    table = (uninterrupted / "table.md").read_text()
    assert "- mfm − scratch differ in: pretraining: none -> a checkpoint of this project\n" in table
    assert resolved_config(str(uninterrupted / "configs/pretrain_mfm.yaml"))["filter.radius"] == 3
    assert resolved_config(str(uninterrupted / "configs/finetune_scratch.yaml"))["data.val_crop_size"] == 32


PROBED = """study:
  probe: >-
    --config {root}/configs/sample_finetune.yaml model.name=resnet18 --data-path {images} data.val_crop_size=32
    --val-resize-size 36 data.workers=0
  label_fractions: [0.5, 1.0]
  at_steps: [3]
"""


def add_probe_of_another_size(folder: Path) -> None:
    """As by hand, with a name that comes before the study's."""
    content = json.loads((folder / "probe_step_00000012.json").read_text())
    content["decided_by"]["val_resize_size"] = [48]
    (folder / "probe_step_00000012-2.json").write_text(json.dumps(content))


@pytest.mark.process
def test_a_study_probes_its_pretrainings_and_finetunes_with_every_share(tiny, tmp_path, capsys):
    words = PROBED.format(root=ROOT, images=tiny.parent / "images")
    text = (
        tiny.read_text()
        .replace("study:\n", words)
        .replace("filter.radius=3", "filter.radius=3 run.probe_every_epochs=2")
    )
    (tmp_path / "probed.yaml").write_text(text)
    output = tmp_path / "out"
    printed, _ = start(tmp_path / "probed.yaml", output).communicate(timeout=300)
    assert "6 of 6 runs; written to" in printed, printed
    rows = [row.split(",") for row in (output / "results.csv").read_text().splitlines()[1:]]
    at_36 = [(row[0], *row[4:7]) for row in rows if row[3] in ("36", "37")]
    finetunings = list(itertools.product(("mfm", "scratch"), ("finetuning",), ("0.5", "1"), ("", "3")))
    curve = [("mfm", "knn while pretraining", "1", str(epochs)) for epochs in (2, 4)]
    probes = [
        ("mfm", method, "1", "") for method in ("knn", "pixels_knn")
    ]  # so few images are no base for a linear one
    assert set(finetunings + curve + probes) <= set(at_36)
    names = {path.name for path in output.iterdir()}
    assert {"labels_at_36.png", "labels_at_36_after_3_steps.png", "knn_at_37.png", "table.md"} <= names
    assert {"finetune_mfm_labels_0.5.yaml", "finetune_mfm.yaml"} <= {
        path.name for path in (output / "configs").iterdir()
    }

    assert study.main([str(tmp_path / "probed.yaml"), "--output-dir", str(output), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["finished"] * 6
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("--val-resize-size 36 data", "--val-resize-size 40 data"))
    with pytest.raises(UserError, match=r"evaluations: finished .*data.val_resize_size: \[36\] -> \[40\]"):
        study.main([str(other), "--output-dir", str(output), "--dry-run"])
    add_probe_of_another_size(output / "pretrain/mfm/p0/evaluations")
    assert study.main([str(tmp_path / "probed.yaml"), "--output-dir", str(output), "--dry-run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:6]] == ["finished"] * 6
    for file in (output / "pretrain/mfm/p0/evaluations").iterdir():
        file.unlink()
    printed, _ = start(tmp_path / "probed.yaml", output).communicate(timeout=300)
    assert "5 of 6 runs finished already, 1 to do" in printed and "6 of 6 runs; written to" in printed


@pytest.mark.process
@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("loss.name=bce}", "loss.name=ce}", r"scratch/f0: finished .*\(loss.name: bce -> ce\)"),
        ("32 36", "32 40", r"finished .*data.val_resize_size: \[32, 36\] -> \[32, 40\]"),
        ("learning_rate=1e-3", "learning_rate=2e-3", r"p0: finished .*optimizer.learning_rate: 0.001 -> 0.002"),
    ],
)
def test_a_finished_run_of_another_config_is_an_error(old, new, sentence, tiny, uninterrupted, tmp_path):
    changed = tmp_path / "changed.yaml"
    changed.write_text(tiny.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=sentence):
        study.main([str(changed), "--output-dir", str(uninterrupted), "--dry-run"])


@pytest.mark.process
def test_a_finetuning_from_another_pretraining_is_an_error(tiny, uninterrupted, tmp_path):
    changed = tmp_path / "changed.yaml"
    changed.write_text(tiny.read_text().replace("learning_rate=1e-3", "learning_rate=2e-3"))
    runs = read_study(str(changed), uninterrupted).runs
    with pytest.raises(UserError, match=r"p0_f0: finished .*pretraining's optimizer.learning_rate: 0.001 -> 0.002"):
        next(run for run in runs if run.needs).finished()


@pytest.mark.process
def test_a_dry_run_tells_what_is_left_and_how_long_it_takes(tiny, uninterrupted, tmp_path, capsys):
    assert study.main([str(tiny), "--output-dir", str(tmp_path / "new"), "--dry-run", "--jobs", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["to"] * 3
    assert lines[-1] == "3 runs; about 180 minutes left in all, 60 with --jobs 3"
    assert study.main([str(tiny), "--output-dir", str(uninterrupted), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["finished"] * 3
    assert lines[-1].startswith("3 runs; about 0 minutes left") and "60.0 min" not in lines[0]
    assert not (tmp_path / "new").exists()


def test_a_slurm_array_runs_the_lines_of_the_list(tiny, tmp_path, capsys):
    """scripts/slurm.sbatch itself, with srun and scontrol that only tell what they were given."""
    assert study.main([str(tiny), "--output-dir", str(tmp_path / "out"), "--print-commands"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("python finetune.py") == 2 and printed.count("--resume auto") == 3
    arrays = re.findall(
        r"sbatch (?:--dependency=(afterany)\S* )?--gpus-per-node=1 --array=(\S+) scripts/slurm.sbatch (\S+)", printed
    )
    files = [(after, numbers, Path(path).name) for after, numbers, path in arrays]
    scratch = ("", "1", "finetune_scratch.txt")
    assert files == [("", "1", "pretrain.txt"), scratch, ("afterany", "1", "finetune.txt")]
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "1", "SLURM_ARRAY_TASK_ID": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }  # fmt: skip
    words = ["bash", str(ROOT / "scripts/slurm.sbatch"), arrays[2][2]]
    ran = subprocess.run(words, env=os.environ | slurm, capture_output=True, text=True, check=True).stdout.splitlines()
    assert ran[ran.index("finetune.py") :] == [*Path(arrays[2][2]).read_text().split(), "--resume", "auto"]
    slurm["SLURM_ARRAY_TASK_ID"] = "2"
    ended = subprocess.run(words, env=os.environ | slurm, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "finetune.txt has no line 2" in ended.stderr


@pytest.mark.process
def test_the_numbers_of_a_slurm_list_stay_when_some_have_finished(tiny, uninterrupted, tmp_path, capsys):
    (tmp_path / "pretrain/mfm").mkdir(parents=True)
    shutil.copytree(uninterrupted / "pretrain/mfm/p0", tmp_path / "pretrain/mfm/p0")
    more = tmp_path / "more.yaml"
    more.write_text(tiny.read_text().replace("pretrainings:", "  pretrain_seeds: [0, 1]\npretrainings:", 1))
    assert study.main([str(more), "--output-dir", str(tmp_path), "--print-commands"]) == 0
    assert "--array=2 scripts/slurm.sbatch" in capsys.readouterr().out
    assert (tmp_path / "pretrain.txt").read_text().count("pretrain.py") == 2


@pytest.mark.process
def test_the_csv_and_configs_of_a_study_give_its_table_again(uninterrupted):
    arms = read_results([uninterrupted / "results.csv"])
    folders = read_results([uninterrupted / "finetune/mfm", uninterrupted / "finetune/scratch"])
    ours, theirs = (summarize(one, ["scratch"], ["pretraining"], None) for one in (arms, folders))
    assert ours == theirs and ours["32"]["comparisons"][0]["warning"] == ""


def test_no_two_finetunings_share_a_seed_and_pretrainings_come_first(tiny, tmp_path):
    more = tmp_path / "more.yaml"
    seeds = "pretrain_seeds: [0, 1]\n  finetune_seeds: [0, 1, 2]\n  scratch_seeds: [5, 6]\npretrainings:"
    more.write_text(tiny.read_text().replace("pretrainings:", f"  {seeds}", 1))
    runs = read_study(str(more), tmp_path).runs
    finetunings = [run for run in runs if run.needs]
    assert len(runs) == 2 + 6 + 2 and len({run.config.run.seed for run in finetunings}) == 6
    assert {run.needs.config.run.seed for run in finetunings} == {0, 1}
    assert all(runs.index(run.needs) < runs.index(run) for run in finetunings)
    assert [run.config.run.seed for run in runs if run.folder.parent.name == "scratch"] == [5, 6]


def left_behind(run: PlannedRun, changed: dict[str, object], ranks: str | None = "1") -> None:
    """What a finished run of such a config leaves in its folder."""
    config = run.config
    for key, value in changed.items():
        config = with_value(config, key, value)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(to_yaml(to_dict(config)))
    provenance = {} if ranks is None else {"world_size": ranks}
    (run.folder / "result.json").write_text(json.dumps({"steps": 12, "provenance": provenance}))


@pytest.mark.parametrize(
    ("planned", "ran", "ranks", "excused"),
    [
        (256, 192, "4", True),  # a rank's 384 images divide into 192, and into no larger number up to 256
        (256, 128, "4", False),
        (256, 128, "2", False),  # a rank's 768 images divide into 256
        (300, 256, "3", True),
        (32, 256, "2", False),
        (256, 128, None, True),  # nobody knows
    ],
)
def test_fewer_images_at_once_are_excused_only_if_the_planned_number_does_not_divide(
    planned, ran, ranks, excused, tiny, tmp_path
):
    sizes = f"--batch-size 1536 train.images_per_device={planned}"
    text = tiny.read_text().replace("--batch-size 4 train.images_per_device=4", sizes)
    (tmp_path / "large.yaml").write_text(text)
    (run,) = [run for run in read_study(str(tmp_path / "large.yaml"), tmp_path).runs if run.kind == PRETRAINING]
    left_behind(run, {"train.images_per_device": ran}, ranks)
    if excused:
        assert run.finished()
    else:
        with pytest.raises(UserError, match=rf"train.images_per_device: {ran} -> {planned}"):
            run.finished()


@pytest.mark.parametrize(
    ("words", "decided_by", "weights", "problem"),
    [
        ("", {}, "model", None),
        ("", {"label_fraction": 1.0, "holdout_fraction": 0.0, "train_list": None}, "model", None),
        ("data.label_fraction=0.5", {"label_fraction": 0.5}, "model", None),
        ("data.label_fraction=0.5", {}, "model", r"data.label_fraction: 1.0 -> 0.5"),
        ("data.holdout_fraction=0.1", {}, "model", r"data.holdout_fraction: 0.0 -> 0.1"),
        ("data.train_list=some.txt", {"train_list": "others.txt"}, "model", r"data.train_list: others.txt -> some.txt"),
        ("run.probe_storage=float16", {}, "model", r"run.probe_storage: float32 -> float16"),
        ("run.use_ema=true", {}, "model", r"run.use_ema: false -> true"),
        ("run.use_ema=true", {}, "ema", None),
        ("", {}, "ema", r"run.use_ema: true -> false"),
    ],
)
def test_a_probe_with_other_settings_than_the_studys_is_an_error(words, decided_by, weights, problem, tiny, tmp_path):
    section = PROBED.format(root=ROOT, images=tiny.parent / "images").replace(
        "data.workers=0", f"data.workers=0 {words}"
    )
    (tmp_path / "probed.yaml").write_text(tiny.read_text().replace("study:\n", section))
    (run,) = [run for run in read_study(str(tmp_path / "probed.yaml"), tmp_path).runs if run.kind == PROBE]
    left_behind(run.needs, {})
    assert not run.finished()
    run.folder.mkdir()
    sizes = {"val_resize_size": [36], "val_crop_size": 32, "interpolation": "bilinear", "probe_storage": "float32"}
    content = {"checkpoint": {"step": 12, "weights": weights}, "decided_by": sizes | decided_by}
    (run.folder / "probe_step_00000012.json").write_text(json.dumps(content))
    if problem is None:
        assert run.finished()
    else:
        with pytest.raises(UserError, match=rf"evaluations: finished .*\({problem}\)"):
            run.finished()


SHARES = "study:\n  label_fractions: [0.01, 0.5, 1.0]\n"


def test_every_arm_is_finetuned_with_every_share_of_the_labels(tiny, tmp_path):
    """`scratch` has words of its own for one of them."""
    shares = tiny.read_text().replace("study:\n", SHARES)
    shares = shares.replace("scratch: {finetune", "scratch: {0.5: optimizer.learning_rate=0.5, finetune")
    (tmp_path / "shares.yaml").write_text(shares)
    runs = [run for run in read_study(str(tmp_path / "shares.yaml"), tmp_path).runs if run.kind == FINETUNING]
    folders = {str(run.folder.relative_to(tmp_path / "finetune")): run.config for run in runs}
    assert {name: config.data.label_fraction for name, config in folders.items()} == {
        "mfm/labels_0.01/p0_f0": 0.01, "mfm/labels_0.5/p0_f0": 0.5, "mfm/labels_1/p0_f0": 1.0,
        "scratch/labels_0.01/f0": 0.01, "scratch/labels_0.5/f0": 0.5, "scratch/labels_1/f0": 1.0,
    }  # fmt: skip
    rates = {name: config.optimizer.learning_rate for name, config in folders.items() if name.startswith("scratch")}
    assert rates.pop("scratch/labels_0.5/f0") == 0.5 and set(rates.values()) == {1e-3}
    names = {run.config_name() for run in runs if run.needs}
    assert names == {"finetune_mfm_labels_0.01", "finetune_mfm_labels_0.5", "finetune_mfm"}


def test_a_study_goes_seed_by_seed_so_that_a_part_of_it_has_all_arms(tiny, tmp_path):
    seeds = "pretrain_seeds: [0, 1]\n  scratch_seeds: [5, 6, 7]\npretrainings:"
    (tmp_path / "more.yaml").write_text(tiny.read_text().replace("pretrainings:", f"  {seeds}", 1))
    runs = read_study(str(tmp_path / "more.yaml"), tmp_path).runs
    names = [f"{run.folder.parent.name}/{run.folder.name}" for run in runs if run.kind == FINETUNING]
    assert names == ["mfm/p0_f0", "scratch/f5", "mfm/p1_f1000", "scratch/f6", "scratch/f7"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("study:\n", "study:\n  label_fractions: [0.1, 0.1]\n", "study.label_fractions = .*not name a value twice"),
        ("study:\n", "study:\n  label_fractions: [0]\n", "study.label_fractions = .*must be > 0 and ≤ 1"),
        ("scratch: {finetune", "scratch: {0.5: --epochs 9, finetune", "arms.scratch: must hold .*label_fractions"),
        ("study:\n", "study:\n  finetune_seed: [1]\n", "study.finetune_seed = .*unknown key; .*study.finetune_seeds"),
        ("study:\n", "study:\n  scratch_seeds: [1, 1]\n", "study.scratch_seeds = .*must not name a value twice"),
        ("study:\n", "study:\n  baseline: [nobody]\n", "study.baseline: must name arms"),
        ("pretraining: mfm", "pretraining: mmf", r"arms.mfm.pretraining: must be one of mfm"),
        ("pretraining: mfm", "weights: mfm", "arms.mfm: must hold `finetune: words`"),
        ("  mfm: {pretraining: mfm, finetune: loss.name=bce}", "", "pretrainings: one is used by no arm"),
        ("  mfm: optimizer", "  mfm: [optimizer", "not a config"),
        ("arms:", "arm:", "arm.scratch = .*: unknown key"),
        ("loss.name=bce}", "loss.name=mse}", "arms.scratch: .*loss.name = mse: must be one of bce, ce"),
        ("loss.name=bce}", "--epochs 3}", "arms.scratch: .*schedule.epochs is given twice"),
        ("loss.name=bce}", "--epoch 3}", "arms.scratch: command line: --epoch: unknown; write --epochs 3"),
    ],
)
def test_bad_studies_are_told_by_key(old, new, sentence, tiny, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text(tiny.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=sentence):
        read_study(str(bad), tmp_path)


def test_more_jobs_than_cores_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="--jobs 1000: must be from 1 to"):
        study.main([str(tiny), "--output-dir", str(tmp_path), "--jobs", "1000", "--gpus-per-job", "0"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs/studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_studies_are_whole_and_say_what_they_cost(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    planned = read_study(str(path), tmp_path)
    grid, runs = planned.grid, planned.runs
    header = text[: text.index("study:")]
    counted = collections.Counter(run.kind for run in runs)
    assert f"# Cost: {counted[PRETRAINING]} pretrainings and {counted[FINETUNING]} finetunings" in header
    assert not counted[PROBE] or f"finetunings, {counted[PROBE]} probes;" in header
    assert f"scripts/study/study.py configs/studies/{path.name}" in header
    assert len({str(run.folder) for run in runs}) == len(runs)
    for run in runs:
        config = run.config
        assert config.train.batch_size % (grid.processes * (config.train.images_per_device or 1)) == 0
        if run.needs:
            assert (config.data.mean, config.data.std) == (run.needs.config.data.mean, run.needs.config.data.std)
            assert config.data.holdout_fraction <= run.needs.config.data.holdout_fraction


def test_crop_ratio_study_studies_crop_ratios(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    runs = read_study("configs/studies/crop_ratio.yaml", tmp_path).runs
    ratios = {run.folder.parent.name: run.config.data.crop_ratio for run in runs if run.entry == "pretrain.py"}
    assert ratios == {"crop0.67": (0.67, 1.0), "crop0.2": (0.2, 1.0), "crop0.1": (0.1, 1.0)}


class ScriptedMachine(Machine):
    """Starts short shell commands instead of runs, and notes in which slot it starts what."""

    def start(self, run: PlannedRun, slot: int) -> subprocess.Popen:
        run.folder.mkdir(parents=True)
        (run.folder / "slot.txt").write_text(str(slot))
        return subprocess.Popen(["sh", "-c", "sleep 0.5; exit 3" if run.entry == "pretrain.py" else "exit 0"])


def test_what_needs_a_failed_pretraining_is_not_run_and_the_rest_is(tiny, tmp_path, capsys):
    scheduler = Scheduler.of(read_study(str(tiny), tmp_path).runs, ScriptedMachine(jobs=2, gpus=0))
    scheduler.execute()
    problems = {str(run.folder.relative_to(tmp_path)): problem for run, problem in scheduler.failed.items()}
    assert problems == {
        "pretrain/mfm/p0": "exit code 3",
        "finetune/mfm/p0_f0": "not run: its pretraining failed",
        "finetune/scratch/f0": "exit code 0",  # it has left no result.json
    }
    slots = {str(path.parent.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("slot.txt")}
    assert slots == {"pretrain/mfm/p0": "0", "finetune/scratch/f0": "1"}
    assert not scheduler.stopped and not scheduler.finished
    assert "0 of 3 runs finished already, 3 to do" in capsys.readouterr().out
