"""`finetune.py --probe`: what frozen features tell of the classes, by neighbours and by a linear probe.

Features of train and val are computed once, on all ranks. Rank 0 then scores them, with all cores of its machine.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from configs.schema import FinetuneConfig
from data.folder import ImageFolder
from data.identity import identity
from data.samples import EvaluationSamples
from models.normalize import Normalizer
from models.trunk import make_trunk, trunk_children
from models.weights import load_weights, read_weights
from utils.console import fitted
from utils.errors import UserError, printable
from utils.limits import available_cores, free_memory
from utils.run.job import Job, open_job, to_device
from utils.scoring.evaluation import open_labelled_images
from utils.scoring.features import AveragedPixels, Features, PooledTrunk, View, bytes_of_features, extract
from utils.scoring.linear_probe import held_out_part, linear_row
from utils.scoring.neighbours import HEADLINE, VOTES, neighbour_rows
from utils.scoring.results import Evaluated, settings_of, write_evaluation
from utils.scoring.sizes import settle_sizes
from utils.tables import markdown_table

TRUNK, PIXELS = "trunk", "pixels"  # views
FEW = 2**20  # numbers


@dataclass(frozen=True)
class ProbeImages:
    """Labelled images of train, which the probe learns from, and those of val, and how they are seen."""

    train: ImageFolder
    val: ImageFolder
    resize_size: int  # short side before the centre crop, in pixels
    crop_size: int
    interpolation: str

    @classmethod
    def open(cls, config: FinetuneConfig, job: Job) -> "ProbeImages":
        train = open_labelled_images(config, job)
        val = os.path.join(config.data.data_path, "val")
        return cls(
            train, job.open_folder(lambda: ImageFolder(val, train.classes)), config.data.val_resize_size[0],
            config.data.val_crop_size, config.data.interpolation,
        )  # fmt: skip

    def check_memory(self, job: Job, width: int, storage: str) -> None:
        """Say what the features will take. Raises: UserError, on all ranks, if that is more than is free.

        Args:
            width: numbers an image, those of all views together.
        """
        images = len(self.train) + len(self.val)
        needed = bytes_of_features(images, width, storage)
        needed += bytes_of_features(len(self.val), width, "float32")  # those of length 1
        if job.world.size > 1:  # the ranks of a machine have their shares while rank 0 collects them
            needed += needed * job.world.local_size // job.world.size
        free = job.world.gather(free_memory())[0]
        if needed > free:
            remedy = "more memory, or fewer images of train"
            if storage == "float32":
                remedy = f"run.probe_storage=float16, {remedy}"
            raise UserError(
                f"probe: the features of {images:,} images × {width} {storage} take {needed / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB of memory are free; it takes {remedy}"
            )
        job.say(f"probe: features of {images:,} images × {width} {storage} take {needed / 1e9:.2f} GB of memory")

    def features(
        self, views: dict[str, View], model: torch.nn.Module, job: Job, storage: str, timeout_minutes: float
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """Of train and of val, by view, on rank 0."""
        features = []
        for folder in (self.train, self.val):
            samples = EvaluationSamples(folder, (self.resize_size,), self.crop_size, self.interpolation)
            features.append(extract(
                views, samples, model, job.world, workers=job.workers, storage=storage,
                timeout_minutes=timeout_minutes,
            ))  # fmt: skip
        return features[0], features[1]


@contextlib.contextmanager
def all_cores(job: Job, features: Features) -> Iterator[None]:
    """Inside, this rank computes with every core of its machine, whose other ranks wait for it.

    Few features take one core, since threads would take longer to meet than to compute.
    """
    threads_before = torch.get_num_threads()
    if job.world.device.type == "cpu":
        torch.set_num_threads(available_cores() if features.vectors.numel() > FEW else 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)


def probe_checkpoint(config: FinetuneConfig, given: frozenset[str]) -> int:
    """--probe: model and normalisation are the file's where it tells them. For sizes see `settle_sizes`.

    Args:
        given: the keys that the command line itself sets.
    """
    path = config.run.weights
    job = open_job(config, writes_checkpoints=False)
    file = read_weights(path, config.model.name, config.run.use_ema, job.world)
    if file.mean is not None:
        config = replace(config, data=replace(config.data, mean=tuple(file.mean), std=tuple(file.std)))
    config, sizes_line = settle_sizes(config, file.config, given)
    images = ProbeImages.open(config, job)
    job.check_files_agree({"train": identity(images.train), "val": identity(images.val)}, path)
    name = printable(file.model_name or config.model.name)
    trunk = make_trunk(name)
    account = load_weights(trunk.classifier, file.weights, path, trunk_children(name), new_head=True)
    job.say(fitted(f"{path}: layout: {file.layout}; {account}"))
    job.say(fitted(sizes_line))
    images.check_memory(job, trunk.width + AveragedPixels.width, config.run.probe_storage)
    network = to_device(trunk.module, job.world.device, config.model, torch.float32)
    normalize = Normalizer(config.data.mean, config.data.std, job.world.device)
    views = {TRUNK: PooledTrunk(network, normalize), PIXELS: AveragedPixels(normalize)}
    train, val = images.features(views, network, job, config.run.probe_storage, config.run.timeout_minutes)
    rows = job.world.on_rank_0(lambda still_working: probe_rows(images.train, train, val, job, still_working))
    job.say(probe_table(rows))
    decided_by = settings_of(config, {"train": images.train, "val": images.val})
    decided_by |= {
        "label_fraction": config.data.label_fraction, "holdout_fraction": config.data.holdout_fraction,
        "train_list": config.data.train_list, "probe_storage": config.run.probe_storage,
    }  # fmt: skip
    weights_name = "ema" if config.run.use_ema else "model"
    evaluated = Evaluated(file, weights_name, name, job.output, asked_for_output_dir="run.output_dir" in given)
    headline = {"method": "knn", "k": HEADLINE.k, "temperature": HEADLINE.temperature}
    written = write_evaluation("probe", job, evaluated, decided_by, {"headline": headline, "results": rows})
    job.say(f"result: {written}")
    return 0


def probe_rows(
    folder: ImageFolder, train: dict[str, Features], val: dict[str, Features], job: Job,
    still_working: Callable[[], None],
) -> list[dict]:  # fmt: skip
    """A row for each method, the headline first.

    Args:
        folder: of train.
        train, val: features by view.
    """
    classes, device = len(folder.classes), job.world.device
    votes = (HEADLINE, *[vote for vote in VOTES if vote != HEADLINE])
    rows = []
    with all_cores(job, train[TRUNK]):
        for row in neighbour_rows(train[TRUNK], val[TRUNK], votes, classes, device, still_working):
            rows.append({"method": "knn", **row})
        held_out = held_out_part(folder)
        if held_out.any() and not held_out.all():
            rows.append({
                "method": "linear", **linear_row(train[TRUNK], val[TRUNK], held_out, classes, device, still_working)
            })  # fmt: skip
        else:
            job.say("warning: train has too few images to choose the linear probe's C on some of them: no linear probe")
        for row in neighbour_rows(train[PIXELS], val[PIXELS], (HEADLINE,), classes, device, still_working):
            rows.append({"method": "pixels_knn", **row})
    return rows


def probe_table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    names = {"knn": "kNN", "linear": "linear probe", "pixels_knn": "kNN of 8×8 averaged pixels"}
    lines = []
    for row in rows:
        settings = f"C = {row['C']:.3g}" if "C" in row else f"k = {row['k']}, T = {row['temperature']}"
        lines.append({
            "features": names[row["method"]], "settings": settings, "top-1 %": f"{row['top1']:.3f}",
            "top-5 %": f"{row['top5']:.3f}", "right": row["top1_count"], "images": row["images"],
        })  # fmt: skip
    return markdown_table(lines)
