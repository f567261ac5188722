"""Tables of runs: published figures again, a decomposition by hand, degenerate data, the confound guard."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from configs.schema import FinetuneConfig, PretrainConfig
from scripts.study import summarize
from scripts.study.arms import Measure
from scripts.study.comparisons import confounds
from scripts.study.read_runs import read_results
from scripts.study.statistics_of_runs import compare, detectable, holm, levels, power, units_needed
from tests.support.launch import ROOT
from utils.config import parse_command_line, to_dict, to_yaml
from utils.errors import UserError

PUBLISHED = Path(__file__).with_name("published_4x3.csv")
HEADER = "arm,pretrain_seed,finetune_seed,val_resize_size,top1\n"


def summary_of(capsys, *words) -> dict:
    """The JSON, in which NaN and infinity are errors."""
    summarize.main([*map(str, words), "--format", "json"])
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def written(tmp_path, rows: str) -> Path:
    (tmp_path / "runs.csv").write_text(HEADER + rows)
    return tmp_path / "runs.csv"


def test_the_published_means_and_deviations_come_out_and_more_precisely(capsys):
    arm = summary_of(capsys, PUBLISHED)["235"]["arms"]["mfm"]
    rows = arm["pretrainings"]
    assert [row[1] for row in rows] == [3] * 4
    assert [round(row[2], 3) for row in rows] == [78.644, 78.642, 78.612, 78.584]
    assert [round(row[3], 4) for row in rows] == [0.0303, 0.1500, 0.0898, 0.0982]
    assert (arm["runs"], arm["units"], round(arm["mean"], 4)) == (12, 4, 78.6205)  # published: 78.621
    assert round(arm["population_deviation"], 4) == 0.0864  # published: 0.08, this one cut
    assert round(arm["sample_deviation"], 4) == 0.0902
    means = [row[2] for row in rows]
    assert round(float(np.std(means, ddof=1)), 3) == 0.028
    # By hand: the t quantile of 3 degrees of freedom is 3.1824.
    half = 3.1824 * np.std(means, ddof=1) / 2
    assert arm["interval"] == pytest.approx([78.6205 - half, 78.6205 + half], abs=1e-5)


def test_the_published_variance_has_no_detectable_share_of_pretraining(capsys):
    """One-way random effects by hand: means squares 0.002350 between (3 df), 0.010286 within (8 df)."""
    arm = summary_of(capsys, PUBLISHED)["235"]["arms"]["mfm"]
    assert round(arm["deviation_of_finetunings"], 4) == 0.1014 and arm["deviation_of_pretrainings"] == 0
    assert arm["share_of_pretraining"] == 0
    assert any("negative (-0.0026) and shown as 0" in note for note in arm["notes"])


def test_an_unbalanced_decomposition_agrees_with_one_by_hand():
    """Groups (1, 3), (4, 6, 8), (11): means 2, 6, 11, grand 5.5; within (2 + 8) / 3 = 10/3;
    between (2 · 3.5² + 3 · 0.5² + 5.5²) / 2 = 55.5 / 2 = 27.75; n0 = (6 − 14/6) / 2 = 11/6."""
    between, within, note = levels({"0": [1, 3], "1": [4, 6, 8], "2": [11]})
    assert within == pytest.approx(10 / 3) and note == ""
    assert between == pytest.approx((27.75 - 10 / 3) / (11 / 6))


@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_a_balanced_decomposition_is_that_of_the_f_test(groups, runs, seed):
    scores = np.random.default_rng(seed).normal(size=(groups, 1)) + np.random.default_rng(seed + 1).normal(
        size=(groups, runs)
    )
    between, within, _ = levels({str(number): list(row) for number, row in enumerate(scores)})
    f = stats.f_oneway(*scores).statistic
    assert within == pytest.approx(scores.var(axis=1, ddof=1).mean())
    assert between == pytest.approx(max(0, within * (f - 1) / runs), abs=1e-9)


def test_a_comparison_is_scipys_over_the_means_of_pretrainings():
    generator = np.random.default_rng(0)
    scores = generator.normal(70, 1, (2, 5, 3))
    one, other = ({str(unit): list(row) for unit, row in enumerate(arm)} for arm in scores)
    means = scores.mean(2)
    paired, welch = compare(one, other, alike=True), compare(one, other, alike=False)
    assert (paired["test"], welch["test"]) == ("paired t", "Welch's t")
    assert paired["p"] == pytest.approx(stats.ttest_rel(*means).pvalue)
    assert welch["p"] == pytest.approx(stats.ttest_ind(*means, equal_var=False).pvalue)
    assert paired["interval"] == pytest.approx(list(stats.ttest_rel(*means).confidence_interval(0.95)))
    shuffled = compare(dict(reversed(one.items())), other, alike=True)
    assert shuffled["p"] == pytest.approx(paired["p"])  # pairs go by seed, not by place


def test_a_missing_cell_leaves_pairs_and_says_so():
    one, other = {str(n): [70.0 + n * n] for n in range(5)}, {str(n): [69.0 + n] for n in range(1, 5)}
    found = compare(one, other, alike=True)
    assert found["units"] == [4, 4] and "units without a partner" in found["notes"][0]
    assert compare(one, {str(n): [69.0 + n] for n in range(4, 9)}, alike=True)["test"] == "Welch's t"


@pytest.mark.process
@given(st.integers(2, 30), st.integers(1, 10), st.booleans())
def test_detectable_and_needed_are_each_others_inverse(units, comparisons, paired):
    variances = [0.04] if paired else [0.04, 0.01]
    difference = detectable(variances, [units] * len(variances), 0.05 / comparisons)
    assert units_needed(variances, difference * 1.001, 0.05 / comparisons) == units
    assert units_needed(variances, difference * 0.98, 0.05 / comparisons) in range(units + 1, units + 4 + units // 10)


def test_power_agrees_with_a_simulation():
    scores = np.random.default_rng(0).normal(1.0, 1.0, (100_000, 6))
    share = (stats.ttest_1samp(scores, 0, axis=1).pvalue < 0.05).mean()
    assert power(math.sqrt(6), 5, 0.05) == pytest.approx(share, abs=0.005)


def test_holm_steps_down():
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


DEGENERATE = {
    "one run": ("a,0,0,32,50\n", "one unit: no interval"),
    "one pretraining": ("a,0,0,32,50\na,0,1,32,51\nb,0,2,32,51\n", "variance between pretrainings is unknown"),
    "one unit against three": ("a,0,0,32,50\nb,0,1,32,51\nb,1,1,32,52\nb,2,1,32,53\n", "difference cannot be tested"),
    "equal values": ("a,0,0,32,70.1\na,1,0,32,70.1\nb,0,0,32,70.1\nb,1,0,32,70.1\n", "nothing to test the difference"),
    "equal differences": ("a,0,0,32,70\na,1,0,32,71\nb,0,0,32,72\nb,1,0,32,73\n", "nothing to test the difference"),
    "all the same, two levels": ("a,0,0,32,7\na,0,1,32,7\na,1,0,32,7\na,1,1,32,7\n", "the interval has no width"),
    "missing cells": ("a,0,0,32,70\na,0,1,32,71\na,1,0,32,72\nb,0,0,32,72\nb,1,0,32,73.5\n", "told apart"),
    "another size": ("a,0,0,32,70\na,1,0,34,71\nb,0,0,32,72\n", "one unit"),
    "scratch": ("a,,0,32,70\na,,1,32,71\nb,0,0,32,72\nb,1,0,32,73\n", "told apart"),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_data_gets_an_answer_or_a_sentence(name, tmp_path, capsys):
    rows, sentence = DEGENERATE[name]
    words = [written(tmp_path, rows), "--baseline", "a", "--difference", "0.5"]
    summary = json.dumps(summary_of(capsys, *words))
    assert sentence in summary and "NaN" not in summary and "Infinity" not in summary
    summarize.main([*map(str, words)])
    text = capsys.readouterr().out
    assert "nan" not in text.lower().replace("finan", "") and "inf" not in text.lower()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("arm,top1\na,3\n", "must have a row and the columns arm,pretrain_seed"),
        (HEADER, "must have a row"),
        (HEADER + "a,0,0,32,much\n", "line 2: must have 5 cells, top1 a number .could not convert"),
        (HEADER + "a,0,0\n", "line 2: must have 5 cells"),
        (HEADER + "a,0,0,,5\n", "line 2: arm, finetune_seed and val_resize_size must not be empty"),
        (HEADER + "a,0,0,32,nan\n", "line 2: .*percentage from 0 to 100"),
        (HEADER + "a,0,0,32,5\na,0,0,32,6\n", "line 3: .*second result of arm a, pretrain_seed 0, finetune_seed 0"),
        (HEADER + "a,0,0,32,5\na,,1,32,6\n", "line 3: .*with and without a pretrain_seed"),
        (HEADER + ",0,0,32,5\n", "line 2: .*must not be empty"),
    ],
)
def test_bad_csv_is_told_by_line(content, message, tmp_path):
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        summarize.main([str(tmp_path / "bad.csv")])


def finished(folder: Path, words=(), pretraining=(), top1=(70.0,), **result) -> Path:
    """A finetuning's folder as finetune.py leaves it."""
    folder.mkdir(parents=True)
    config = to_dict(parse_command_line(FinetuneConfig, [*words, "--output-dir", str(folder)], ""))
    (folder / "config.yaml").write_text(to_yaml(config))
    if pretraining:
        (folder / "pretraining.yaml").write_text(to_yaml(to_dict(parse_command_line(PretrainConfig, pretraining, ""))))
    rows = [
        {"weights": "model", "images": 9, "val_resize_size": 235 + number, "top1": score}
        for number, score in enumerate(top1)
    ]
    content = {"results": rows, "provenance": {"commit": "aaa", "world_size": "1"}, "data": {"train": "t", "val": "v"}}
    (folder / "result.json").write_text(json.dumps(content | result))
    return folder


def study(tmp_path, arms: dict, **results) -> Path:
    """Two runs for each arm, {arm: (finetuning words, pretraining words)}; results: of one arm's second run."""
    for arm, (words, pretraining) in arms.items():
        for seed in (0, 1):
            folder = tmp_path / arm / (f"p{seed}_f{seed}" if pretraining else f"f{seed}")
            mine = [*pretraining, f"run.seed={seed}"] if pretraining else ()
            weights = ["--weights", f"{seed}.pt"] if pretraining else []
            more = results.get(arm, {}) if seed else {}
            finished(folder, [*words, *weights, f"run.seed={seed}"], mine, [70.0 + len(arm) + 3 * seed], **more)
    return tmp_path


MFM = ["model.name=resnet18"]


def test_single_runs_make_a_plain_table(tmp_path, capsys):
    one = finished(tmp_path / "one", top1=[70.5, 71])
    other = finished(tmp_path / "other", ["loss.name=ce"], top1=[60])
    summarize.main([str(one), str(other)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| arm | runs | top-1 % at 235 | top-1 % at 236 |"
    assert lines[2:4] == ["| one | 1 | 70.50 | 71.00 |", "| other | 1 | 60.00 |  |"]
    assert "ranks nothing" in lines[-1]


def test_runs_of_one_recipe_are_one_arm(tmp_path, capsys):
    runs = [
        finished(tmp_path / f"run{seed}", [f"run.seed={seed}", "data.workers=3"], top1=[70 + seed]) for seed in (0, 1)
    ]
    runs.append(finished(tmp_path / "different", ["run.seed=7", "loss.name=ce"]))
    arms = summary_of(capsys, *runs)["235"]["arms"]
    assert {name: arm["runs"] for name, arm in arms.items()} == {"run0": 2, "different": 1}


def test_a_folder_and_its_csv_give_the_same_table(tmp_path, capsys):
    folder = study(tmp_path / "study", {"scratch": ([], []), "mfm": ([], MFM)})
    summarize.main([str(folder), "--format", "csv"])
    text = capsys.readouterr().out
    assert list(csv.reader(text.splitlines()))[1] == ["mfm", "0", "0", "235", "finetuning", "1", "", "73.0"]
    (tmp_path / "again.csv").write_text(text)
    by_folder, by_file = (
        summary_of(capsys, path, "--baseline", "scratch") for path in (folder, tmp_path / "again.csv")
    )
    assert by_folder["235"]["arms"] == by_file["235"]["arms"]
    assert by_folder["235"]["comparisons"][0]["p"] == by_file["235"]["comparisons"][0]["p"] is not None
    assert "not checked" in by_file["235"]["comparisons"][0]["warning"]


def test_sizes_that_runs_selected_share_a_table(tmp_path, capsys):
    chosen = {"val_resize_size": {"chosen": "on held-out images of train", "held_out": []}}
    finished(tmp_path / "arm/f0", ["run.seed=0"], top1=[70], **chosen)
    rows = [{"weights": "model", "images": 9, "val_resize_size": 240, "top1": 72}]
    finished(tmp_path / "arm/f1", ["run.seed=1"], **chosen, results=rows)
    assert summary_of(capsys, tmp_path)["selected"]["arms"]["arm"]["mean"] == 71


def comparison(capsys, folder, *words) -> dict:
    (row,) = summary_of(capsys, folder, "--baseline", "base", *words)["235"]["comparisons"]
    return row


def test_one_studied_factor_is_fair(tmp_path, capsys):
    study(tmp_path, {"base": ([], MFM), "ce": (["loss.name=ce"], MFM)})
    row = comparison(capsys, tmp_path, "--factor", "loss.name")
    assert row["differs_in"] == {"loss.name": "bce -> ce"} and row["warning"] == ""
    assert comparison(capsys, tmp_path)["warning"] == ""
    assert comparison(capsys, tmp_path, "--factor", "pretraining")["warning"] == "more than the studied factor differs"


def test_a_second_difference_is_marked_wherever_it_is(tmp_path, capsys):
    study(tmp_path / "finetuning", {"base": ([], MFM), "two": (["loss.name=ce", "optimizer.learning_rate=1e-3"], MFM)})
    row = comparison(capsys, tmp_path / "finetuning", "--factor", "loss.name")
    assert row["differs_in"].keys() == {"loss.name", "optimizer.learning_rate"}
    assert row["warning"] == "more than the studied factor differs"
    summarize.main([str(tmp_path / "finetuning"), "--baseline", "base", "--factor", "loss.name"])
    text = capsys.readouterr().out
    assert "**more than the studied factor differs**" in text and "optimizer.learning_rate: 0.0012 -> 0.001" in text
    study(tmp_path / "pretraining", {"base": ([], MFM), "two": ([], [*MFM, "filter.radius=12", "--epochs", "200"])})
    row = comparison(capsys, tmp_path / "pretraining", "--factor", "pretraining.filter.radius")
    assert row["differs_in"].keys() == {"pretraining.filter.radius", "pretraining.schedule.epochs"}
    assert row["warning"] == "more than the studied factor differs"
    assert comparison(capsys, tmp_path / "pretraining", "--factor", "pretraining")["warning"] == ""


def test_pretrained_or_not_is_one_factor_and_losses_another(tmp_path, capsys):
    study(tmp_path / "fair", {"base": ([], []), "mfm": ([], MFM)})
    row = comparison(capsys, tmp_path / "fair", "--factor", "pretraining", "loss.name")
    assert row["differs_in"] == {"pretraining": "none -> a checkpoint of this project"} and row["warning"] == ""
    assert row["test"] == "Welch's t"
    study(tmp_path / "unfair", {"base": ([], []), "mfm": (["loss.name=ce"], MFM)})
    row = comparison(capsys, tmp_path / "unfair", "--factor", "pretraining", "loss.name")
    assert row["warning"] == "more than the studied factor differs"


@pytest.mark.parametrize(
    ("other", "warning"),
    [
        ({"provenance": {"commit": "bbb", "world_size": "1"}}, "another git commit"),
        ({"provenance": {"commit": "aaa", "world_size": "2"}}, "another world size"),
        ({"data": {"train": "u", "val": "v"}}, "another train data"),
    ],
)
def test_runs_of_another_commit_world_size_or_data_are_marked(other, warning, tmp_path, capsys):
    study(tmp_path, {"base": ([], MFM), "ce": (["loss.name=ce"], MFM)}, ce=other)
    assert comparison(capsys, tmp_path, "--factor", "loss.name")["warning"] == warning


def test_the_pretrainings_own_provenance_counts(tmp_path, capsys):
    study(tmp_path / "runs", {"base": ([], MFM), "ce": (["loss.name=ce"], MFM)})
    for number, path in enumerate(sorted((tmp_path / "runs").glob("*/*/config.yaml"))):
        beside = tmp_path / f"pretrained{number}"
        (beside / "checkpoints").mkdir(parents=True)
        commit = {"provenance": {"commit": str(number)}}
        (beside / "result.json").write_text(json.dumps(commit))
        text = path.read_text().replace(f"weights: {number % 2}.pt", f"weights: {beside}/checkpoints/last.pt")
        path.write_text(text)
    row = comparison(capsys, tmp_path / "runs")
    assert row["warning"] == "another pretraining's git commit"


def test_with_several_baselines_an_arm_meets_the_one_it_is_comparable_to(tmp_path, capsys):
    ce = ["loss.name=ce"]
    study(tmp_path, {"scratch_bce": ([], []), "scratch_ce": (ce, []), "mfm_bce": ([], MFM), "mfm_ce": (ce, MFM)})
    words = ["--baseline", "scratch_bce", "scratch_ce", "--factor", "pretraining", "loss.name"]
    rows = summary_of(capsys, tmp_path, *words)["235"]["comparisons"]
    assert {(row["arm"], row["baseline"]) for row in rows} == {
        ("mfm_bce", "scratch_bce"), ("mfm_ce", "scratch_ce"), ("scratch_bce", "scratch_ce"),
    }  # fmt: skip
    assert not any(row["warning"] for row in rows)


def test_an_arm_that_suits_no_baseline_is_marked_and_not_left_out(tmp_path, capsys):
    ce = ["loss.name=ce"]
    odd = ["optimizer.learning_rate=0.5"]
    study(tmp_path, {"scratch_bce": ([], []), "scratch_ce": (ce, []), "mfm_bce": (odd, MFM)})
    words = ["--baseline", "scratch_bce", "scratch_ce", "--factor", "pretraining", "loss.name"]
    rows = summary_of(capsys, tmp_path, *words)["235"]["comparisons"]
    marked = {
        (row["arm"], row["baseline"]) for row in rows if row["warning"].startswith("more than the studied factor")
    }
    assert marked == {("mfm_bce", "scratch_bce"), ("mfm_bce", "scratch_ce")} and len(rows) == 3


def test_runs_of_one_arm_that_differ_are_noted_without_any_comparison(tmp_path, capsys):
    for seed, commit in enumerate(("aaa", "bbb")):
        words = [f"run.seed={seed}", f"optimizer.weight_decay=0.0{seed + 1}"]
        finished(tmp_path / f"arm/f{seed}", words, top1=[70 + seed], provenance={"commit": commit, "world_size": "1"})
    notes = summary_of(capsys, tmp_path)["235"]["arms"]["arm"]["notes"]
    assert "its runs differ in git commit: aaa | bbb" in notes
    assert "its runs differ in optimizer.weight_decay: 0.01 | 0.02" in notes


def test_runs_of_two_recipes_in_folders_of_one_name_are_two_arms(tmp_path, capsys):
    for seed, (place, loss) in enumerate((("x", "bce"), ("y", "ce"))):
        finished(tmp_path / place / "run", [f"run.seed={seed}", f"loss.name={loss}"], top1=[70])
    assert set(summary_of(capsys, tmp_path)["235"]["arms"]) == {"run", str(tmp_path / "y/run")}


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="--baseline nobody: no such arm; there are: mfm"):
        summarize.main([str(PUBLISHED), "--baseline", "nobody"])
    with pytest.raises(UserError, match=r"--difference -1.0: must be above 0"):
        summarize.main([str(PUBLISHED), "--difference", "-1"])
    with pytest.raises(UserError, match=r"no result\.json of a finetuning"):
        summarize.main([str(tmp_path)])


def test_a_published_study_is_fair_though_its_configs_lack_newer_keys(capsys):
    """The configs beside results.csv were written before optimizer.name was a knob; its default stands for it."""
    folder = ROOT / "scripts/results/sample_loss_by_init"
    assert "momentum" not in (folder / "configs/finetune_mfm_bce.yaml").read_text()
    words = ["--baseline", "scratch_bce", "scratch_ce", "--factor", "pretraining", "loss.name"]
    summarize.main([str(folder / "results.csv"), *words])
    lines = capsys.readouterr().out.splitlines()
    assert "| mfm_bce | 8 | 81.22 ± 0.96 | 81.66 ± 0.73 | 81.59 ± 0.74 |" in lines
    comparisons = [line for line in lines if " − " in line and line.startswith("|")]
    assert len(comparisons) == 9 and all(line.endswith("| yes |") for line in comparisons)


def test_an_arm_of_before_a_knob_was_made_differs_in_nothing_from_one_of_today(tmp_path):
    arms = {}
    for name, lines_left_out in (("old", ("name: adamw", "momentum:")), ("new", ())):
        folder = finished(tmp_path / name / "f0")
        lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
        old_lines = [line for line in lines if not line.strip().startswith(lines_left_out)]
        assert len(lines) - len(old_lines) == len(lines_left_out)
        (folder / "config.yaml").write_text("".join(old_lines))
        arms |= read_results([folder])[Measure()]
    assert confounds(arms["old"], arms["new"], factors=[]).differences == {}
