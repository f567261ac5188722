"""TensorBoard: what rank 0 shows there. No failure of it may end a training."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from configs.schema import FinetuneConfig
from utils.config import knobs, yaml_text
from utils.errors import first_line


class Board:
    """Writes TensorBoard events into a folder; nothing at all where `active` is false (ranks other than 0).

    Args:
        first_step: completed steps so far; events of later ones, of an earlier attempt, are dropped.
        say: prints a warning.
    """

    def __init__(self, folder: Path, first_step: int, active: bool, say: Callable[[str], None]):
        self.folder, self.purge_step, self.active, self.say = folder, first_step + 1, active, say
        self.writer: SummaryWriter | None = None
        self.lacks_matplotlib = False

    def add(self, kind: str, tag: str, value: Any, step: int) -> None:
        """One value.

        Args:
            kind: "scalar", "image" ((3, H, W) uint8), "text" (Markdown), "figure" (matplotlib's), or "tensor", numbers
                that TensorBoard does not show and scripts/figures/plot.py draws.
        """
        if not self.active:
            return
        if isinstance(value, str):
            value = value.encode(errors="backslashreplace").decode()  # a file's name may be no UTF-8
        try:
            if self.writer is None:
                self.writer = SummaryWriter(str(self.folder), purge_step=self.purge_step)
            getattr(self.writer, f"add_{kind}")(tag, value, step)
        except UnicodeEncodeError:
            self.active = False
            self.say(f"warning: {self.folder}: no TensorBoard events, since the folder's name is no UTF-8")
        except OSError as error:
            self.give_up_writer(error, step)

    def flush(self, step: int) -> None:
        """Write to the disk what was added up to `step`, which else happens every two minutes."""
        if self.writer is None:
            return
        try:
            self.writer.flush()
        except OSError as error:
            self.give_up_writer(error, step)

    def give_up_writer(self, error: OSError, step: int) -> None:
        """A writer that a full disk has refused once raises for ever: the next value gets another one."""
        self.writer, self.purge_step = None, step + 1
        self.say(f"warning: {self.folder}: TensorBoard events cannot be written ({error.strerror})")

    def add_drawing(self, tag: str, draw: Callable, step: int) -> None:
        """The matplotlib figure that `draw()` returns. Without matplotlib there is none, and a warning says so once."""
        if not self.active or self.lacks_matplotlib:
            return
        with self.guard(step, "figure"):
            try:
                self.add("figure", tag, draw(), step)
            except ImportError as error:
                self.lacks_matplotlib = True
                self.say(f"warning: TensorBoard shows no curves and no matrices ({error}); pip install matplotlib")

    def add_hparams(self, config: FinetuneConfig, scores: dict[str, float], step: int) -> None:
        """A row of the HParams tab, in the run's own folder (SummaryWriter.add_hparams would make another)."""
        for tag, score in scores.items():
            self.add("scalar", tag, score, step)
        if self.writer is None:
            return
        with self.guard(step, "HParams"):
            for summary in hparams(compared_settings(config), scores):
                self.writer.file_writer.add_summary(summary)

    @contextlib.contextmanager
    def guard(self, step: int, what: str = "pictures") -> Iterator[None]:
        """Turns any exception inside into a warning: a failed picture must not stop training."""
        try:
            yield
        except Exception as error:
            self.say(f"warning: step {step}: no {what} ({type(error).__name__}: {first_line(error)})")

    def close(self) -> None:
        if self.writer is None:
            return
        try:
            self.writer.close()
        except OSError as error:
            self.say(f"warning: {self.folder}: the last TensorBoard events cannot be written ({error.strerror})")


def compared_settings(config: FinetuneConfig) -> dict[str, float | str]:
    """What the HParams tab shows of a run: the knobs marked `compared`, and every other one that it has changed.

    A column that some runs lack is empty there: they have the default. Knobs that change no score, such as folders and
    loader processes, are left out. Values are numbers or words, as the tab takes them; `-` stands for null.
    """
    settings: dict[str, float | str] = {}
    for key, knob in knobs(type(config)).items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        is_changed = value != knob.default and knob.affects != "nothing"
        if not knob.compared and not is_changed:
            continue
        if value is None:
            value = "-"
        settings[key] = value if isinstance(value, int | float) else yaml_text(value)
    return settings
