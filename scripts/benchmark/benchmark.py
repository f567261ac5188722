"""How fast each part is, beside what the public codes do, on this machine in the same run.

python scripts/benchmark/benchmark.py input --json input.json          # input, filter-loss, step, eval, startup: ours and theirs
python scripts/benchmark/benchmark.py step --profile trace.json        # and a trace for chrome://tracing or perfetto.dev
python scripts/benchmark/benchmark.py plan                             # what training would cost on 1 to 512 GPUs
python scripts/benchmark/benchmark.py pictures                         # what pictures in TensorBoard cost

The two sides live in two processes, set up as in their own runs, and take turns: which one goes first alternates, and
a ratio is of two neighbours. `--help` after a command tells its settings.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs.schema import Logging, PretrainConfig
from data.folder import ImageFolder
from models.trunk import masked_frequency_model
from pretrain import pictures_of, pretraining_loss
from scripts.benchmark import contestants, plan
from scripts.benchmark.side_by_side import WARM_UP, against, spread, synchronize
from utils.config import parse_command_line
from utils.distributed import run_entry
from utils.run.job import build_state, open_log, open_run, provenance, resolved
from utils.training.step import training_step


def photographs(settings: dict, folder: str) -> dict:
    """Settings with a data_path: the one given, or photographs made in `folder`."""
    if settings["data_path"] is None:
        from scripts.benchmark.photographs import make_photographs  # of a package that is there for tests

        settings["data_path"] = str(make_photographs(Path(folder, "photographs"), 400))
    files = [path for path in Path(settings["data_path"]).rglob("*") if path.is_file()]
    return settings | {"mean_kb": round(sum(path.stat().st_size for path in files) / len(files) / 1000, 1)}


def compare_input(settings: dict, folder: str) -> dict:
    s = photographs(settings, folder)
    found = {"settings": s, "against_pil": against(contestants.our_input, contestants.pil_input, s)}
    found["against_decoding_alone"] = against(contestants.our_input, contestants.decoding_alone, s)
    return found | {"pixel_difference_from_pil": contestants.pixel_difference(s)}


def compare_filter_loss(settings: dict, _folder: str) -> dict:
    found = {"settings": settings}
    for recipe in ("code_a", "paper"):
        for batch in settings["batch"]:
            s = settings | {"recipe": recipe, "batch": batch}
            pair = contestants.our_filter_loss, contestants.full_spectrum_filter_loss
            found[f"{recipe}_batch_{batch}"] = against(*pair, s, memory=True)
    return found


def compare_step(settings: dict, folder: str) -> dict:
    s = settings | {"recipe": "code_a"}
    found = {"settings": s, "step": against(contestants.our_step, contestants.full_spectrum_step, s)}
    if s["ranks"]:
        found["ranks"] = {ranks: real_steps(ranks, photographs(s, folder), Path(folder)) for ranks in s["ranks"]}
    return found


def real_steps(ranks: int, s: dict, folder: Path) -> dict:
    """Real runs of pretrain.py, loader and all: images a second and the share of time that a step waited for them."""
    output, train, batch = folder / f"ranks_{ranks}", folder / "data" / "train", 2 * s["batch"]
    train.parent.mkdir(exist_ok=True)
    train.exists() or train.symlink_to(Path(s["data_path"]).resolve())
    words = f"""-m torch.distributed.run --standalone --nproc_per_node={ranks} pretrain.py
        --config configs/pretrain_resnet50.yaml model.name={s["model"]} run.device={s["device"]} data.workers=1
        train.batch_size={batch} train.images_per_device={batch // max(s["ranks"])} schedule.epochs={s["pairs"]}
        schedule.warmup_epochs=0 logging.every_steps=1 logging.pictures_every_steps=null checkpoint.every_minutes=1e6"""
    command = [sys.executable, *words.split(), "--data-path", str(train.parent), "--output-dir", str(output)]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    log, lines = output / "log.jsonl", []
    while job.poll() is None and len(lines) < s["pairs"] + WARM_UP:
        time.sleep(1)
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    job.terminate()
    job.wait()
    told = [json.loads(line) for line in lines[WARM_UP:]]
    shown = {name: spread([line[name] for line in told]) for name in ("images_per_second", "data_wait_share")}
    return {"batch": batch, "images_per_device": batch // max(s["ranks"]), "steps": len(told), **shown}


def compare_eval(settings: dict, folder: str) -> dict:
    """`theirs` is our own input for several resize sizes, `ours` for one."""
    s, one = photographs(settings, folder), {"resize_sizes": settings["resize_sizes"][:1]}
    side = contestants.evaluation_input
    return {"settings": s, "several_over_one": against(side, side, s | one, resize_sizes=s["resize_sizes"])}


def compare_startup(settings: dict, folder: str) -> dict:
    os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
    root = Path(folder, "tree")
    long_ago = time.time() - 3600  # else the folder is taken for one that may still change
    for number in range(settings["classes"]):
        name = root / f"n{number:08d}"
        name.mkdir(parents=True)
        for image in range(number, settings["files"], settings["classes"]):
            os.close(os.open(name / f"n{number:08d}_{image}.JPEG", os.O_CREAT))
        os.utime(name, (long_ago, long_ago))
    s = settings | {"data_path": str(root)}
    found = {"settings": s, "listing": against(contestants.our_listing, contestants.torchvision_listing, s)}
    ImageFolder(str(root))
    found["from_cache"] = against(contestants.cached_listing, contestants.torchvision_listing, s)
    for name, make in (("ours", ImageFolder), ("theirs", contestants.TorchvisionFolder)):
        grown = partial(growth, make(str(root)))  # in each of two loader workers
        found[f"worker_growth_mb_{name}"] = [*DataLoader(range(2), None, num_workers=2, collate_fn=grown)]
    for figures in (found["listing"], found["from_cache"]):  # of all files
        for side in ("ours_ms", "theirs_ms"):
            figures[side.replace("ms", "seconds_in_all")] = round(figures[side]["median"] * s["files"] / 1000, 3)
    return found


def growth(folder, _number: int) -> float:
    """MB of private memory that a process gains by asking for every entry of a folder."""
    before = private_mb()
    for entry in range(len(folder)):
        folder.path(entry) if isinstance(folder, ImageFolder) else folder.samples[entry]
    return round(private_mb() - before, 1)


def private_mb() -> float:
    """Pages that no other process shares: what the kernel had to copy for this one, or gave it."""
    told = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    return sum(int(kb) for kb in re.findall(r"Private_\w+: +(\d+) kB", told)) / 1000


def pictures(settings: dict, folder: str) -> dict:
    """One event of `logging.pictures_every_steps`, and its share of the time of training, at a step of that batch."""
    words = ["--config", settings["config"], f"run.device={settings['device']}", "--output-dir", folder]
    config = parse_command_line(PretrainConfig, [*words, "logging.pictures_every_steps=1"], "")
    run = open_run(config)
    config = resolved(config, settings["batch"], run.dtype)
    s = settings | {"size": config.data.train_crop_size, "precision": config.train.precision}
    model = masked_frequency_model(config.model.name, 1 if config.loss.target == "gray" else 3)
    state, log = build_state(config, run, model), open_log(config, run, 0, 10**9, "benchmark")
    batch, loss_of = contestants.half_batch(s), pretraining_loss(config, run.world.device)
    train = ImageFolder(str(Path(config.data.data_path) / "train"))
    show = pictures_of(config, run, log, state.model, train, 10**9)
    tasks = {"step": lambda: training_step(state, 0, 1e-4, [batch], loss_of), "event": lambda: show(1)}
    took = {name: [] for name in tasks}
    for turn in range(-WARM_UP, s["pairs"]):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            synchronize(s)
            took[name] += [1000 * (time.perf_counter() - began)] if turn >= 0 else []
    log.close()
    event, steps = statistics.median(took["event"]), Logging().pictures_every_steps * statistics.median(took["step"])
    shares = {"every_steps": Logging().pictures_every_steps, "share_of_training_time": event / (event + steps)}
    return {"settings": s, "model": config.model.name, **{f"{k}_ms": spread(v) for k, v in took.items()}, **shares}


COMMANDS = {
    "input": (compare_input, "files to crops, one core: ours, PIL's, decoding alone"),
    "filter-loss": (compare_filter_loss, "filter, loss and its gradient: ours, whole spectra"),
    "step": (compare_step, "a training step of random images: ours, public code A's recipe"),
    "eval": (compare_eval, "files to evaluation crops, one core: one resize size, several"),
    "startup": (compare_startup, "listing a folder of ImageNet's size, and what loader workers grow by"),
    "pictures": (pictures, "one event of logging.pictures_every_steps"),
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    of = {name: commands.add_parser(name, help=told) for name, (_, told) in COMMANDS.items()}
    of["plan"] = plan.add_arguments(commands.add_parser("plan", help="what training would cost"))

    def add(names: str, flag: str, **more) -> None:
        for name in names.split() or COMMANDS:
            of[name].add_argument(flag, **more)

    add("", "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    add("", "--pairs", type=int, default=20, help="neighbours that are compared")
    add("", "--threads", type=int, default=torch.get_num_threads(), help="of each side on a CPU")
    add("", "--size", type=int, default=224, help="pixels of a crop's side")
    add(f"plan {' '.join(COMMANDS)}", "--json", type=Path, help="file for the figures")
    add("input eval step", "--data-path", help="a folder with class folders; else photographs of scikit-image's")
    add("input eval", "--images", type=int, default=100, help="of one turn")
    add("input eval", "--interpolation", default="bicubic", choices=("bicubic", "bilinear"))
    add("eval", "--resize-sizes", type=int, nargs="+", default=[235, 234, 236], help="the first one alone")
    add("filter-loss", "--batch", type=int, nargs="+", default=[16, 128], help="images")
    add("step", "--model", default="resnet50", help="a torchvision ResNet")
    add("step", "--precision", default="auto", help="ours: auto, float32, bfloat16 or float16")
    add("step", "--ranks", type=int, nargs="*", default=[], help="also real runs with so many ranks")
    add("step", "--profile", help="file for a trace of one of our steps")
    add("pictures", "--config", default="configs/sample_pretrain.yaml", help="a pretraining recipe")
    add("step pictures", "--batch", type=int, default=16, help="images of a step")
    add("startup", "--files", type=int, default=1_281_167)
    add("startup", "--classes", type=int, default=1000)
    return top


def machine() -> dict:
    cpu = re.search("model name\\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    told = {"cpu": cpu[1] if cpu else platform.machine(), "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
    return {key: value for key, value in provenance().items() if key != "world_size"} | told


def main(argv: list[str]) -> None:
    arguments = parser().parse_args(argv)
    if arguments.command == "plan":
        found = plan.plan(arguments)
        print(plan.as_markdown(found))
    else:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("command", "json")}
        with tempfile.TemporaryDirectory() as folder:
            found = COMMANDS[arguments.command][0](settings, folder)
        print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found | {"machine": machine()}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
