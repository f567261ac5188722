"""A grid of arms × pretraining seeds × finetuning seeds: run, interrupted, gone on with, and summarised.

python scripts/study/study.py configs/studies/sample_loss_by_init.yaml --jobs 2
python scripts/study/study.py configs/studies/crop_ratio.yaml --dry-run            # the runs, and how long they would take
python scripts/study/study.py configs/studies/crop_ratio.yaml --print-commands     # for a cluster; then the same without it

Runs lie in runs/studies/NAME, beside the table, results.csv and resolved configs. Started again, it keeps what has
finished, if its config is still the study's, and goes on with the rest. Finetuning f of pretraining p has the seed
1000 p + f, so no two share their luck. With one process a run it takes `python pretrain.py`, which is torchrun's job of
one process, and starts sooner.
"""

import argparse
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.study.plan import Grid, Planned, read_study
from scripts.study.summarize import read_arms, summarize, to_csv, to_markdown
from utils.distributed import run_entry
from utils.errors import UserError
from utils.process import EXIT_REQUEUE, StopRequest, available_cores, die_with_parent

ROOT = Path(__file__).resolve().parents[2]
LOG, LOG_LINES = "console.log", 15


def command(run: Planned, processes: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, os.path.relpath(ROOT / run.entry), *run.words, "--resume", "auto"]


def start(run: Planned, slot: int, jobs: int, gpus: int) -> subprocess.Popen:
    """The run with its share of cores and GPUs; it dies with us, and is signalled by us alone, not by the terminal."""
    cores, devices = sorted(os.sched_getaffinity(0)), os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    devices = devices if devices != [""] else [str(number) for number in range(jobs * gpus)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[slot * gpus : (slot + 1) * gpus])  # none: on the CPU

    def prepare():
        os.sched_setaffinity(0, cores[slot * len(cores) // jobs : (slot + 1) * len(cores) // jobs])
        die_with_parent(signal.SIGKILL)

    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / LOG, "a", encoding="utf-8") as log:
        return subprocess.Popen(
            command(run, max(1, gpus)), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment, start_new_session=True, preexec_fn=prepare,
        )  # fmt: skip


def execute(runs: list[Planned], jobs: int, gpus: int) -> tuple[dict[Planned, str], bool]:
    """Do what is not finished, `jobs` at once. Returns: what failed, and why; whether we were asked to stop."""
    done, running, failed, stopping = {run for run in runs if run.finished()}, {}, {}, False
    waiting = [run for run in runs if run not in done]
    print(f"{len(done)} of {len(runs)} runs finished already, {len(waiting)} to do", flush=True)
    with StopRequest() as stop:
        while waiting or running:
            for slot in sorted(set(range(jobs)) - {slot for slot, *_ in running.values()}):
                run = next((run for run in waiting if run.needs is None or run.needs in done), None)
                if run and not stop.requested:
                    waiting.remove(run)
                    running[run] = (slot, start(run, slot, jobs, gpus), time.monotonic())
            time.sleep(0.2)
            if stop.requested and not stopping:  # once: torchrun takes a second signal for impatience
                waiting, stopping = [], True
                for _, process, _ in running.values():
                    process.terminate()
            for run in [run for run, (_, process, _) in running.items() if process.poll() is not None]:
                _, process, began = running.pop(run)
                try:
                    why = "" if process.returncode == 0 and run.finished() else f"exit code {process.returncode}"
                except UserError as error:  # it went on from another config's checkpoint
                    why = str(error)
                if not why:
                    done.add(run)
                elif not stopping:
                    failed[run] = why
                    failed |= {later: "not run: its pretraining failed" for later in waiting if later.needs is run}
                    waiting = [later for later in waiting if later not in failed]
                how = "finished" if run in done else failed.get(run, "stopped")
                took = f"{(time.monotonic() - began) / 60:.1f} min"
                print(f"[{len(done)}/{len(runs)}] {run.folder} {how} in {took}; {len(failed)} failed", flush=True)
    return failed, stopping


def report(failed: dict[Planned, str]) -> None:
    for run, why in failed.items():
        log = run.folder / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:] if log.is_file() else []
        print(f"\nFAILED {run.folder}: {why}" + "".join(f"\n    {line}" for line in lines), flush=True)


def publish(grid: Grid, runs: list[Planned], output: Path) -> None:
    """Table, results.csv and a resolved config of each arm and pretraining, from what has finished."""
    finished = [run for run in runs if run.finished()]
    scored = [run.folder for run in finished if run.entry == "finetune.py"]
    if not scored:
        return
    arms = read_arms(scored)
    baselines = [name for name in grid.baseline if name in arms]
    table = to_markdown(summarize(arms, baselines, list(grid.factor), None), None)
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    (output / "results.csv").write_text(to_csv(arms), encoding="utf-8")
    (output / "configs").mkdir(exist_ok=True)
    for run in reversed(finished):  # the first of each arm stays
        name = f"{run.entry.removesuffix('.py')}_{run.folder.parent.name}.yaml"
        shutil.copyfile(run.folder / "config.yaml", output / "configs" / name)
        if run.needs:  # as summarize.py looks for it beside results.csv
            beside = (output / "configs" / name).with_suffix(".pretraining.yaml")
            shutil.copyfile(run.folder / "pretraining.yaml", beside)
    print(f"\n{table}\n\n{len(finished)} of {len(runs)} runs; written to {output}: table.md, results.csv, configs/")


def list_runs(grid: Grid, runs: list[Planned], jobs: int) -> None:
    """What --dry-run shows; a run is to take what those of its arm took, else those of its entry, else the study's."""
    took = defaultdict(list)
    for run in runs:
        for like in (run.folder.parent, run.entry) if run.seconds() else ():
            took[like].append(run.seconds())
    total = 0.0
    for run in runs:
        stated = 60 * (grid.pretrain_minutes if run.entry == "pretrain.py" else grid.finetune_minutes)
        expected = statistics.mean(took[run.folder.parent] or took[run.entry] or [stated])
        state = "finished" if run.finished() else "unfinished" if (run.folder / "checkpoints").is_dir() else "to do"
        total += 0 if state == "finished" else expected
        print(f"{state:10}  {expected / 60:8.1f} min  {run.folder}")
    print(f"{len(runs)} runs; about {total / 60:.0f} minutes left in all, {total / 60 / jobs:.0f} with --jobs {jobs}")


def print_commands(grid: Grid, runs: list[Planned], output: Path) -> None:
    """The lines of what is not finished; and lists of all runs, whose numbers stay, for SLURM arrays of those."""
    output.mkdir(parents=True, exist_ok=True)
    launcher = f"torchrun --standalone --nproc_per_node={grid.processes}" if grid.processes > 1 else "python"
    lists = {
        "pretrain": [run for run in runs if run.entry == "pretrain.py"],
        "finetune_scratch": [run for run in runs if run.entry == "finetune.py" and not run.needs],
        "finetune": [run for run in runs if run.needs],
    }
    arrays = ["# or as SLURM arrays:"]
    for name, listed in lists.items():
        lines = [shlex.join([run.entry, *run.words]) for run in listed]
        due = [number for number, run in enumerate(listed) if not run.finished()]
        for number in due:
            print(f"{launcher} {lines[number]} --resume auto")
        path = output / f"{name}.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        # afterany: where one pretraining failed, its finetunings say so themselves, and the others run.
        after = "--dependency=afterany:JOB_ID_OF_PRETRAIN " if name == "finetune" else ""
        gpus = f"--gpus-per-node={grid.processes} --array={','.join(str(number + 1) for number in due)}"
        arrays += [f"# sbatch {after}{gpus} scripts/slurm.sbatch {shlex.quote(str(path))}"] if due else []
    print("\n".join(arrays))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a YAML of configs/studies/")
    parser.add_argument("--output-dir", type=Path, help="default: runs/studies/NAME")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs beside each other")
    parser.add_argument("--gpus-per-job", type=int, metavar="M", help="default: the study's processes; 0: on the CPU")
    parser.add_argument("--dry-run", action="store_true", help="list the runs with their predicted time")
    parser.add_argument("--print-commands", action="store_true", help="print the commands instead of running them")
    arguments = parser.parse_args(argv)
    output, jobs = arguments.output_dir or Path("runs/studies", Path(arguments.study).stem), arguments.jobs
    grid, runs = read_study(arguments.study, output)
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: must be at least 1")
    if arguments.dry_run or arguments.print_commands:
        list_runs(grid, runs, jobs) if arguments.dry_run else print_commands(grid, runs, output)
        return 0
    there = torch.cuda.device_count()
    gpus = arguments.gpus_per_job if arguments.gpus_per_job is not None else grid.processes if there else 0
    most = there // gpus if gpus else available_cores()
    if jobs > most:
        what = f"{there} GPUs for {gpus} a job" if gpus else f"{available_cores()} CPU cores"
        raise UserError(f"--jobs {jobs}: must be from 1 to {most}: this machine has {what} (--gpus-per-job)")
    failed, stopped = execute(runs, jobs, gpus)
    publish(grid, runs, output)
    report(failed)
    if stopped:
        print("stopped on request; start it again to go on")
    return EXIT_REQUEUE if stopped else int(bool(failed))


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
