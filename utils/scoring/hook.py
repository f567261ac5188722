"""The evaluation of a finetuning, every so many epochs and at the end, with its mistakes in TensorBoard."""

import torch

from configs.schema import FinetuneConfig
from data.folder import ImageFolder
from data.samples import EvaluationSamples
from utils.figures import confusion_figure
from utils.pictures import sheet
from utils.run.job import Job
from utils.run.log import RunLog
from utils.scoring.evaluation import EvaluationData, evaluate_models
from utils.tables import markdown_cell, markdown_table
from utils.training.evaluation import MeaninglessScoreError, Mistake, Mistakes
from utils.training.hooks import Every
from utils.training.schedule import in_steps
from utils.training.step import TrainingState


class Evaluation:
    """The hook that evaluates the model, and its average if there is one, every so many epochs and at the end."""

    def __init__(self, config: FinetuneConfig, job: Job, state: TrainingState, data: EvaluationData, log: RunLog):
        self.config, self.job, self.data, self.log = config, job, data, log
        self.models = {"model": state.model}
        if state.average is not None:
            self.models["ema"] = state.average.module
        every_epochs = config.run.evaluate_every_epochs
        every_steps = None
        if every_epochs is not None:
            every_steps = in_steps(every_epochs, config.schedule, log.steps_per_epoch)
        self.every = Every(every_steps, log.total_steps)
        self.result: dict = {}  # the latest

    def due(self, step: int) -> bool:
        return self.every.due(step)

    def run(self, step: int) -> None:
        mistakes = Mistakes(len(self.data.val.classes), self.job.world)
        try:
            with self.log.paused():
                self.result = evaluate_models(self.config, self.job, self.models, self.data, mistakes)
        except MeaninglessScoreError as error:
            if step == self.log.total_steps:
                raise
            self.log.say(f"warning: {error}\nTraining goes on, and may mend it.")
            return
        confusion, surest = mistakes.collected()
        rows = self.result["results"]
        with self.log.board.guard(step):
            show_mistakes(self.config, self.log, self.data.val, confusion, surest, rows[0]["val_resize_size"], step)
        self.log.evaluation(rows, step)


def show_mistakes(
    config: FinetuneConfig, log: RunLog, folder: ImageFolder, confusion: torch.Tensor, surest: list[Mistake],
    resize_size: int, step: int,
) -> None:  # fmt: skip
    """To TensorBoard: the confusion matrix, and the wrong predictions of which the model was surest, with names."""
    if len(confusion):
        log.board.add_drawing("val/confusion_matrix", lambda: confusion_figure(confusion, folder.classes), step)
    if not surest or not log.board.active:
        return
    samples = EvaluationSamples(folder, (resize_size,), config.data.val_crop_size, config.data.interpolation)
    images, rows = [], []
    for number, mistake in enumerate(surest, start=1):
        images.append(samples[mistake.image][0])  # (1, 3, S, S)
        true, predicted = folder.classes[mistake.true], folder.classes[mistake.predicted]
        row = {"": number, "confidence": f"{mistake.confidence:.1%}", "true": markdown_cell(true)}
        rows.append(row | {"predicted": markdown_cell(predicted), "file": markdown_cell(folder.path(mistake.image))})
    log.board.add("image", "val/surest_mistakes", sheet(images), step)
    log.board.add("text", "val/surest_mistakes", markdown_table(rows), step)
