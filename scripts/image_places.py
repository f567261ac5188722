"""Folders of images that a person names on the command line of a script."""

from data.folder import ImageFolder
from utils.console import say


def images_below(folder: str) -> list[str]:
    """Paths of the images in a folder, listed as training does. What is left out is said.

    Raises: UserError if there is no image, or what training would refuse.
    """
    images = ImageFolder(folder, labelled=False)
    if images.left_out:
        say(images.left_out_line())
    return [images.path(number) for number in range(len(images))]
