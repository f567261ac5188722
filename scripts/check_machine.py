"""Does this machine compute what it should, how fast is it, and how long will each recipe take? Before the first epoch.

python scripts/check_machine.py                                              # one GPU, or the CPU at a small size
torchrun --standalone --nproc_per_node=8 scripts/check_machine.py            # all GPUs of a machine
python scripts/check_machine.py --data-path imagenet --json machine.json     # with your images; figures to a file

It prints a table. Exit code 1: something that must hold does not; the table says what to do. Images and weights are
made, and nothing is written but the JSON file.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.machine.environment import MACHINE, environment_rows, today
from scripts.machine.exactness import NUMBERS, STEPS, filter_and_loss_rows, training_step_rows
from scripts.machine.guards import BAD_STEPS, REPEATS, bad_step_rows, repeat_rows
from scripts.machine.loading import LOADER, loader_rate, loader_rows, open_images
from scripts.machine.ranks import rank_rows
from scripts.machine.recipes import Measured, recipe_rows
from scripts.machine.rows import FAIL, Row, agreed, as_json, has_failed, rows_or_failure, table_of
from scripts.machine.scoring import EVALUATION, evaluation_rows
from scripts.machine.speed import MEMORY, SPEED, default_rate, memory_rows, speed_rows
from scripts.machine.workload import Workload
from utils.console import say
from utils.distributed import World, join, local_rank, run_entry
from utils.errors import UserError
from utils.precision import choose_precision, set_determinism, set_numerics
from utils.run.provenance import write_json

MANY_IMAGES, SOME_IMAGES, FEW_IMAGES, IMAGES_ON_CPU = 128, 64, 32, 8
GB_FOR_MANY, GB_FOR_SOME = 20, 10  # of a GPU; 128 images of 224 pixels in float32 take 13 GB
BY_EACH_RANK = {
    MACHINE: environment_rows, NUMBERS: filter_and_loss_rows, STEPS: training_step_rows, BAD_STEPS: bad_step_rows,
    REPEATS: repeat_rows, EVALUATION: evaluation_rows, MEMORY: memory_rows,
}  # fmt: skip


def main(argv: list[str]) -> int:
    options = parse(argv)
    # cuBLAS looks at it once. It is deterministic with it only, and as fast; see utils.precision.set_determinism.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    world = join(options.device, timeout_minutes=10)
    set_determinism(False)
    set_numerics(choose_precision("auto", world.device), tf32=None)
    with tempfile.TemporaryDirectory() as folder:
        first_of_machine = world.rank - local_rank()
        work = workload_of(options, world, Path(world.gather(folder)[first_of_machine]))
        rows = measured_rows(work, options.data_path)
        world.wait_for_all()  # the first rank's folder, which all of its machine use, goes now
    if world.rank == 0:
        say(table_of(rows))
        if options.json is not None:
            content = {
                "date": today(), "device": str(world.device), "ranks": world.size, "model": work.model,
                "pixels": work.pixels, "images": work.images, "passed": not has_failed(rows),
                "rows": [as_json(row) for row in rows],
            }  # fmt: skip
            write_json(options.json, content)
        say(f"\n{verdict(rows)}")
    return 1 if has_failed(rows) else 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--data-path", help="images to load, as pretrain.py takes them; default: made JPEGs")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--model", default="resnet50", help="a torchvision ResNet (resnet50)")
    parser.add_argument("--pixels", type=int, help="side of an image; default: 224 on a GPU, 64 on a CPU")
    parser.add_argument("--images", type=int, help="of a micro-batch; default: 32 to 128 by the GPU, 8 on a CPU")
    return parser.parse_args(argv)


def workload_of(options: argparse.Namespace, world: World, folder: Path) -> Workload:
    """Raises: UserError if a size is too small."""
    pixels, images = options.pixels, options.images
    if pixels is None:
        pixels = 224 if world.device.type == "cuda" else 64
    if images is None:
        images = default_images(world.device)
    if images < 2:
        raise UserError(f"--images = {images}: must be at least 2, for BatchNorm")
    return Workload(world, options.model, pixels, images, folder)


def default_images(device: torch.device) -> int:
    if device.type == "cpu":
        return IMAGES_ON_CPU
    gb = torch.cuda.get_device_properties(device).total_memory / 1e9
    if gb >= GB_FOR_MANY:
        return MANY_IMAGES
    if gb >= GB_FOR_SOME:
        return SOME_IMAGES
    return FEW_IMAGES


def measured_rows(work: Workload, data_path: str | None) -> list[Row]:
    """Every section's rows, alike on all ranks."""
    world = work.world
    images = world.in_turn(lambda: open_images(work, data_path))  # first, as an error of the folder ends it all
    rows = []
    for section, measure in BY_EACH_RANK.items():
        announce(world, section)
        rows += agreed(rows_or_failure(section, work, measure), world)
    announce(world, "speed, loader, ranks, recipes")
    step_rows = rows_or_failure(SPEED, work, speed_rows)
    alone_rate = default_rate(step_rows, world.device)
    rows += agreed(step_rows, world)
    try:
        load_rows = rows_or_failure(LOADER, work, lambda work: loader_rows(work, images, data_path, alone_rate))
        rows += agreed(load_rows, world)
        slowest_loader = min(world.gather(loader_rate(load_rows)))
        together_rows, step_rate = rank_rows(work, alone_rate)
        rows += agreed(together_rows, world)
    except Exception:  # what the ranks do together ends the program if it fails on one
        if world.rank == 0:
            say(table_of(rows))
        raise
    return rows + recipe_rows(Measured(work.model, work.pixels, step_rate, slowest_loader * world.size))


def announce(world: World, section: str) -> None:
    if world.rank == 0:
        say(f"checking: {section}", to_stderr=True)


def verdict(rows: list[Row]) -> str:
    failed = [row for row in rows if row.result == FAIL]
    if not failed:
        return "All that must hold does."
    lines = [f"{len(failed)} of what must hold does not:"]
    for row in failed:
        lines.append(f"- {row.section}: {row.what}: {row.measured} (must hold: {row.must_hold}). {row.remedy}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_entry(main, sys.argv[1:], output_is_result=True)
