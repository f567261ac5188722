"""Names and probabilities for images, by a finetuned checkpoint or by anyone's classifier.

python scripts/predict.py runs/finetune_resnet50_bce/checkpoints/last.pt photo.jpg holiday/ --top 3
python scripts/predict.py runs/finetune_resnet50_bce/checkpoints/last.pt list.txt --csv predictions.csv
python scripts/predict.py torchvision:IMAGENET1K_V2 photo.jpg data.class_names=names.txt data.val_resize_size=232

Model, classes, normalisation and sizes are the checkpoint's, as in finetune.py --eval-only; section.key=value can
override sizes, crop, interpolation and class names. The logits are those of --eval-only. A folder is listed as training
does. Exit code 0: all were predicted; 1: some images cannot be read; 2: it could not begin.
"""

import argparse
import codecs
import csv
import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from configs.schema import FinetuneConfig
from data.loader import batch_loader
from data.samples import ListedSamples
from models.normalize import Normalizer, unit_float
from scripts.image_places import images_below
from utils.config import OVERRIDE, keys_given, parse_command_line
from utils.console import fitted, progress_bar, say
from utils.distributed import join, run_entry
from utils.errors import UserError, printable
from utils.files import write_atomically
from utils.hints import nearest_key
from utils.knobs import knobs
from utils.launcher import read_place
from utils.limits import available_cores
from utils.precision import exact_float32, without_algorithm_search
from utils.scoring.classifier import Classifier, read_classifier

LIST_ENDING = ".txt"
KEY_WITHOUT_SECTION = re.compile(r"\w+=")  # begins a word that is meant as a setting, if there is no such file
FEW = 64  # images that are loaded without worker processes, whose start takes longer


@dataclass(frozen=True)
class Guess:
    """A class and its probability, in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What was predicted for an image.

    Args:
        guesses: the likeliest first; empty if the image cannot be read.
        problem: why it cannot be read; "": it can.
    """

    path: str
    guesses: list[Guess]
    problem: str = ""


def images_in(places: list[str]) -> list[str]:
    """Image files that are named, that lie in folders that are named, or that a .txt file lists, one path per line.

    A folder is listed as training does, and what is left out of it is said. What is named but missing is kept: it is
    reported as unreadable.
    Raises: UserError if a folder has no image, or what training would refuse, or if there is nothing in a list.
    """
    paths = []
    for place in places:
        if os.path.isdir(place):
            paths += images_below(place)
        elif place.lower().endswith(LIST_ENDING):
            paths += listed_in(place)
        else:
            paths.append(place)
    if not paths:
        raise UserError(f"{', '.join(map(printable, places))}: names no image; give a path a line")
    return paths


def listed_in(file: str) -> list[str]:
    """The lines of a text file that are not blank. Raises: UserError if it cannot be read."""
    try:
        lines = Path(file).read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot read this list of images ({error.strerror})") from error
    return [os.fsdecode(line.strip()) for line in lines if line.strip()]


def probabilities(logits: torch.Tensor, loss_name: str | None) -> torch.Tensor:
    """(B, K) -> (B, K) float64 in [0, 1]. What BCE trains is each class's own sigmoid; else softmax."""
    if loss_name == "bce":
        return logits.double().sigmoid()
    return logits.double().softmax(1)


@torch.inference_mode()
@exact_float32()
@without_algorithm_search()
def logits_of(classifier: Classifier, crops: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(B, 1, 3, S, S) uint8 -> (B, K), as an evaluation computes them. Raises: UserError if they are not finite."""
    options = classifier.config.data
    normalize = Normalizer(options.mean, options.std, device)
    logits = classifier.network(normalize(unit_float(crops[:, 0].to(device)))).float()
    if not bool(logits.isfinite().all()):
        raise UserError(f"{classifier.file.path}: its logits are not finite: no prediction; take another file")
    return logits


def predictions(classifier: Classifier, paths: list[str], top: int, device: torch.device) -> Iterator[Prediction]:
    """In the order of paths.

    Args:
        top: guesses an image; at most as many as there are classes.
    """
    options = classifier.config.data
    samples = ListedSamples(paths, options.val_resize_size[0], options.val_crop_size, options.interpolation)
    workers = options.workers
    if workers is None:
        workers = available_cores() if len(paths) > FEW else 0
    batch_size = options.val_batch_size
    numbers = list(range(len(paths)))
    batches = [numbers[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    loader = batch_loader(samples, batches, workers, device, classifier.config.run.timeout_minutes)
    top = min(top, classifier.outputs)
    for numbers, (crops, problems) in zip(batches, progress_bar(loader, desc="predicting", unit="batch"), strict=True):
        logits = logits_of(classifier, crops, device)
        likeliest = probabilities(logits, classifier.loss_name).topk(top)
        rows = zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        for number, problem, (shares, outputs) in zip(numbers, problems, rows, strict=True):
            guesses = []
            if not problem:
                for share, output in zip(shares, outputs, strict=True):
                    guesses.append(Guess(name_of(classifier, output), share))
            yield Prediction(paths[number], guesses, problem)


def name_of(classifier: Classifier, output: int) -> str:
    if classifier.classes is None:
        return f"output {output}"
    return classifier.classes[output]


def write_csv(file: Path, predicted: list[Prediction]) -> None:
    """A line for each guess: image, rank from 1 on, class, probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "probability"])
    for prediction in predicted:
        for rank, guess in enumerate(prediction.guesses, start=1):
            writer.writerow([prediction.path, rank, guess.name, f"{guess.probability:.6g}"])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda stream: stream.write(text.getvalue().encode(errors="surrogateescape")))


def report_lines(classifier: Classifier) -> list[str]:
    """Where classes, normalisation and sizes are from, and what the probabilities mean."""
    lines = list(classifier.report)
    sizes = classifier.config.data.val_resize_size
    if len(sizes) > 1:
        lines.append(f"of the resize sizes {list(sizes)} the first is taken: {sizes[0]}")
    if classifier.loss_name == "bce":
        lines.append("probabilities: a sigmoid for each class, as BCE trained them; they need not add up to 1")
    else:
        lines.append("probabilities: softmax over the classes")
    return lines


def refuse_unknown_settings(places: list[str]) -> None:
    """Raise UserError for key=value without a section, which would be taken for a missing image."""
    for place in places:
        if KEY_WITHOUT_SECTION.match(place) and not os.path.exists(place):
            name, _, value = place.partition("=")
            key = nearest_key(name, knobs(FinetuneConfig)) or "section.key"
            raise UserError(f"command line: {printable(place)}: no such image, and no setting; write {key}={value}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Names and probabilities for images.",
        epilog="section.key=value can override the checkpoint's sizes, crop, interpolation and class names.",
    )
    parser.add_argument("checkpoint", help="of finetune.py, of others, or torchvision:IMAGENET1K_V2")
    parser.add_argument("images", nargs="+", help="image files, folders of them, .txt files with one path per line")
    parser.add_argument("--top", type=int, default=5, help="classes to show for an image (5)")
    parser.add_argument("--csv", type=Path, help="write a table here instead of printing it")
    overrides = [word for word in argv if OVERRIDE.match(word) and not os.path.exists(word)]
    arguments = parser.parse_intermixed_args([word for word in argv if word not in overrides])
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top}: must be at least 1")
    refuse_unknown_settings(arguments.images)
    if read_place(os.environ).size > 1:
        raise UserError("predict.py runs on one process; start it with python, not torchrun")
    words = ["--eval-only", "--weights", arguments.checkpoint, *overrides]
    config = parse_command_line(FinetuneConfig, words, "predictions")
    world = join(config.run.device, config.run.timeout_minutes)
    classifier = read_classifier(config, keys_given(FinetuneConfig, words), world, unnamed="outputs, numbered from 0")
    for line in report_lines(classifier):
        say(fitted(line))

    predicted = []
    for prediction in predictions(classifier, images_in(arguments.images), arguments.top, world.device):
        predicted.append(prediction)
        if not arguments.csv and not prediction.problem:
            shown = [f"{guess.probability:7.2%}  {printable(guess.name)}" for guess in prediction.guesses]
            say("\n".join([printable(prediction.path, most=1000), *shown]))
    unreadable = [prediction for prediction in predicted if prediction.problem]
    for prediction in unreadable:
        say(f"warning: {prediction.problem}")
    if arguments.csv:
        write_csv(arguments.csv, predicted)
        say(f"wrote {arguments.csv}")
    say(f"{len(predicted) - len(unreadable)} images predicted, {len(unreadable)} unreadable")
    return 1 if unreadable else 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:], output_is_result=True)
