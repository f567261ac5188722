"""When unreadable images are too many."""

import pytest

from utils.errors import UserError
from utils.run.bad_images import BadImages


def counted(bad_images, replaced_of_steps):
    """The step at which the run ends; None if it does not."""
    for step, replaced in enumerate(replaced_of_steps, start=1):
        try:
            bad_images.count(step, replaced)
        except UserError:
            return step
    return None


def test_more_than_the_share_of_an_epoch_end_the_run():
    def bad_images():
        return BadImages(0.01, steps_per_epoch=100, batch_size=40)  # 4,000 images: 40 are allowed

    assert counted(bad_images(), [1] * 40 + [0] * 60) is None
    assert counted(bad_images(), [0, *[1] * 41]) == 42
    assert counted(bad_images(), [0] * 70 + [41]) == 71


def test_each_epoch_is_counted_anew():
    assert counted(BadImages(0.5, 2, 50), [25, 25, 25, 25, 50, 0]) is None
    assert counted(BadImages(0.5, 2, 50), [25, 25, 26, 25]) == 4


def test_twenty_in_an_epoch_never_end_a_run_and_one_more_does():
    assert counted(BadImages(0.0, 3, 16), [8, 8, 4] * 3) is None
    assert counted(BadImages(0.0, 3, 16), [8, 8, 5]) == 3


def test_of_a_small_data_set_half_an_epoch_never_ends_a_run_and_one_more_does():
    assert counted(BadImages(0.0, 3, 8), [8, 4, 0] * 3) is None
    assert counted(BadImages(0.0, 3, 8), [8, 4, 1]) == 3


def test_the_error_says_how_many_and_what_to_do():
    with pytest.raises(UserError) as caught:
        BadImages(0.01, 10, 100).count(step=17, replaced=30)
    message = str(caught.value)
    for part in ("max_bad_images_share = 0.01", "30 of the 1000 images of epoch 1", "step 17", "scripts/check_data.py"):
        assert part in message
