"""Whether arms differ, by how much, whether so few runs could tell, and whether it was a fair comparison.

python scripts/study/summarize.py runs/sample_finetune_mfm runs/sample_finetune_scratch
python scripts/study/summarize.py runs/studies/variance --baseline mfm --difference 0.1 --format json
python scripts/study/summarize.py results.csv --baseline scratch_bce scratch_ce --factor pretraining loss.name

Takes run folders, folders with such inside, and CSV files with columns arm, pretrain_seed (empty: not pretrained),
finetune_seed, val_resize_size, top1, and perhaps score, labels, after; `--format csv` writes such a file. Finetunings
are scored at each share of the labels, pretrainings by their probes. The unit of a comparison is the pretraining
(the mean of its finetunings, which share its luck and are not independent), or the finetuning in arms without
pretraining of ours. Units are compared in pairs where both arms are pretrained, or both are not, and have seeds in
common, since equal seeds then mean a common start and order of images; else by Welch's test. p is corrected over the
comparisons of one kind of score at one size: over all shares of the labels together, and over all epochs of a curve.
Intervals are of one comparison each.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.study.comparisons import summarize
from scripts.study.figures import write_figures
from scripts.study.read_runs import read_results
from scripts.study.scores_csv import to_csv
from scripts.study.tables import SummaryTables, to_markdown
from utils.console import say
from utils.distributed import run_entry
from utils.errors import UserError


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUNS_OR_CSV")
    parser.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown")
    parser.add_argument("--baseline", nargs="+", default=[], metavar="ARM", help="what every other arm is compared to")
    parser.add_argument("--factor", nargs="+", default=[], metavar="KEY", help="keys studied; KEY+KEY is one factor")
    parser.add_argument("--difference", type=float, metavar="D", help="how many units would detect D points?")
    parser.add_argument(
        "--at-step",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="score also each finetuning's newest evaluation after at most N steps",
    )
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="draw top-1 against labels, and against epochs")
    arguments = parser.parse_args(argv)
    difference = arguments.difference
    if difference is not None and not difference > 0:
        raise UserError(f"--difference {difference}: must be above 0 points")
    results = read_results(arguments.paths, tuple(arguments.at_step))
    if arguments.figures is not None:
        write_figures(results, arguments.figures)
    if arguments.format == "csv":
        say(to_csv(results).removesuffix("\n"))
        return 0
    summary = summarize(results, arguments.baseline, arguments.factor, difference)
    if arguments.format == "json":
        say(json.dumps(summary, indent=2, allow_nan=False))
    else:
        say(to_markdown(SummaryTables.of(summary, difference)))
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:], output_is_result=True)
