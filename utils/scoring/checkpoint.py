"""`finetune.py --eval-only`: the score of a checkpoint, or of a file of weights from elsewhere."""

import os
from dataclasses import dataclass

from torch import nn

from configs.schema import FinetuneConfig
from data.folder import ImageFolder, open_root
from models.classifier import ChosenOutputs
from utils.console import fitted
from utils.errors import UserError
from utils.run.job import Job, open_job
from utils.scoring.classes import present_classes, sorted_as_text
from utils.scoring.classifier import Classifier, read_classifier
from utils.scoring.evaluation import EvaluationData, evaluate_models
from utils.scoring.results import Evaluated, settings_of, write_evaluation
from utils.training.evaluation import results_table


def evaluate_checkpoint(config: FinetuneConfig, given: frozenset[str]) -> int:
    """--eval-only. What the file tells and what the command line: see `read_classifier`.

    Args:
        given: the keys that the command line itself sets.
    """
    job = open_job(config, writes_checkpoints=False)
    classifier = read_classifier(config, given, job.world)
    config, path = classifier.config, classifier.file.path
    holdout_fraction = classifier.file.holdout_fraction
    if config.run.select_val_resize_size and not holdout_fraction:
        raise UserError(f"{path}: was trained on all of train (data.holdout_fraction 0): nothing to choose a size on")
    for line in classifier.report:
        job.say(fitted(line))
    scored = scored_classes(classifier, os.path.join(config.data.data_path, "val"), config.data.classes == "present")
    if scored.line:
        job.say(fitted(scored.line))
    data = EvaluationData.open(config, job, scored.folders, holdout_fraction)
    scored.check(data.val, classifier)
    job.check_files_agree(data.identities(), path)
    result = evaluate_models(config, job, {classifier.weights_name: scored.network}, data)
    job.say(results_table(result["results"]))
    kind = "frequency_sweep" if config.run.frequency_sweep else "evaluation"
    folders = {"val": data.val}
    if data.held_out is not None:
        folders["held_out"] = data.held_out
    decided_by = settings_of(config, folders) | {"classes": config.data.classes, "outputs": scored.outputs}
    if config.run.frequency_sweep:
        decided_by["sweep_radii"] = list(config.run.sweep_radii)
    written = write_evaluation(kind, job, evaluated_file(classifier, job, given), decided_by, result)
    job.say(f"wrote {written}")
    return 0


def evaluated_file(classifier: Classifier, job: Job, given: frozenset[str]) -> Evaluated:
    """What was evaluated, for `write_evaluation`."""
    return Evaluated(
        classifier.file, classifier.weights_name, classifier.model_name, job.output,
        asked_for_output_dir="run.output_dir" in given,
    )  # fmt: skip


@dataclass(frozen=True)
class ScoredClasses:
    """The classes that a score is over.

    Args:
        folders: class folders, in the order of the network's logits; None: those of the set, sorted.
        outputs: the classifier's outputs that they are; None: all of them.
        network: gives the logits of these classes.
        line: for the log; "": nothing to say.
    """

    folders: list[str] | None
    outputs: list[int] | None
    network: nn.Module
    line: str

    def check(self, folder: ImageFolder, classifier: Classifier) -> None:
        """Raises: UserError unless the folder has a class for each of the network's logits."""
        expected = len(self.outputs or range(classifier.outputs))
        if len(folder.classes) != expected:
            raise UserError(
                f"{classifier.file.path}: has {expected} outputs, but {folder.root} has {len(folder.classes)} class "
                "folders.\nGive all, or score a part of the classes: data.classes=present data.class_names=FILE."
            )


def refuse_part(root: str, classes: list[str]) -> None:
    """Raise UserError if a part of the classes has a folder in root, and nothing else has."""
    folders, _ = open_root(root)
    if set(folders) < set(classes):
        raise UserError(
            f"{root}: has {len(folders)} of the {len(classes)} classes of the checkpoint; give all of them, or score "
            "these alone: data.classes=present"
        )


def scored_classes(classifier: Classifier, root: str, only_present: bool) -> ScoredClasses:
    """All classes of the classifier, or those that have a folder in root.

    Raises: UserError if only some have one, and only_present is false.
    """
    if not only_present:
        line = ""
        if classifier.classes is not None:
            refuse_part(root, classifier.classes)
        elif sorted_as_text(root, classifier.outputs):
            line = (
                f"warning: the folders of {root} are numbers, and are taken in the order of text (0, 1, 10, …); with "
                "data.classes=present each is taken for the output of its number, as in ImageNet-V2"
            )
        return ScoredClasses(classifier.classes, None, classifier.network, line)
    present = present_classes(root, classifier.file.path, classifier.classes, classifier.outputs)
    network = ChosenOutputs(classifier.network, present.outputs)
    return ScoredClasses(present.folders, present.outputs, network, present.line(root, classifier.outputs))
