"""Continuing a run: which checkpoint, whether it belongs to this run, and where in its schedule training goes on.

What may differ between the run that a checkpoint is of and the one that continues it:

- always: knobs that affect a score or nothing, the number of ranks, and where the same images lie;
- with run.allow_config_change: every other knob, as far as the checkpoint fits. With another batch size the run goes on
  at the same image: its position is kept as (epoch, images into the epoch), which no permitted change alters;
- never: the images (number, names, classes, and most of a sample of their files) of train, val and the held-out part,
  pretraining or finetuning, the optimizer, a position within a batch, a position after the end of the schedule.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import keys_affecting, to_dict
from utils.console import fitted, say
from utils.errors import UserError, first_line, listed
from utils.run.checkpoint import Checkpoints, read_checkpoint
from utils.run.provenance import write_config
from utils.run.reading import FlatConfig, flat, is_pretraining
from utils.run.state_checks import refuse_unusable_state
from utils.saved_config import refuse_odd_values
from utils.training.schedule import LearningRate
from utils.training.step import TrainingState

if TYPE_CHECKING:
    from utils.run.job import Job

LEFT_OPEN = "model.channels_last"  # null fits every value: true was the default once, and only rounding differs
SAMPLED_FILES = "sampled_files"  # of data.identity.identity: hashes, of which some may differ after a file was mended


class Plan(Protocol):
    """The part of a data.sampling.BatchPlan that resuming needs."""

    length: int  # training images
    batch_size: int
    total_steps: int
    steps_per_epoch: int

    def step_at(self, epoch: int, images: int) -> int: ...


@dataclass(frozen=True)
class Start:
    """Where training starts."""

    step: int = 0  # completed steps, in batches of this run's size
    checkpoint_step: int = 0  # completed steps as the checkpoint counts them
    checkpoint_batch_size: int = 0  # 0: there is no checkpoint

    @property
    def counts_anew(self) -> bool:
        """Whether the checkpoint counts steps of another size, so that files named by steps mean something else."""
        return self.step != self.checkpoint_step


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


def load_resume(
    config: PretrainConfig | FinetuneConfig, job: "Job", state: TrainingState, plan: Plan, extra_state: dict
) -> Start:
    """Load what the run continues, if anything. No file is written.

    Args:
        extra_state: what checkpoints hold beside the training state (config, number and identity of images, classes).
    Raises: UserError if the checkpoint belongs to another recipe or data set, or lies after the end of the schedule, or
        holds numbers that are not finite.
    """
    if job.resume is None:
        if config.run.resume:
            job.say(f"{job.output}: nothing to resume yet, starting anew")
        return Start()
    saved = read_resume(job.resume, config, extra_state)
    start = starting_point(job.resume, saved, plan)
    refuse_unusable_state(job.resume, saved, state)
    try:
        state.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{job.resume}: its state does not fit this config ({first_line(error)})") from error
    job.say(fitted(f"resuming after step {saved['step']} from {job.resume}"))
    for line in remarks(config, saved, start, plan, extra_state):
        job.say(fitted(line))
    return start


def begin_output(
    config: PretrainConfig | FinetuneConfig, job: "Job", state: TrainingState, extra_state: dict, start: Start
) -> None:
    """Set aside checkpoints of a branch that is given up, and write config.yaml; by rank 0 only.

    Where steps are counted anew, the loaded state is first saved under its new number, and all that is named or
    numbered in the old way set aside. An end at any point leaves a checkpoint to resume from.
    """
    if job.world.rank != 0:
        return
    if start.counts_anew:
        set_logs_aside(job.output, start)
        position = position_after(start.step, extra_state["images"] // config.train.batch_size, config.train.batch_size)
        path = job.checkpoints.save(start.step, state.state_dict() | extra_state | {"position": position})
        job.checkpoints.set_aside_others(path)
    job.checkpoints.set_aside_after(start.step)
    write_config(job.output, to_dict(config))


def set_logs_aside(output: Path, start: Start) -> None:
    """Move log.jsonl and TensorBoard's events, whose steps are of another size, into a folder that says so."""
    folder = output / f"until_step_{start.checkpoint_step}_of_{start.checkpoint_batch_size}_images"
    for path in [*output.glob("log.jsonl"), *output.glob("events.*")]:
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)


def position_after(step: int, steps_per_epoch: int, batch_size: int) -> dict[str, int]:
    """Where a run is after `step` completed steps, in a unit that no batch size alters: as in a checkpoint."""
    epoch, batches = divmod(step, steps_per_epoch)
    return {"epoch": epoch, "images": batches * batch_size}


def starting_point(path: Path, saved: dict, plan: Plan) -> Start:
    """Where the schedule of `plan` goes on after a checkpoint.

    Raises: UserError if that is within one of its batches, or after its end.
    """
    batch_size = saved["config"].get("train", {}).get("batch_size", plan.batch_size)
    position = saved.get("position")  # a checkpoint from before it was kept has the step alone
    if position is None:
        steps_per_epoch = saved.get("images", plan.length) // batch_size
        position = position_after(saved["step"], steps_per_epoch, batch_size)
    try:
        step = plan.step_at(position["epoch"], position["images"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if step > plan.total_steps:
        meaning = f"step {saved['step']}"
        if step != saved["step"]:
            meaning += f" of {batch_size} images (step {step} of {plan.batch_size})"
        raise UserError(
            f"{path}: the checkpoint is after {meaning}, the new schedule ends at step {plan.total_steps}: nothing is "
            "left to do; raise schedule.epochs (or schedule.steps), or resume from an earlier checkpoint"
        )
    return Start(step, saved["step"], batch_size)


def remarks(
    config: PretrainConfig | FinetuneConfig, saved: dict, start: Start, plan: Plan, extra_state: dict
) -> list[str]:
    """What the log says about resuming with another recipe, or from a checkpoint that knows little of its images."""
    lines = []
    began_from = saved["config"].get("run", {}).get("weights")
    if config.run.weights not in (None, began_from):
        began = "from scratch" if began_from is None else f"from {began_from}"
        lines.append(f"warning: --weights {config.run.weights} is not read: this run began {began}, and goes on")
    changed = changed_settings(config, saved)
    if changed:
        lines.append(f"with another recipe: {'; '.join(changed)}")
        place = f"step {start.step}"
        if start.counts_anew:
            place = f"step {start.checkpoint_step} of {start.checkpoint_batch_size} images is {place}"
        rate = LearningRate(config.schedule, config.optimizer.learning_rate, plan.steps_per_epoch).at(start.step)
        epoch = start.step // plan.steps_per_epoch
        lines.append(f"{place} of {plan.batch_size} images, epoch {epoch}, learning rate {rate:.3g}")
    if start.counts_anew and config.run.resume != "auto":
        lines.append("from here on continue with --resume auto: the checkpoints get new numbers")
    unknown = [part for part in extra_state.get("data", {}) if part not in saved.get("data", {})]
    if unknown:
        lines.append(
            f"warning: the checkpoint does not say which images {' and '.join(unknown)} had; compared were only "
            f"{' and '.join(key for key in ('images', 'classes') if key in extra_state)} of train, by number and name"
        )
    for part, facts in extra_state.get("data", {}).items():
        if part in saved.get("data", {}):
            unlike = unlike_files(saved["data"][part], facts)
            if unlike:
                lines.append(f"warning: {unlike} of {len(facts[SAMPLED_FILES])} sampled files of {part} have changed")
    return lines


def changed_settings(config: PretrainConfig | FinetuneConfig, saved: dict) -> list[str]:
    """Each knob that affects the weights and differs from the checkpoint's, as `key: before -> now`."""
    before, now = settings(config, saved)
    free = keys_affecting(type(config), "score", "nothing")
    changed = []
    for key in sorted(before | now):
        if key in free or before.get(key) == now.get(key):
            continue
        if key == LEFT_OPEN and None in (before.get(key), now.get(key)):
            continue
        changed.append(f"{key}: {before.get(key)} -> {now.get(key)}")
    return changed


def settings(config: PretrainConfig | FinetuneConfig, saved: dict) -> tuple[FlatConfig, FlatConfig]:
    """The checkpoint's settings, and this run's. A checkpoint from before a knob was made had its default."""
    defaults = flat(to_dict(type(config)()))
    return defaults | flat(saved["config"]), flat(to_dict(config))


def read_resume(path: Path, config: PretrainConfig | FinetuneConfig, extra_state: dict) -> dict:
    """The checkpoint to resume, if it belongs to the same computation on the same images: see above.

    Raises: UserError listing what differs.
    """
    saved = read_checkpoint(path)
    if not {"model", "optimizer", "step", "config"} <= saved.keys() or not isinstance(saved["config"], dict):
        raise UserError(f"{path}: holds no training state to resume; start from its weights with --weights")
    refuse_odd_values(saved["config"], str(path))
    if saved["config"] and is_pretraining(saved["config"]) != is_pretraining(to_dict(config)):
        kind = "pretraining" if is_pretraining(saved["config"]) else "finetuning"
        raise UserError(f"{path}: is of a {kind}, which this is not; start from its weights with --weights")
    changed = changed_settings(config, saved)
    if changed and not config.run.allow_config_change:
        raise UserError(
            f"{path}: was trained with another config ({listed(changed)}); revert it, or pass --allow-config-change"
        )
    before, now = settings(config, saved)
    if before["optimizer.name"] != now["optimizer.name"]:
        raise UserError(
            f"{path}: was trained with optimizer.name = {before['optimizer.name']}, whose moments "
            f"{now['optimizer.name']} cannot take over; start from its weights with --weights and another --output-dir"
        )
    differences = data_differences(saved, extra_state)
    if differences:
        also = [line for line in changed if line.startswith("data.holdout_fraction")]
        raise UserError(
            f"{path}: was trained on other data: {', '.join(differences + also)} differ; resume with that data set, or "
            "start from its weights with --weights and another --output-dir"
        )
    return saved


def data_differences(saved: dict, extra_state: dict) -> list[str]:
    """What of the images is not as the checkpoint says, the plainest first; what it does not know is not compared."""
    differences = []
    for key, value in extra_state.items():
        if key not in ("config", "data") and saved.get(key) != value:
            differences.append(key)
    if differences:
        return differences
    for part, facts in extra_state.get("data", {}).items():
        before = saved.get("data", {}).get(part)
        if before is not None:
            differences += part_differences(part, before, facts)
    return differences


def part_differences(part: str, before: dict, facts: dict) -> list[str]:
    """The first that differs of number, classes, names and contents of the images of a part such as "train"."""
    for name, what in (("images", "number of images"), ("classes", "classes"), ("fingerprint", "names of images")):
        if before[name] != facts[name]:
            return [f"{what} in {part}"]
    if 2 * unlike_files(before, facts) > len(facts[SAMPLED_FILES]):
        return [f"contents of images in {part}"]
    return []


def unlike_files(before: dict, facts: dict) -> int:
    """How many of the sampled files have other bytes than before; 0 if it is not the same sample."""
    old, new = before[SAMPLED_FILES], facts[SAMPLED_FILES]
    if len(old) != len(new):
        return 0
    return sum(one != other for one, other in zip(old, new, strict=True))
