"""Pixels on the device: uint8 to [0, 1], and normalisation both ways."""

import torch


def unit_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [0, 1], CHW in memory whatever it was: the filter's products and transforms want that."""
    return images.to(torch.float32, memory_format=torch.contiguous_format) / 255


class Normalizer:
    """(x − mean) / std per channel of (…, 3, H, W) in [0, 1]; the constants are put on the device once."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu"):
        self.mean = torch.tensor(mean, device=device)[:, None, None]
        self.std = torch.tensor(std, device=device)[:, None, None]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std

    def undo(self, images: torch.Tensor) -> torch.Tensor:
        """Back to [0, 1] (not clamped)."""
        return images * self.std + self.mean
