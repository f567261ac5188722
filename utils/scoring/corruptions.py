"""ImageNet-C: a folder `corruption/severity/class/image`, and the mean corruption error (mCE).

Source: Hendrycks and Dietterich, arXiv 1903.12261. AlexNet's errors, means over the five severities, are those of the
authors' code (hendrycks/robustness).
"""

import os

from data.listing import list_root
from utils.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip


def corruption_folders(root: str) -> list[tuple[str, int]]:
    """The corruptions and severities that a folder holds, in the order of the paper, others last.

    Raises: UserError if there are none, or a folder is no severity.
    """
    found = []
    names = folders_in(root)
    known = [name for name in ALEXNET_ERROR if name in names]
    others = [name for name in names if name not in ALEXNET_ERROR]
    for name in known + others:
        for severity in folders_in(os.path.join(root, name)):
            if severity not in map(str, SEVERITIES):
                raise UserError(
                    f"{os.path.join(root, name, severity)}: is no severity from 1 to 5; "
                    "ImageNet-C has folders corruption/severity/class, as in fog/3/n01440764"
                )
            found.append((name, int(severity)))
    if not found:
        raise UserError(f"{root}: holds no folders corruption/severity/class, as in fog/3/n01440764")
    return found


def folders_in(path: str) -> list[str]:
    try:
        return list_root(path).classes
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the folder of ImageNet-C") from error


def corruption_errors(rows: list[dict]) -> dict[str, float]:
    """The error of each corruption that has all severities, over AlexNet's, in percent: the paper's CE.

    Args:
        rows: with `corruption`, `severity` and `top1` in percent. Corruptions without AlexNet's error are left out.
    """
    errors = {}
    for name, alexnet in ALEXNET_ERROR.items():
        of_severity = {row["severity"]: 100 - row["top1"] for row in rows if row["corruption"] == name}
        if set(of_severity) == set(SEVERITIES):
            errors[name] = sum(of_severity.values()) / (len(SEVERITIES) * alexnet)
    return errors


def mean_corruption_error(errors: dict[str, float]) -> float | None:
    """mCE in percent, AlexNet's being 100; None unless all 15 corruptions are there."""
    if set(errors) != set(ALEXNET_ERROR):
        return None
    return sum(errors.values()) / len(errors)
