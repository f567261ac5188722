"""A grid of arms × shares of the labels × seeds: run, interrupted, gone on with, and summarised.

python scripts/study/study.py configs/studies/sample_loss_by_init.yaml --jobs 2
python scripts/study/study.py configs/studies/crop_ratio.yaml --dry-run          # the runs and their expected time
python scripts/study/study.py configs/studies/crop_ratio.yaml --print-commands   # for a cluster; then again without it

Runs lie in runs/studies/NAME, beside the table, results.csv and resolved configs. Started again, it keeps what has
finished, if its config is still the study's, and goes on with the rest. Finetuning f of pretraining p has the seed
1000 p + f, so no two share their luck. With one process a run it takes `python pretrain.py`, which is torchrun's job of
one process, and starts sooner.
"""

import argparse
import shlex
import shutil
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.study.arms import Results
from scripts.study.comparisons import names_of_arms, summarize
from scripts.study.figures import write_figures
from scripts.study.plan import GridOptions, Study, read_study
from scripts.study.planned_run import FINETUNING, PRETRAINING, PROBE, PlannedRun
from scripts.study.read_runs import add_finetuning, add_pretraining
from scripts.study.scheduler import LOG, Machine, Scheduler
from scripts.study.scores_csv import to_csv
from scripts.study.tables import SummaryTables, to_markdown
from utils.console import say
from utils.distributed import run_entry
from utils.errors import UserError
from utils.limits import available_cores
from utils.process import EXIT_REQUEUE
from utils.run.reading import read_json

SHOWN_LOG_LINES = 15  # of a run that failed


def print_failures(failed: dict[PlannedRun, str]) -> None:
    """Why runs failed, each with the end of what it printed."""
    for run, problem in failed.items():
        say(f"\nFAILED {run.folder}: {problem}")
        log = run.folder / LOG
        if log.is_file():
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LOG_LINES:]:
                say(f"    {line}")


def publish(study: Study) -> None:
    """Tables, figures, results.csv and a resolved config of each arm and pretraining, from what has finished."""
    finished = [run for run in study.runs if run.finished()]
    output, grid = study.output, study.grid
    results: Results = {}
    for run in finished:
        if run.kind == FINETUNING:
            add_finetuning(run.folder, read_json(run.folder / "result.json"), grid.at_steps, results)
        elif run.kind == PRETRAINING:
            add_pretraining(run.folder, read_json(run.folder / "result.json"), results)
    if not results:
        return
    scored = names_of_arms(results)
    baselines = [name for name in grid.baseline if name in scored]
    summary = summarize(results, baselines, list(grid.factor), difference=None)
    table = to_markdown(SummaryTables.of(summary, difference=None))
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    (output / "results.csv").write_text(to_csv(results), encoding="utf-8")
    copy_configs(finished, output / "configs")
    try:
        write_figures(results, output)
    except ImportError as error:
        say(f"no figures: {error}")
    counts = f"{len(finished)} of {len(study.runs)} runs"
    say(f"\n{table}\n\n{counts}; written to {output}: table.md, results.csv, configs/")


def copy_configs(finished: list[PlannedRun], folder: Path) -> None:
    """The resolved config of the first run of each arm and pretraining, where scripts/study/scores_csv.py reads it."""
    folder.mkdir(exist_ok=True)
    for run in reversed(finished):  # so that the first run's stays
        if run.kind == PROBE:
            continue
        copy = folder / f"{run.config_name()}.yaml"
        shutil.copyfile(run.folder / "config.yaml", copy)
        if run.needs:
            shutil.copyfile(run.folder / "pretraining.yaml", copy.with_suffix(".pretraining.yaml"))


@dataclass
class Durations:
    """How long runs take that have not been done yet."""

    grid: GridOptions
    of_arm: dict[str, list[float]] = field(default_factory=dict)  # name of an arm or pretraining -> seconds
    of_kind: dict[str, list[float]] = field(default_factory=dict)

    def note(self, run: PlannedRun) -> None:
        seconds = run.seconds()
        if seconds:
            self.of_arm.setdefault(run.config_name(), []).append(seconds)
            self.of_kind.setdefault(run.kind, []).append(seconds)

    def expected(self, run: PlannedRun) -> float:
        """Seconds: the mean over runs of the same arm, else of the same kind, else what the study states."""
        if run.config_name() in self.of_arm:
            return statistics.mean(self.of_arm[run.config_name()])
        if run.kind in self.of_kind:
            return statistics.mean(self.of_kind[run.kind])
        minutes = {
            PRETRAINING: self.grid.pretrain_minutes,
            FINETUNING: self.grid.finetune_minutes,
            PROBE: self.grid.probe_minutes,
        }
        return 60 * minutes[run.kind]


def print_runs(study: Study, jobs: int) -> None:
    """What --dry-run shows: each run with its state and its time, and the time that is left."""
    durations = Durations(study.grid)
    for run in study.runs:
        durations.note(run)
    seconds_left = 0.0
    for run in study.runs:
        expected = durations.expected(run)
        if run.finished():
            state = "finished"
        else:
            state = "unfinished" if (run.folder / "checkpoints").is_dir() else "to do"
            seconds_left += expected
        say(f"{state:10}  {expected / 60:8.1f} min  {run.folder}")
    minutes = seconds_left / 60
    say(f"{len(study.runs)} runs; about {minutes:.0f} minutes left in all, {minutes / jobs:.0f} with --jobs {jobs}")


def print_commands(study: Study) -> None:
    """The command lines of what is not finished, and SLURM arrays over lists of all runs, whose numbers stay."""
    study.output.mkdir(parents=True, exist_ok=True)
    pretrainings = [run for run in study.runs if run.kind == PRETRAINING]
    from_scratch = [run for run in study.runs if run.kind == FINETUNING and not run.needs]
    finetunings = [run for run in study.runs if run.kind == FINETUNING and run.needs]
    probes = [run for run in study.runs if run.kind == PROBE]
    # afterany: where one pretraining failed, its finetunings say so themselves, and the others run.
    after_pretraining = "--dependency=afterany:JOB_ID_OF_PRETRAIN "
    arrays = [
        print_commands_of(study, "pretrain", pretrainings),
        print_commands_of(study, "finetune_scratch", from_scratch),
        print_commands_of(study, "finetune", finetunings, dependency=after_pretraining),
    ]
    if probes:
        arrays.append(print_commands_of(study, "probe", probes, dependency=after_pretraining))
    say("# or as SLURM arrays:")
    for array in arrays:
        if array:
            say(f"# {array}")


def print_commands_of(study: Study, name: str, runs: list[PlannedRun], dependency: str = "") -> str:
    """Print the command lines, and write them to a list. Returns: the SLURM array that runs them ("": all finished)."""
    processes = study.grid.processes
    launcher = "python"
    if processes > 1:
        launcher = f"torchrun --standalone --nproc_per_node={processes}"
    lines, numbers = [], []
    for number, run in enumerate(runs, 1):
        line = shlex.join([run.entry, *run.words])
        lines.append(f"{line}\n")
        if not run.finished():
            numbers.append(str(number))
            say(f"{launcher} {line} --resume auto")
    path = study.output / f"{name}.txt"
    path.write_text("".join(lines), encoding="utf-8")
    if not numbers:
        return ""
    resources = f"--gpus-per-node={processes} --array={','.join(numbers)}"
    return f"sbatch {dependency}{resources} scripts/slurm.sbatch {shlex.quote(str(path))}"


def this_machine(study: Study, jobs: int, gpus_per_job: int | None) -> Machine:
    """Raises: UserError if it has not enough GPUs or cores for so many jobs."""
    gpus = torch.cuda.device_count()
    if gpus_per_job is None:
        gpus_per_job = study.grid.processes if gpus else 0
    if gpus_per_job:
        most, has = gpus // gpus_per_job, f"{gpus} GPUs for {gpus_per_job} a job"
    else:
        most, has = available_cores(), f"{available_cores()} CPU cores"
    if jobs > most:
        raise UserError(f"--jobs {jobs}: must be from 1 to {most}: this machine has {has} (--gpus-per-job)")
    return Machine(jobs, gpus_per_job)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a YAML of configs/studies/")
    parser.add_argument("--output-dir", type=Path, help="default: runs/studies/NAME")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs beside each other")
    parser.add_argument("--gpus-per-job", type=int, metavar="M", help="default: the study's processes; 0: on the CPU")
    parser.add_argument("--dry-run", action="store_true", help="list the runs with their predicted time")
    parser.add_argument("--print-commands", action="store_true", help="print the commands instead of running them")
    arguments = parser.parse_args(argv)
    output = arguments.output_dir or Path("runs/studies", Path(arguments.study).stem)
    study = read_study(arguments.study, output)
    if arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: must be at least 1")
    if arguments.dry_run:
        print_runs(study, arguments.jobs)
        return 0
    if arguments.print_commands:
        print_commands(study)
        return 0
    scheduler = Scheduler.of(study.runs, this_machine(study, arguments.jobs, arguments.gpus_per_job))
    scheduler.execute()
    publish(study)
    print_failures(scheduler.failed)
    if scheduler.stopped:
        say("stopped on request; start it again to go on")
        return EXIT_REQUEUE
    return 1 if scheduler.failed else 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
