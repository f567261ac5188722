"""How a classifier does beyond its own val: sets with a part of its classes, corrupted images, attacks.

python scripts/robustness.py CHECKPOINT --sets imagenet-a imagenet-r imagenetv2 sketch     # one folder per class
python scripts/robustness.py CHECKPOINT --corruptions imagenet-c                           # corruption/severity/class
python scripts/robustness.py CHECKPOINT --attacks imagenet/val --figure robustness.png
torchrun --standalone --nproc_per_node=8 scripts/robustness.py CHECKPOINT --corruptions imagenet-c

A set is scored over the classes that it has. ImageNet-C's images are cropped as they are; its mCE needs all 15
corruptions at all 5 severities. FGSM and PGD change each pixel by at most 1/255 (models/attacks.py). Model, classes,
normalisation and sizes are the checkpoint's, as in finetune.py --eval-only; section.key=value can override sizes, crop,
interpolation and class names. The table is printed, and robustness_….json lies beside the checkpoint.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from configs.schema import FinetuneConfig
from data.folder import ImageFolder
from data.identity import identity
from data.samples import CentreSamples, EvaluationSamples
from models.attacks import EPSILON, PGD_STEP, PGD_STEPS, AttackedViews
from models.classifier import ResizedViews
from models.normalize import Normalizer
from scripts.robustness_figure import robustness_figure
from utils.config import OVERRIDE, keys_given, parse_command_line
from utils.console import fitted
from utils.distributed import run_entry
from utils.errors import UserError
from utils.figures import save
from utils.run.job import Job, open_job
from utils.scoring.checkpoint import ScoredClasses, evaluated_file, scored_classes
from utils.scoring.classifier import Classifier, read_classifier
from utils.scoring.corruptions import corruption_errors, corruption_folders, mean_corruption_error
from utils.scoring.evaluation import evaluate_model, evaluate_views
from utils.scoring.results import settings_of, write_evaluation
from utils.tables import markdown_table, readable_cell


class Robustness:
    """The scores of one classifier, and what decided them.

    Args:
        classifier: with its own config.
    """

    def __init__(self, classifier: Classifier, job: Job):
        self.classifier, self.job, self.config = classifier, job, classifier.config
        self.folders: dict[str, ImageFolder] = {}  # every set that was scored
        self.outputs: dict[str, list[int] | str] = {}  # of each set: those that its classes are, or "all"
        self.sets: list[dict] = []
        self.corruptions: list[dict] = []
        self.attacks: list[dict] = []

    def open(self, root: str) -> tuple[ImageFolder, ScoredClasses]:
        """The images below root, and the classes that they are scored over.

        Raises: UserError if these are no classes of the classifier, or, on all ranks, if the ranks see other images.
        """
        scored = scored_classes(self.classifier, root, only_present=True)
        folder = self.job.open_folder(lambda: ImageFolder(root, scored.folders))
        scored.check(folder, self.classifier)
        self.job.check_files_agree({f"set {len(self.folders) + 1}": identity(folder)}, None)
        self.folders[root] = folder
        self.outputs[root] = scored.outputs
        if scored.outputs == list(range(self.classifier.outputs)):
            self.outputs[root] = "all"  # 1000 numbers for each of ImageNet-C's 75 sets would hide the rest
        return folder, scored

    def score_set(self, root: str) -> None:
        """Over the classes that have a folder in root, at the first resize size."""
        folder, scored = self.open(root)
        if scored.line:
            self.job.say(fitted(scored.line))
        one_size = replace(self.config.data, val_resize_size=self.config.data.val_resize_size[:1])
        config = replace(self.config, data=one_size)
        [row] = evaluate_model(config, self.job, scored.network, folder, self.classifier.weights_name)
        self.sets.append({"set": root, "classes": len(folder.classes), **row})

    def score_corruptions(self, root: str) -> None:
        """Every corruption and severity below root."""
        options = self.config.data
        views = ResizedViews(Normalizer(options.mean, options.std, self.job.world.device), (options.val_crop_size,))
        warning = None
        for name, severity in corruption_folders(root):
            folder, scored = self.open(os.path.join(root, name, str(severity)))
            samples = CentreSamples(folder, options.val_crop_size)
            if warning is None:  # once for all of them
                warning = samples.size_warning()
                self.job.warn(warning)
            weights = self.classifier.weights_name
            [row] = evaluate_views(self.config, self.job, scored.network, samples, views, weights)
            del row["val_resize_size"]  # nothing was resized
            self.corruptions.append({"corruption": name, "severity": severity, "classes": len(folder.classes), **row})

    def score_attacks(self, root: str) -> None:
        """FGSM and PGD on the images below root, beside the images as they are."""
        folder, scored = self.open(root)
        options = self.config.data
        size = options.val_resize_size[0]
        samples = EvaluationSamples(folder, (size,), options.val_crop_size, options.interpolation)
        world = self.job.world
        normalize = Normalizer(options.mean, options.std, world.device)
        views = AttackedViews(scored.network, normalize, folder.labels, world, self.config.run.seed)
        rows = evaluate_views(self.config, self.job, scored.network, samples, views, self.classifier.weights_name)
        for row in rows:
            self.attacks.append({"set": root, "classes": len(folder.classes), "val_resize_size": size, **row})

    def results(self) -> dict:
        """What the JSON holds."""
        results: dict = {"sets": self.sets, "corruptions": self.corruptions, "attacks": self.attacks}
        if self.corruptions:
            errors = corruption_errors(self.corruptions)
            results |= {"corruption_errors": errors, "mce": mean_corruption_error(errors)}
        return results

    def decided_by(self) -> dict:
        settings = settings_of(self.config, self.folders) | {"classes": "present", "outputs": self.outputs}
        if self.attacks:
            settings["attacks"] = {"epsilon": EPSILON, "pgd_step": PGD_STEP, "pgd_steps": PGD_STEPS}
            settings["seed"] = self.config.run.seed
        return settings


def tables(results: dict) -> list[str]:
    """One for each kind of result, and mCE in a line."""
    parts = []
    for kind, names in (("sets", ["set"]), ("attacks", ["set", "attack"])):
        if results[kind]:
            rows = []
            for row in results[kind]:
                cells = {name: readable_cell(row[name]) for name in names}
                rows.append(cells | score_cells(row))
            parts.append(markdown_table(rows))
    if not results["corruptions"]:
        return parts
    parts.append(corruption_table(results))
    if results["mce"] is None:
        count = len(results["corruptions"])
        parts.append(f"mCE: needs 15 corruptions at 5 severities each; {count} sets of images are here")
    else:
        parts.append(f"mCE: {results['mce']:.2f} % (AlexNet: 100)")
    return parts


def corruption_table(results: dict) -> str:
    """A row for each corruption: its mean error over the severities that are there, and that over AlexNet's."""
    errors_of: dict[str, list[float]] = {}
    for row in results["corruptions"]:
        errors_of.setdefault(row["corruption"], []).append(100 - row["top1"])
    rows = []
    for name, errors in errors_of.items():
        over_alexnet = results["corruption_errors"].get(name)
        rows.append({
            "corruption": readable_cell(name), "severities": len(errors),
            "error %": f"{sum(errors) / len(errors):.2f}",
            "CE %": "" if over_alexnet is None else f"{over_alexnet:.2f}",
        })  # fmt: skip
    return markdown_table(rows)


def score_cells(row: dict) -> dict:
    return {
        "classes": row["classes"], "images": row["images"], "top-1 %": f"{row['top1']:.3f}",
        "top-5 %": f"{row['top5']:.3f}", "loss": f"{row['loss']:.4f}",
    }  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="A classifier beyond its own val.",
        epilog="section.key=value can override the checkpoint's sizes, crop, interpolation and class names.",
    )
    parser.add_argument("checkpoint", help="of finetune.py, of others, or torchvision:IMAGENET1K_V2")
    parser.add_argument(
        "--sets", nargs="+", default=[], help="folders with one folder per class, of a part of the classes"
    )
    parser.add_argument("--corruptions", help="a folder corruption/severity/class, as ImageNet-C's")
    parser.add_argument("--attacks", help="a folder with one folder per class: FGSM and PGD on its images")
    parser.add_argument("--figure", type=Path, help="draw the results (PNG, PDF, SVG)")
    overrides = [word for word in argv if OVERRIDE.match(word) and not os.path.exists(word)]
    arguments = parser.parse_args([word for word in argv if word not in overrides])
    if not (arguments.sets or arguments.corruptions or arguments.attacks):
        raise UserError("nothing to evaluate; give --sets, --corruptions or --attacks, with folders")
    words = ["--eval-only", "--weights", arguments.checkpoint, *overrides]
    config, given = parse_command_line(FinetuneConfig, words, "robustness"), keys_given(FinetuneConfig, words)
    job = open_job(config, writes_checkpoints=False)
    job.check_files_agree({}, arguments.checkpoint)
    classifier = read_classifier(config, given, job.world)
    for line in classifier.report:
        job.say(fitted(line))

    robustness = Robustness(classifier, job)
    for root in arguments.sets:
        robustness.score_set(root)
    if arguments.corruptions:
        robustness.score_corruptions(arguments.corruptions)
    if arguments.attacks:
        robustness.score_attacks(arguments.attacks)
    results = robustness.results()
    for table in tables(results):
        job.say(table)
    evaluated = evaluated_file(classifier, job, given)
    written = write_evaluation("robustness", job, evaluated, robustness.decided_by(), results)
    if arguments.figure and job.world.rank == 0:
        save(robustness_figure(results), arguments.figure)
        job.say(f"wrote {arguments.figure}")
    job.say(f"wrote {written}")
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
