"""Learning rate as a pure function of the step: linear warmup, then a cosine."""

import math


def learning_rate(
    step: int, steps_per_epoch: int, epochs: int, peak: float, warmup_epochs: float = 0.0,
    warmup_learning_rate: float = 0.0, final_learning_rate: float = 0.0,
    interval: str = "step", cosine_from: str = "warmup",
) -> float:  # fmt: skip
    """The learning rate of optimizer step `step`, counted from 0.

    Args:
        interval: "step" changes it each step, "epoch" at the start of each epoch (public code A).
        cosine_from: "warmup": the cosine spans the epochs after warmup (code A); "start": all epochs,
            so that it continues below the peak after warmup (the paper's code).
    """
    done = step // steps_per_epoch if interval == "epoch" else step / steps_per_epoch  # epochs
    if done < warmup_epochs:
        return warmup_learning_rate + (peak - warmup_learning_rate) * done / warmup_epochs
    start = warmup_epochs if cosine_from == "warmup" else 0
    share = (done - start) / (epochs - start)
    return final_learning_rate + (peak - final_learning_rate) * (1 + math.cos(math.pi * share)) / 2
