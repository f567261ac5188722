"""While it pretrains: the score of the nearest neighbours, every so many epochs and at the end."""

import os
from collections.abc import Callable

from torch import nn

from configs.schema import PretrainConfig
from data.folder import ImageFolder, check_labels
from models.normalize import Normalizer
from utils.run.job import Job
from utils.run.log import RunLog
from utils.scoring.features import PooledTrunk
from utils.scoring.neighbours import HEADLINE, neighbour_rows
from utils.scoring.probe import TRUNK, ProbeImages, all_cores
from utils.scoring.sizes import resize_size_for
from utils.seeding import keyed_torch
from utils.training.evaluation import in_evaluation_layout
from utils.training.hooks import Every
from utils.training.schedule import in_steps


class NeighbourProbe:
    """The hook. Training goes on as if it were not there: nothing that a checkpoint holds is changed by it.

    Args:
        model: a pretraining's, whose last child is the decoder.
    """

    def __init__(self, config: PretrainConfig, job: Job, log: RunLog, model: nn.Sequential, images: ProbeImages):
        self.config, self.job, self.log, self.model, self.images = config, job, log, model, images
        every_steps = in_steps(config.run.probe_every_epochs, config.schedule, log.steps_per_epoch)
        self.every = Every(every_steps, log.total_steps)
        width = model.decoder[0].in_channels
        images.check_memory(job, width, config.run.probe_storage)
        self.result: dict = {}  # the latest

    def due(self, step: int) -> bool:
        return self.every.due(step)

    def run(self, step: int) -> None:
        with self.log.paused():
            row = self.score()
        self.result = {"weights": "model", "val_resize_size": self.images.resize_size, "method": "knn", **row}
        self.log.evaluation([self.result], step)

    def score(self) -> dict:
        """The headline's row, on all ranks."""
        options = self.config.run
        normalize = Normalizer(self.config.data.mean, self.config.data.std, self.job.world.device)
        model = in_evaluation_layout(self.model, self.config.model.channels_last)
        with keyed_torch(options.seed, "probe"):  # a loader draws a number, which it has no use for here
            train, val = self.images.features(
                {TRUNK: PooledTrunk(model[:-1], normalize)}, model, self.job, options.probe_storage,
                options.timeout_minutes,
            )  # fmt: skip

        def neighbours(still_working: Callable[[], None]) -> list[dict]:
            with all_cores(self.job, train[TRUNK]):
                return neighbour_rows(
                    train[TRUNK], val[TRUNK], (HEADLINE,), len(self.images.train.classes), self.job.world.device,
                    still_working,
                )  # fmt: skip

        (row,) = self.job.world.on_rank_0(neighbours)
        return row


def images_to_probe(config: PretrainConfig, job: Job, train: ImageFolder) -> ProbeImages | None:
    """Those that run.probe_every_epochs asks for: val beside train, seen at the size of the training crops.

    Raises: UserError if train is not sorted into classes, or there is no val with the same ones.
    """
    if config.run.probe_every_epochs is None:
        return None
    check_labels(train)
    root = os.path.join(config.data.data_path, "val")
    val = job.open_folder(lambda: ImageFolder(root, train.classes))
    crop_size = config.data.train_crop_size
    return ProbeImages(train, val, resize_size_for(crop_size), crop_size, config.data.interpolation)
