"""How many unreadable images a training may replace before what it learns is no longer the data set."""

from utils.errors import UserError

ALWAYS_ALLOWED = 20  # in an epoch, so that a few bad files do not end a training on a small data set; at most half


class BadImages:
    """Counts the replaced images of an epoch, over all ranks, and ends the run if they are too many.

    Args:
        max_share: of the images of an epoch.
        steps_per_epoch: in steps of `batch_size` images over all ranks.
    """

    def __init__(self, max_share: float, steps_per_epoch: int, batch_size: int):
        self.max_share, self.steps_per_epoch = max_share, steps_per_epoch
        self.images = steps_per_epoch * batch_size
        self.epoch, self.replaced = 0, 0

    def count(self, step: int, replaced: int) -> None:
        """Take note of the images replaced in the step that makes `step` completed ones, on all ranks together.

        Raises: UserError if too many were replaced in this epoch; on all ranks, if all are given the same numbers.
        """
        epoch = (step - 1) // self.steps_per_epoch
        if epoch != self.epoch:
            self.epoch, self.replaced = epoch, 0
        self.replaced += replaced
        if self.replaced > max(min(ALWAYS_ALLOWED, self.images // 2), self.max_share * self.images):
            raise UserError(
                f"data.max_bad_images_share = {self.max_share}: {self.replaced} of the {self.images} images of epoch "
                f"{epoch} were unreadable and replaced, up to step {step} (log.jsonl names them).\n"
                "Run scripts/check_data.py and mend the data, or raise the share, and go on with --resume auto."
            )
