"""How fast each part is, beside what the public codes do, on this machine in the same run.

python scripts/benchmark/benchmark.py input --json input.json        # --help names all of them
python scripts/benchmark/benchmark.py step --profile trace.json      # and a trace for chrome://tracing or perfetto.dev
python scripts/benchmark/benchmark.py pictures                       # what pictures in TensorBoard cost

The two sides live in two processes, each set up as in its own runs, and take turns. Which one goes first alternates,
and a ratio is that of two neighbouring turns. `--help` after a command shows its options.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.benchmark import ours, theirs
from scripts.benchmark.pictures import measure_pictures
from scripts.benchmark.real_runs import run_ranks
from scripts.benchmark.side_by_side import Conditions, Side, compare
from scripts.benchmark.startup import measure_startup
from scripts.benchmark.workload import AUTHORS, COINCHEUNG
from utils.console import say
from utils.distributed import run_entry
from utils.errors import UserError
from utils.run.provenance import provenance


@dataclass(frozen=True)
class Command:
    """A measurement by its name on the command line.

    Args:
        measure: measure(options, folder) -> figures for the JSON file. It may write into `folder`, and notes in
            `options` what it chose itself, such as the images.
    """

    help: str
    add_options: Callable[[ArgumentParser], None]
    measure: Callable[[Namespace, Path], dict]


def main(argv: list[str]) -> None:
    options = make_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        figures = COMMANDS[options.command].measure(options, Path(folder))
    figures = {"settings": settings_of(options), **figures}
    say(json.dumps(figures, indent=2))
    if options.json is not None:
        figures["machine"] = machine()
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        of_command = commands.add_parser(name, help=command.help)
        add_common_options(of_command)
        command.add_options(of_command)
    return parser


def add_common_options(parser: ArgumentParser) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    parser.add_argument("--pairs", type=int, default=20, help="pairs of neighbouring turns to compare")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each side on a CPU")
    parser.add_argument("--size", type=int, default=224, help="side of a crop in pixels")
    parser.add_argument("--json", type=Path, help="file for the figures")


def add_data_path_option(parser: ArgumentParser) -> None:
    parser.add_argument("--data-path", help="a folder with class folders; default: photographs of scikit-image's")


def add_input_options(parser: ArgumentParser) -> None:
    add_data_path_option(parser)
    parser.add_argument("--images", type=int, default=100, help="images of one turn")
    parser.add_argument("--interpolation", default="bicubic", choices=("bicubic", "bilinear"))


def measure_input(options: Namespace, folder: Path) -> dict:
    """Files to training crops: ours beside PIL's, and beside decoding alone."""
    choose_images(options, folder)
    images = {"data_path": options.data_path, "images": options.images}
    crops = {**images, "size": options.size, "interpolation": options.interpolation}
    our_input = Side("our_input", ours.OurInput, crops, keeps_freed_memory=True)
    pil_input = Side("pil_input", theirs.PilInput, crops, keeps_freed_memory=False)
    decoding_alone = Side("decoding_alone", ours.DecodingAlone, images, keeps_freed_memory=True)
    return {
        "against_pil": compare(our_input, pil_input, conditions_of(options)),
        "against_decoding_alone": compare(our_input, decoding_alone, conditions_of(options)),
        "pixel_difference_from_pil": theirs.pixel_difference(**crops),
    }


def add_augment_options(parser: ArgumentParser) -> None:
    add_data_path_option(parser)
    parser.add_argument("--images", type=int, default=400, help="images of one turn")
    parser.set_defaults(size=160)


def measure_augment(options: Namespace, folder: Path) -> dict:
    """RandAugment of crops, on one core: torchvision's style and timm's, each beside the library's own."""
    choose_images(options, folder)
    figures = {}
    for style in ("torchvision", "timm"):
        arguments = {"style": style, "data_path": options.data_path, "size": options.size, "images": options.images}
        our_side = Side(f"our_{style}_style", ours.OurRandAugment, arguments, keeps_freed_memory=True)
        their_side = Side(f"{style}_on_pillow", theirs.PillowRandAugment, arguments, keeps_freed_memory=False)
        figures[style] = compare(our_side, their_side, conditions_of(options))
    return figures


def add_filter_loss_options(parser: ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 128], help="images")


def measure_filter_loss(options: Namespace, _folder: Path) -> dict:
    """Filter, loss and its gradient, with the settings of either public code."""
    figures = {}
    for recipe in (COINCHEUNG, AUTHORS):
        for batch in options.batch:
            arguments = {"recipe": recipe, "batch": batch, "size": options.size, "device": options.device}
            our_side = Side("our_filter_loss", ours.OurFilterAndLoss, arguments, keeps_freed_memory=True)
            their_side = Side(
                "full_spectrum_filter_loss", theirs.FullSpectrumFilterAndLoss, arguments, keeps_freed_memory=False
            )
            key = f"{recipe.key}_batch_{batch}"
            figures[key] = compare(our_side, their_side, conditions_of(options), memory=True)
    return figures


RIVAL = ("loss.scope=all",)
CORRUPTIONS = {
    "super_resolution": ("corruption.name=super_resolution", *RIVAL),
    "blur": ("corruption.name=blur", *RIVAL),
    "noise": ("corruption.name=noise", *RIVAL),
    "drawn_radius": ("filter.radius=[8,24]",),
    "magnitude": ("filter.mask=magnitude",),
}


def measure_corruptions(options: Namespace, _folder: Path) -> dict:
    """Every corruption with its loss, beside the filter of one radius with its own; all by the authors' recipe."""
    arguments = {"batch": options.batch, "size": options.size, "device": options.device}
    one_radius = Side("one_radius", ours.OurCorruption, {**arguments, "words": ()}, keeps_freed_memory=True)
    figures = {}
    for name, words in CORRUPTIONS.items():
        other = Side(name, ours.OurCorruption, {**arguments, "words": words}, keeps_freed_memory=True)
        figures[name] = compare(one_radius, other, conditions_of(options))
    return figures


def add_step_options(parser: ArgumentParser) -> None:
    add_data_path_option(parser)
    parser.add_argument("--model", default="resnet50", help="a torchvision ResNet")
    parser.add_argument("--precision", default="auto", help="of our side: auto, float32, bfloat16 or float16")
    parser.add_argument("--ranks", type=int, nargs="*", default=[], help="also real runs with so many ranks")
    parser.add_argument("--compile", help="of our side: backend of torch.compile, as train.compile: inductor")
    parser.add_argument("--profile", help="file for a trace of one of our steps")
    add_batch_option(parser)


def add_batch_option(parser: ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=16, help="images of a step")


def measure_step(options: Namespace, folder: Path) -> dict:
    """A training step on noise beside CoinCheung/MFM's; with --ranks also real runs of pretrain.py."""
    options.recipe = COINCHEUNG.key
    arguments = {"model": options.model, "batch": options.batch, "size": options.size, "device": options.device}
    our_arguments = {**arguments, "precision": options.precision, "compile_with": options.compile}
    our_side = Side("our_step", ours.OurStep, our_arguments, keeps_freed_memory=True)
    their_side = Side("full_spectrum_step", theirs.CoinCheungStep, arguments, keeps_freed_memory=False)
    figures = {"step": compare(our_side, their_side, conditions_of(options), launches=True, trace=options.profile)}
    if options.ranks:
        fill_data_path(options, folder)
        batch = 2 * options.batch
        figures["ranks"] = {}
        for ranks in options.ranks:
            figures["ranks"][ranks] = run_ranks(
                ranks,
                steps=options.pairs,
                batch=batch,
                images_per_device=batch // max(options.ranks),
                model=options.model,
                device=options.device,
                data_path=options.data_path,
                folder=folder,
            )
    return figures


def add_eval_options(parser: ArgumentParser) -> None:
    add_input_options(parser)
    sizes = {"type": int, "nargs": "+", "default": [235, 234, 236]}
    parser.add_argument("--resize-sizes", **sizes, help="the first one is also measured alone")


def measure_eval(options: Namespace, folder: Path) -> dict:
    """Files to evaluation crops: `ours` is one resize size, `theirs` is all of them; both are our own code."""
    choose_images(options, folder)
    arguments = {
        "data_path": options.data_path,
        "images": options.images,
        "size": options.size,
        "interpolation": options.interpolation,
    }
    one = {**arguments, "resize_sizes": options.resize_sizes[:1]}
    several = {**arguments, "resize_sizes": options.resize_sizes}
    one_side = Side("evaluation_input", ours.EvaluationInput, one, keeps_freed_memory=True)
    several_side = Side("evaluation_input", ours.EvaluationInput, several, keeps_freed_memory=True)
    return {"several_over_one": compare(one_side, several_side, conditions_of(options))}


def add_startup_options(parser: ArgumentParser) -> None:
    parser.add_argument("--files", type=int, default=1_281_167, help="images of the folder")
    parser.add_argument("--classes", type=int, default=1000, help="classes of the folder")


def add_pictures_options(parser: ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/sample_pretrain.yaml", help="a pretraining recipe")
    add_batch_option(parser)


COMMANDS = {
    "input": Command("files to crops, one core: ours, PIL's, decoding alone", add_input_options, measure_input),
    "augment": Command(
        "RandAugment, one core: torchvision's style, timm's style", add_augment_options, measure_augment
    ),
    "filter-loss": Command(
        "filter, loss and its gradient: ours, whole spectra", add_filter_loss_options, measure_filter_loss
    ),
    "corruptions": Command(
        "every corruption and its loss: one radius, the other", add_batch_option, measure_corruptions
    ),
    "step": Command("a training step of noise: ours, CoinCheung/MFM's recipe", add_step_options, measure_step),
    "eval": Command("files to evaluation crops, one core: one resize size, several", add_eval_options, measure_eval),
    "startup": Command(
        "listing a folder of ImageNet's size, and what loader workers grow by", add_startup_options, measure_startup
    ),
    "pictures": Command("one event of logging.pictures_every_steps", add_pictures_options, measure_pictures),
}


def conditions_of(options: Namespace) -> Conditions:
    return Conditions(pairs=options.pairs, threads=options.threads, device=options.device)


def choose_images(options: Namespace, folder: Path) -> None:
    """Fill in options.data_path, and note the mean size of a file there as options.mean_kb.

    Raises: UserError if there is no file.
    """
    fill_data_path(options, folder)
    sizes = [path.stat().st_size for path in Path(options.data_path).rglob("*") if path.is_file()]
    if not sizes:
        raise UserError(f"--data-path = {options.data_path}: holds no file; give a folder with one folder a class")
    options.mean_kb = round(sum(sizes) / len(sizes) / 1000, 1)


def fill_data_path(options: Namespace, folder: Path) -> None:
    """Without --data-path, make photographs in `folder`."""
    if options.data_path is None:
        from scripts.benchmark.photographs import make_photographs  # needs scikit-image, which training does not

        options.data_path = str(make_photographs(folder / "photographs", count=400))


def settings_of(options: Namespace) -> dict:
    return {name: value for name, value in vars(options).items() if name not in ("command", "json")}


def machine() -> dict:
    """Where the figures are from: command, commit, versions, CPU, date."""
    cpu = re.search("model name\\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    facts = provenance()
    del facts["world_size"]
    facts["cpu"] = cpu[1] if cpu else platform.machine()
    facts["cores"] = os.cpu_count()
    facts["date"] = time.strftime("%Y-%m-%d")
    return facts


if __name__ == "__main__":
    run_entry(main, sys.argv[1:], output_is_result=True)
