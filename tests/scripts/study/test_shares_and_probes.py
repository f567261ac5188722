"""Shares of the labels, earlier evaluations and probes: planned, read, compared, and drawn."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from configs.schema import PretrainConfig
from scripts.study import summarize
from scripts.study.arms import KNN, KNN_CURVE, LINEAR, PIXELS, Measure, Results
from scripts.study.comparisons import summarize as summary_of_results
from scripts.study.figures import label_panels, labels_figure, write_figures
from scripts.study.read_runs import knn_curve, read_results
from scripts.study.scores_csv import to_csv
from scripts.study.statistics_of_runs import compare, holm
from scripts.study.tables import SummaryTables, to_markdown
from tests.scripts.study.test_summarize import finished, summary_of
from utils.config import parse_command_line, to_dict, to_yaml
from utils.errors import UserError
from utils.run.log_file import as_text

MFM = ["model.name=resnet18"]
DENOISE = [*MFM, "corruption.name=noise", "filter.order=filter_first", "loss.scope=all"]
PRETRAININGS = {"mfm": MFM, "denoise": DENOISE}
SHARES = (0.01, 0.1, 1.0)
RATES = {0.01: 3e-3, 0.1: 1e-3, 1.0: 1e-3}
STEPS = 400  # of a pretraining


def finetuned(root: Path, arm: str, share: float, folder: str, words: list[str], pretraining: list[str], top1: float):
    """A finetuning evaluated after 140, 300 and 600 steps, on data of its share of the labels."""
    run = root / "finetune" / arm / f"labels_{share:g}" / folder
    words = [*words, f"data.label_fraction={share}", f"optimizer.learning_rate={RATES[share]}"]
    finished(run, words, pretraining, [top1], data={"train": f"t{share}", "val": "v"})
    lines = []
    for step, score in ((140, top1 - 20), (300, top1 - 5), (600, top1)):
        lines.append({"step": step, "epoch": 0, "split": "val", "weights": "model", "val_resize_size": 235})
        lines[-1] |= {"top1": score, "loss": 1.0}
    (run / "log.jsonl").write_text(as_text(lines))


def pretrained(root: Path, arm: str, seed: int, gain: float) -> None:
    """A pretraining, probed after 10 and 20 epochs and at its end, and once by hand at an earlier checkpoint."""
    run = root / "pretrain" / arm / f"p{seed}"
    (run / "evaluations").mkdir(parents=True)
    config = parse_command_line(PretrainConfig, [*PRETRAININGS[arm], f"run.seed={seed}"], "")
    (run / "config.yaml").write_text(to_yaml(to_dict(config)))
    (run / "result.json").write_text(json.dumps({"steps": STEPS, "provenance": {"commit": "aaa"}}))
    lines = [{"step": 1, "epoch": 0, "loss": 1.0}]
    for epochs in (10, 20):
        lines.append(
            {
                "step": epochs * 20,
                "epoch": epochs - 1,
                "split": "val",
                "method": "knn",
                "k": 20,
                "val_resize_size": 36,
                "top1": 20 + gain + epochs,
            }
        )
    (run / "log.jsonl").write_text(as_text(lines))
    write_probe(run, STEPS, gain + 40)
    write_probe(run, STEPS // 2, gain + 20)


def write_probe(run: Path, step: int, top1: float, weights: str = "model") -> None:
    rows = []
    for k, temperature, less in ((10, 0.07, 3), (20, 0.07, 0), (200, 0.07, 4), (200, 0.1, 5)):
        rows.append({"method": "knn", "k": k, "temperature": temperature, "top1": top1 - less})
    rows.append({"method": "linear", "k": None, "temperature": None, "top1": top1 + 12})
    rows.append({"method": "pixels_knn", "k": 20, "temperature": 0.07, "top1": 38.0})
    content = {
        "kind": "probe", "checkpoint": {"step": step, "weights": weights}, "results": rows,
        "decided_by": {"weights": f"of {run.parent.name}{run.name}", "val_resize_size": [73]},
    }  # fmt: skip
    further = "" if weights == "model" else "-2"
    (run / "evaluations" / f"probe_step_{step:08d}{further}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Three arms × three shares: three seeds of scratch, two pretrainings of the others, finetuned twice."""
    root, generator = tmp_path_factory.mktemp("shares"), np.random.default_rng(0)
    luck = {}
    for number, arm in enumerate(PRETRAININGS):
        for seed in range(2):
            luck[arm, seed] = generator.normal() + 2 * number
            pretrained(root, arm, seed, gain=luck[arm, seed])
    for base, share in zip((30, 55, 80), SHARES, strict=True):
        for seed in range(3):
            top1 = base + generator.normal()
            finetuned(root, "scratch", share, f"f{seed}", [f"run.seed={seed}"], [], top1)
        for (arm, seed), its_luck in luck.items():
            for number in (1000 * seed, 1000 * seed + 1):
                words = [f"run.seed={number}", "--weights", f"{root}/pretrain/{arm}/p{seed}/checkpoints/last.pt"]
                top1 = base + its_luck + generator.normal() / 2
                pretraining = [*PRETRAININGS[arm], f"run.seed={seed}"]
                finetuned(root, arm, share, f"p{seed}_f{number}", words, pretraining, top1)
    return root


@pytest.fixture(scope="module")
def results(small) -> Results:
    return read_results([small], at_steps=(150,))


@pytest.fixture(scope="module")
def summary(results) -> dict:
    return summary_of_results(results, ["scratch", "denoise"], ["pretraining"], difference=None)


def test_every_share_is_a_column_and_the_pretraining_is_the_unit(summary):
    assert list(summary)[:3] == ["235 labels 0.01", "235 labels 0.1", "235"]
    for name in list(summary)[:3]:
        arms = summary[name]["arms"]
        assert {arm: (of["runs"], of["units"]) for arm, of in arms.items()} == {
            "denoise": (4, 2), "mfm": (4, 2), "scratch": (3, 3),
        }  # fmt: skip
        rows = {(row["arm"], row["baseline"]): row["test"] for row in summary[name]["comparisons"]}
        assert rows == {
            ("denoise", "scratch"): "Welch's t", ("mfm", "scratch"): "Welch's t", ("mfm", "denoise"): "paired t",
        }  # fmt: skip


def test_a_share_gives_what_its_runs_alone_give(small, summary):
    """By `compare` on the scores of one share, which knows no shares."""
    alone = [small / "finetune" / arm / "labels_0.1" for arm in ("mfm", "scratch")]
    (arms,) = read_results(alone).values()
    expected = compare(arms["mfm"].units("235"), arms["scratch"].units("235"), alike=False)
    rows = summary["235 labels 0.1"]["comparisons"]
    (row,) = [row for row in rows if (row["arm"], row["baseline"]) == ("mfm", "scratch")]
    assert row["p"] == expected["p"] and row["interval"] == expected["interval"]


def test_p_is_corrected_over_all_shares_and_not_over_probes(summary):
    families = [
        ["235 labels 0.01", "235 labels 0.1", "235"],
        ["235 after 150 steps labels 0.01", "235 after 150 steps labels 0.1", "235 after 150 steps"],
        ["knn while pretraining 36 after 10 epochs", "knn while pretraining 36 after 20 epochs"],
        ["knn 73"], ["linear 73"], ["pixels_knn 73"],
    ]  # fmt: skip
    assert list(itertools.chain.from_iterable(families)) == list(summary)
    for family in families:
        rows = []
        for name in family:
            rows += summary[name]["comparisons"]
        assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])


def test_what_can_be_detected_allows_for_all_shares(results, summary):
    alone = summary_of_results({Measure(): results[Measure()]}, ["scratch", "denoise"], ["pretraining"], None)
    for nine, three in zip(summary["235"]["comparisons"], alone["235"]["comparisons"], strict=True):
        assert nine["detectable"] > 1.1 * three["detectable"] and nine["difference"] == three["difference"]


def test_shares_differ_in_rates_and_train_data_which_is_fair(summary):
    for column in summary.values():
        assert not any(row["warning"] for row in column["comparisons"])
        assert not any("differ" in note for arm in column["arms"].values() for note in arm["notes"])


def test_epochs_of_a_pretraining_in_steps_are_those_of_its_schedule(tmp_path):
    """625 steps a pass of the data, of which 12,500 are taken in 300 epochs of the schedule: a probe every 417."""
    lines = []
    for number, step in enumerate((417, 834, 1251, 1668)):
        lines.append({"step": step, "epoch": (step - 1) // 625, "split": "val", "val_resize_size": 36, "top1": number})
    lines.append({"step": 1669, "epoch": 2, "split": "val", "val_resize_size": 36, "top1": 7})
    (tmp_path / "log.jsonl").write_text(as_text(lines))
    config = {"schedule.steps": 12500, "schedule.epochs": 300}
    scores = {score.measure.after: score.top1 for score in knn_curve(tmp_path, config)}
    assert scores == {10: 0, 20: 1, 30: 2, 40: 7}


def test_an_earlier_evaluation_is_the_newest_by_that_step(small, capsys):
    runs = small / "finetune/mfm/labels_1"
    summary = summary_of(capsys, runs, "--at-step", "299", "300")
    end = summary["235"]["arms"]["mfm"]["mean"]
    assert summary["235 after 299 steps"]["arms"]["mfm"]["mean"] == pytest.approx(end - 20)
    assert summary["235 after 300 steps"]["arms"]["mfm"]["mean"] == pytest.approx(end - 5)
    with pytest.raises(UserError, match=r"has no evaluation after at most 139 steps.*run.evaluate_every_epochs"):
        summarize.main([str(runs), "--at-step", "139"])


def test_runs_of_one_recipe_are_one_arm_at_every_share(tmp_path, capsys):
    for share in (0.1, 1.0):
        finished(tmp_path / f"run{share:g}", [f"data.label_fraction={share}"])
    finished(tmp_path / "different", ["loss.name=ce"])
    arms = {name: list(column["arms"]) for name, column in summary_of(capsys, tmp_path).items()}
    assert arms == {"235 labels 0.1": ["run0.1"], "235": ["different", "run0.1"]}


def test_evaluations_after_unequal_steps_are_marked(tmp_path, capsys):
    for arm, step in (("one", 140), ("other", 150)):
        for seed in (0, 1):
            run = finished(tmp_path / arm / f"f{seed}", [f"run.seed={seed}", f"data.workers={seed}"], top1=[50 + seed])
            line = {"step": step, "epoch": 0, "split": "val", "weights": "model", "val_resize_size": 235, "top1": 40.0}
            (run / "log.jsonl").write_text(as_text([line]))
    summary = summary_of(capsys, tmp_path, "--baseline", "one", "--at-step", "150")
    assert summary["235"]["comparisons"][0]["warning"] == ""
    assert summary["235 after 150 steps"]["comparisons"][0]["warning"] == "another step of the evaluation"


def test_probes_score_pretrainings_by_the_headline_at_their_last_checkpoint(results):
    assert {measure for measure in results if measure.of_pretraining} == {
        Measure(KNN), Measure(LINEAR), Measure(PIXELS), Measure(KNN_CURVE, after=10), Measure(KNN_CURVE, after=20),
    }  # fmt: skip
    knn, linear = results[Measure(KNN)]["mfm"].units("73"), results[Measure(LINEAR)]["mfm"].units("73")
    curve = results[Measure(KNN_CURVE, after=20)]["mfm"].units("36")
    assert sorted(knn) == ["0", "1"]
    for unit, (score,) in knn.items():
        assert linear[unit] == [pytest.approx(score + 12)]
        assert curve[unit] == [pytest.approx(score)]  # both 40 + gain


def test_probes_are_compared_in_pairs_of_seeds_and_raw_pixels_are_not(summary):
    (row,) = summary["knn 73"]["comparisons"]
    assert (row["arm"], row["baseline"], row["test"], row["units"]) == ("mfm", "denoise", "paired t", [2, 2])
    assert row["warning"] == "" and summary["pixels_knn 73"]["comparisons"] == []
    assert summary["knn 73"]["arms"]["mfm"]["deviation_of_finetunings"] is None


def test_probes_with_other_settings_are_marked(small, tmp_path, capsys):
    for arm, size in (("mfm", 73), ("denoise", 64)):
        for seed in (0, 1):
            pretrained(tmp_path, arm, seed, gain=seed + seed * len(arm))
            path = tmp_path / "pretrain" / arm / f"p{seed}/evaluations/probe_step_{STEPS:08d}.json"
            content = json.loads(path.read_text())
            content["decided_by"]["interpolation"] = str(size)
            path.write_text(json.dumps(content))
    (row,) = summary_of(capsys, tmp_path, "--baseline", "denoise", "--factor", "pretraining")["knn 73"]["comparisons"]
    assert row["warning"] == "another probe's interpolation"


def test_a_setting_that_older_probes_do_not_name_had_its_default(tmp_path, capsys):
    for arm in PRETRAININGS:
        for seed in (0, 1):
            pretrained(tmp_path, arm, seed, gain=seed + seed * len(arm))
    for path in (tmp_path / "pretrain/mfm").rglob(f"probe_step_{STEPS:08d}.json"):
        content = json.loads(path.read_text())
        content["decided_by"] |= {"label_fraction": 1.0, "holdout_fraction": 0.0, "train_list": None}
        path.write_text(json.dumps(content))
    words = ["--baseline", "denoise", "--factor", "pretraining"]
    (row,) = summary_of(capsys, tmp_path, *words)["knn 73"]["comparisons"]
    assert row["warning"] == ""


@pytest.mark.parametrize("other", [True, False])
def test_averaged_weights_are_an_arm_of_their_own(other, tmp_path):
    """Also where nothing else was probed, and in folders outside of a study."""
    scores = {}
    for seed in (0, 1):
        pretrained(tmp_path, "mfm", seed, gain=0)
        run = tmp_path / f"mfm_{seed}"
        (tmp_path / f"pretrain/mfm/p{seed}").rename(run)
        (run / "log.jsonl").unlink()
        write_probe(run, STEPS, top1=70 + seed, weights="ema")
        if not other:
            (run / f"evaluations/probe_step_{STEPS:08d}.json").unlink()
        scores[str(seed)] = [70 + seed]
    arms = read_results([tmp_path])[Measure(KNN)]
    assert arms["mfm_0 (ema)"].units("73") == scores
    assert set(arms) == ({"mfm_0", "mfm_0 (ema)"} if other else {"mfm_0 (ema)"})


def test_each_size_of_a_probe_has_its_columns(tmp_path, capsys):
    """Two arms at two crops: no score is lost."""
    header = "arm,pretrain_seed,finetune_seed,val_resize_size,score,labels,after,top1\n"
    rows = ""
    for arm, size, top1 in (("mfm64", 73, 29), ("noise64", 73, 27), ("mfm128", 146, 45), ("noise128", 146, 41)):
        for seed in (0, 1):
            rows += f"{arm},{seed},,{size},knn,1,,{top1 + seed / 2}\n{arm},{seed},,{size},linear,1,,{top1}\n"
    (tmp_path / "results.csv").write_text(header + rows)
    summarize.main([str(tmp_path / "results.csv"), "--baseline", "noise64", "noise128"])
    lines = capsys.readouterr().out.splitlines()
    columns = "20 neighbours at 73 | 20 neighbours at 146 | linear probe at 73 | linear probe at 146 |"
    assert f"| arm | runs | {columns}" in lines and f"| difference | {columns}" in lines
    assert "| mfm64 | 2 | 29.25 ± 0.35 |  | 29.00 ± 0.00 |  |" in lines
    assert "| mfm128 | 2 |  | 45.25 ± 0.35 |  | 45.00 ± 0.00 |" in lines
    assert "| mfm64 − noise64 | +2.00 |  | +2.00 |  |" in lines
    assert "**20 neighbours at 73**" in lines and "**20 neighbours at 146**" in lines


def test_a_list_stands_at_the_share_of_train_that_it_names(tmp_path, capsys):
    images = {"used": 128_116, "found": 1_281_167}  # SimCLR's 10 %
    finished(tmp_path / "list", ["data.train_list=10percent.txt"], train_images=images)
    finished(tmp_path / "share", ["data.label_fraction=0.1"])
    finished(tmp_path / "all")
    arms = {name: list(column["arms"]) for name, column in summary_of(capsys, tmp_path).items()}
    assert arms == {"235 labels 0.1": ["list", "all"], "235": ["all"]}
    finished(tmp_path / "unknown", ["data.train_list=10percent.txt", "loss.name=ce"])
    with pytest.raises(UserError, match=r"unknown: result\.json does not say which share .*10percent\.txt is"):
        read_results([tmp_path])


def test_two_probes_of_one_checkpoint_are_an_error_that_names_the_run(tmp_path):
    pretrained(tmp_path, "mfm", 0, gain=0)
    evaluations = tmp_path / "pretrain/mfm/p0/evaluations"
    first = evaluations / f"probe_step_{STEPS:08d}.json"
    first.with_name(f"probe_step_{STEPS:08d}-2.json").write_text(first.read_text())
    with pytest.raises(UserError, match=r"p0: a second result of arm mfm, pretrain_seed 0.*\(knn\)"):
        read_results([tmp_path])


def test_a_pretraining_without_a_probe_has_no_result(tmp_path):
    pretrained(tmp_path, "mfm", 0, gain=0)
    for path in tmp_path.rglob("probe_*.json"):
        path.unlink()
    (tmp_path / "pretrain/mfm/p0/log.jsonl").unlink()
    with pytest.raises(UserError, match="no probe of a finished pretraining"):
        read_results([tmp_path])


def test_a_csv_gives_all_of_it_again(results, tmp_path):
    text = to_csv(results)
    assert text.splitlines()[0] == "arm,pretrain_seed,finetune_seed,val_resize_size,score,labels,after,top1"
    (tmp_path / "results.csv").write_text(text)
    again = read_results([tmp_path / "results.csv"])
    assert list(again) == list(results)
    for measure, arms in results.items():
        for name, arm in arms.items():
            assert again[measure][name].scores == arm.scores and again[measure][name].pretrained == arm.pretrained


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("a,0,0,32,best,1,,5", "line 2: score = best: must be one of finetuning"),
        ("a,0,0,32,,2,,5", "line 2: labels = 2.0: must be a share"),
        ("a,0,0,32,,few,,5", "line 2: labels and after must be numbers"),
        ("a,,,32,knn,1,,5", "line 2: arm, pretrain_seed and val_resize_size must not be empty"),
    ],
)
def test_bad_cells_of_a_csv_are_told(cells, message, tmp_path):
    header = "arm,pretrain_seed,finetune_seed,val_resize_size,score,labels,after,top1"
    (tmp_path / "bad.csv").write_text(f"{header}\n{cells}\n")
    with pytest.raises(UserError, match=message):
        summarize.main([str(tmp_path / "bad.csv")])


def test_the_tables_have_shares_as_columns(summary):
    text = to_markdown(SummaryTables.of(summary, difference=None))
    header = "top-1 % at 235, 1 % of labels | top-1 % at 235, 10 % of labels | top-1 % at 235 |"
    assert f"| arm | runs | {header}" in text and f"| difference | {header}" in text
    assert "**Top-1 % of finetunings after at most 150 steps**" in text
    mean = summary["235 labels 0.01"]["arms"]["mfm"]
    assert f"| mfm | 4 | {mean['mean']:.2f} ± {mean['sample_deviation']:.2f} |" in text
    rows = summary["235 labels 0.01"]["comparisons"]
    (row,) = [row for row in rows if (row["arm"], row["baseline"]) == ("mfm", "scratch")]
    low, high = row["interval"]
    assert f"| mfm − scratch | {row['difference']:+.2f} ({low:+.2f} to {high:+.2f}), p {row['p_holm']:.3f} |" in text
    assert "| arm | runs | 20 neighbours | linear probe | 20 neighbours of raw pixels |" in text


def test_the_figure_of_labels_has_the_means_and_intervals_of_the_tables(results, summary):
    panel = label_panels(results)[0]
    axis = labels_figure(panel.lines).axes[0]
    assert axis.get_xscale() == "log" and list(axis.get_xticks()) == [1, 10, 100]
    assert len(axis.containers) == 3
    for container, arm in zip(axis.containers, panel.lines, strict=True):
        line, _, (bars,) = container
        columns = [summary[name]["arms"][arm] for name in ("235 labels 0.01", "235 labels 0.1", "235")]
        assert list(line.get_ydata()) == pytest.approx([column["mean"] for column in columns])
        ends = [list(segment[:, 1]) for segment in bars.get_segments()]
        assert np.array(ends) == pytest.approx(np.array([column["interval"] for column in columns]))
        assert list(line.get_xdata()) == pytest.approx([1, 10, 100], rel=0.06)


def test_figures_are_written_for_what_there_is(results, tmp_path):
    paths = write_figures(results, tmp_path)
    names = ["knn_at_36.png", "labels_at_235.png", "labels_at_235_after_150_steps.png"]
    assert sorted(path.name for path in paths) == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    finished(tmp_path / "one/f0")
    assert write_figures(read_results([tmp_path / "one"]), tmp_path) == []
