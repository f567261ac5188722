"""Continuing a run: which checkpoint, whether it belongs to this run, and what is done with it."""

from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import keys_affecting, to_dict
from utils.console import say
from utils.errors import UserError, first_line
from utils.run.checkpoint import Checkpoints, read_checkpoint
from utils.run.provenance import write_config
from utils.run.reading import flat
from utils.saved_config import refuse_odd_values
from utils.training.step import TrainingState

if TYPE_CHECKING:
    from utils.run.job import Job


def find_resume(checkpoints: Checkpoints, resume: str | None) -> Path | None:
    """The checkpoint to continue from.

    Args:
        resume: a path, "auto" (the newest of the run's own that is whole, if there is any), or None.
    Raises: UserError if the folder holds checkpoints and nothing is said of resuming, or none of them can be read.
    """
    existing = checkpoints.all()
    if existing and resume is None:
        raise UserError(
            f"run.output_dir = {checkpoints.folder.parent}: holds checkpoints of an earlier run ({existing[-1].name}); "
            "continue it with --resume auto, or give another --output-dir"
        )
    if resume is None:
        return None
    if resume != "auto":
        return Path(resume)
    for path in reversed(existing):
        try:
            read_checkpoint(path)
            return path
        except UserError as error:
            say(f"warning: {error}; trying the one before")
    if existing:
        raise UserError(f"{checkpoints.folder}: none of its checkpoints can be read (see above); start another folder")
    return None


def load_resume(config: PretrainConfig | FinetuneConfig, job: "Job", state: TrainingState, extra_state: dict) -> int:
    """Load what the run continues, if anything. Returns: completed steps.

    Args:
        extra_state: what checkpoints hold beside the training state (config, number of images, classes).
    Raises: UserError if the checkpoint belongs to another recipe or data set.
    """
    if job.resume is None:
        if config.run.resume:
            job.say(f"{job.output}: nothing to resume yet, starting anew")
        return 0
    saved = read_resume(job.resume, config, extra_state)
    try:
        state.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{job.resume}: its state does not fit this config ({first_line(error)})") from error
    job.say(f"resuming after step {saved['step']} from {job.resume}")
    return saved["step"]


def begin_output(config: PretrainConfig | FinetuneConfig, job: "Job", first_step: int) -> None:
    """Set aside checkpoints of a branch that is given up, and write config.yaml; by rank 0 only."""
    if job.world.rank == 0:
        job.checkpoints.set_aside_after(first_step)
        write_config(job.output, to_dict(config))


def read_resume(path: Path, config: PretrainConfig | FinetuneConfig, extra_state: dict) -> dict:
    """The checkpoint to resume, if it belongs to the same computation on the same images.

    Knobs that do not affect the weights may differ; with run.allow_config_change all may.
    Raises: UserError listing what differs.
    """
    saved = read_checkpoint(path)
    if not {"model", "optimizer", "step", "config"} <= saved.keys() or not isinstance(saved["config"], dict):
        raise UserError(f"{path}: holds no training state to resume; start from its weights with --weights")
    refuse_odd_values(saved["config"], str(path))
    defaults = flat(to_dict(type(config)()))  # a checkpoint from before a knob was made had its default
    before = defaults | flat(saved["config"])
    now = flat(to_dict(config))
    free = keys_affecting(type(config), "score", "nothing")
    changed = [key for key in sorted(before | now) if key not in free and before.get(key) != now.get(key)]
    if changed and not config.run.allow_config_change:
        differences = "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed)
        raise UserError(
            f"{path}: was trained with another config ({differences}); revert it, or pass --allow-config-change"
        )
    if before["optimizer.name"] != now["optimizer.name"]:
        raise UserError(
            f"{path}: was trained with optimizer.name = {before['optimizer.name']}, whose moments "
            f"{now['optimizer.name']} cannot take over; start from its weights with --weights and another --output-dir"
        )
    for key, value in extra_state.items():
        if key != "config" and saved.get(key) != value:
            raise UserError(f"{path}: was trained on other data: {key} differ; resume with the data set it began with")
    return saved
