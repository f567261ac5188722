"""RandAugment (Cubuk et al., arXiv 1909.13719) of uint8 images, (3, H, W) in and out.

Whatever is drawn comes from torch's CPU generator: call these inside `keyed_torch`.
"""

import torch
from torchvision.transforms import InterpolationMode, v2

# Pillow computes these in another way than torchvision's tensor code: it can resample by bicubic interpolation, or its
# rounding differs by one level.
ON_PILLOW_IMAGES = ("ShearX", "ShearY", "Rotate", "Color", "Contrast", "Sharpness", "AutoContrast")


class RandAugment(v2.RandAugment):
    """torchvision's RandAugment, draw for draw, with the pixels that CoinCheung/MFM gets from Pillow images.

    Operations of which tensors have the same pixels work on tensors, where they take less time.
    """

    # The first version of torchvision's classes, which CoinCheung/MFM uses, has levels of 255 as thresholds. The second
    # has shares, and 255 × 0.33333334 is above 85: on a Pillow image that leaves a pixel of 85 as it is.
    _AUGMENTATION_SPACE = {  # noqa: RUF012, torchvision has it so
        **v2.RandAugment._AUGMENTATION_SPACE,
        "Solarize": (lambda num_bins, height, width: torch.linspace(255.0, 0.0, num_bins), False),
    }

    def _apply_image_or_video_transform(
        self, image: torch.Tensor, transform_id: str, magnitude: float, interpolation: InterpolationMode, fill: dict
    ) -> torch.Tensor:
        """torchvision's own method, which its `forward` calls for each operation that it drew."""
        if transform_id == "Solarize":
            return v2.functional.solarize(image, threshold=magnitude)
        if transform_id in ON_PILLOW_IMAGES:
            pillow = v2.functional.to_pil_image(image)
            pillow = super()._apply_image_or_video_transform(pillow, transform_id, magnitude, interpolation, fill)
            return v2.functional.pil_to_tensor(pillow)
        # Translations are by whole pixels, so the nearest pixel is the bicubic value.
        nearest = InterpolationMode.NEAREST
        return super()._apply_image_or_video_transform(image, transform_id, magnitude, nearest, fill)
