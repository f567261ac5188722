"""What scripts/check_machine.py works on: this project's own model, task and step, on made images."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from configs.schema import PretrainConfig
from models.mfm import MaskedFrequencyModelling, network_from_config
from utils.config import parse_command_line
from utils.distributed import World
from utils.precision import choose_precision
from utils.run.checkpoint import Checkpoints
from utils.run.job import Job, make_state
from utils.seeding import keyed_numpy, keyed_torch
from utils.training.step import LossFunction, Metrics, TrainingState, training_step

ROOT = Path(__file__).resolve().parents[2]
RECIPE_PIXELS, RECIPE_RADIUS = 224, 16  # of configs/pretrain_resnet50.yaml
LEARNING_RATE = 1e-4
MANY_NUMBERS, FEW_NUMBERS = 32, 4  # images whose numbers are compared, on a GPU and on a CPU
MicroBatches = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Workload:
    """What is checked, and where.

    Args:
        world: of the job.
        pixels: side of an image.
        images: of a micro-batch where speed and memory are measured.
        folder: for files that are made.
    """

    world: World
    model: str
    pixels: int
    images: int
    folder: Path

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def alone(self) -> World:
        """For what each rank does by itself."""
        return World(rank=0, size=1, local_size=1, device=self.device)

    @property
    def few_images(self) -> int:
        """Of a micro-batch where only the numbers count."""
        return min(self.images, MANY_NUMBERS if self.device.type == "cuda" else FEW_NUMBERS)


def config_of(
    work: Workload, settings: dict[str, object] | None = None, recipe: str = "pretrain_resnet50"
) -> PretrainConfig:
    """A recipe at the size of the workload, with the radius scaled to it, and further settings by their keys."""
    chosen: dict[str, object] = {
        "model.name": work.model,
        "data.train_crop_size": work.pixels,
        "filter.radius": RECIPE_RADIUS * work.pixels / RECIPE_PIXELS,
        "train.batch_size": work.images,
        "train.images_per_device": work.images,
    }
    words = ["--config", str(ROOT / f"configs/{recipe}.yaml")]
    for key, value in (chosen | (settings or {})).items():
        words.append(f"{key}={as_word(value)}")
    return parse_command_line(PretrainConfig, words, "")


def as_word(value: object) -> str:
    """A value as the command line has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def state_of(work: Workload, config: PretrainConfig, world: World) -> TrainingState:
    """A newly initialised training state, alike at each call. Raises: UserError as utils.run.job.make_state does."""
    job = Job(
        world=world, dtype=choose_precision(config.train.precision, world.device), output=work.folder,
        checkpoints=Checkpoints(work.folder / "checkpoints", **asdict(config.checkpoint)), resume=None, workers=0,
        lock=None,
    )  # fmt: skip
    with keyed_torch(config.run.seed, "initialisation"):
        network = network_from_config(config)
    return make_state(config, job, network, steps_per_epoch=1000)


def made_batch(images: int, pixels: int, device: torch.device, *numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels (B, 3, S, S) uint8, and keep_low (B,) bool, true for every other image; alike for equal numbers."""
    values = keyed_numpy(0, "made images", *numbers).integers(0, 256, (images, 3, pixels, pixels), dtype="uint8")
    keep_low = torch.arange(images) % 2 == 0
    return torch.from_numpy(values).to(device), keep_low.to(device)


@dataclass
class Training:
    """A training state with its task, which takes steps of `accumulation` micro-batches of made images.

    Args:
        loss_of: what a step asks for its loss; default: the task.
    """

    state: TrainingState
    task: MaskedFrequencyModelling
    config: PretrainConfig
    accumulation: int = 1

    @classmethod
    def start(cls, work: Workload, config: PretrainConfig, world: World, accumulation: int = 1) -> "Training":
        task = MaskedFrequencyModelling.from_config(config, world.device)
        return cls(state_of(work, config, world), task, config, accumulation)

    def micro_batches(self, step: int) -> MicroBatches:
        batches = []
        for micro_step in range(self.accumulation):
            number = self.state.world.rank + micro_step * self.state.world.size
            size = self.config.train.images_per_device, self.config.data.train_crop_size
            batches.append(made_batch(*size, self.state.device, step, number))
        return batches

    def step(
        self, step: int, micro_batches: MicroBatches | None = None, loss_of: LossFunction | None = None
    ) -> Metrics:
        batches = self.micro_batches(step) if micro_batches is None else micro_batches
        return training_step(self.state, step, LEARNING_RATE, batches, loss_of or self.task.loss)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that a step may change, copied to the CPU: weights, buffers, moments, average."""
        saved = self.state.state_dict()
        return named_tensors({name: saved[name] for name in ("model", "optimizer", "ema")})


def named_tensors(content: object, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors in nested dictionaries and lists, by their place."""
    if isinstance(content, torch.Tensor):
        return {name: content.detach().cpu().clone()}
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    tensors = {}
    if isinstance(content, dict):
        for key, value in content.items():
            tensors |= named_tensors(value, f"{name}.{key}" if name else str(key))
    return tensors


def unlike(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    """The names whose tensors are not the same, bit for bit."""
    names = []
    for name in sorted(before | after):
        if name not in before or name not in after or not torch.equal(before[name], after[name]):
            names.append(name)
    return names
