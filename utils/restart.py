"""How a program that has ended early is started again: a training goes on from its checkpoint, others start anew."""

RESUME = "go on with --resume auto"
START_AGAIN = "start it again"

is_training = False  # whether this program writes checkpoints that --resume continues


def note_training() -> None:
    """From now on, errors and requests to stop are those of a training."""
    global is_training
    is_training = True


def remedy() -> str:
    """What to do once the cause of an early end is mended."""
    return RESUME if is_training else START_AGAIN
