"""The memory card: what autograd keeps of a forward pass, and how many images fit."""

from __future__ import annotations

import torch
from torch import nn

from scripts.benchmark.memory_card import bytes_an_image, images_that_fit


def test_memory_card_counts_what_is_kept_and_what_fits():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    # Kept: the image and the ReLU's output; the linear layer's input is a view of it.
    assert bytes_an_image(model, 8, torch.float32) == (3 + 4) * 8 * 8 * 4
    # The same in two bytes; autocast copies the image, and the copy is what is kept.
    assert bytes_an_image(model, 8, torch.bfloat16) == (3 + 4) * 8 * 8 * 2
    # 8 GB: less 1 GB, less a tenth, less 16 bytes for each of 25 million parameters: 5.9 GB, 59 images of 100 MB.
    assert images_that_fit(8, 100_000_000, 25_000_000) == 32
    assert images_that_fit(8, 92_187_500, 25_000_000) == 64 and images_that_fit(8, 92_187_501, 25_000_000) == 32
    assert images_that_fit(1, 1, 1) == images_that_fit(8, 6_000_000_000, 25_000_000) == 0
