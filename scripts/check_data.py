"""Read every image of a data set as training will, and report what is wrong with it before weeks depend on it.

python scripts/check_data.py imagenet                                   # a folder with train/ and val/
python scripts/check_data.py imagenet --workers 32 --report findings.json
python scripts/check_data.py mine --config configs/pretrain_resnet50.yaml   # compare brightness with data.mean, .std

Exit code 0: nothing found; 1: findings; 2: the folder cannot be checked at all.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from configs.schema import PretrainConfig
from data.class_names import check_same_classes, look_alikes, name_warnings, spelled
from data.folder import apart, count_names, open_root
from data.listing import BESIDE, list_images, list_root
from scripts.check_findings import (
    BRIGHTNESS,
    CLASSES,
    FOLDERS,
    IN_BOTH,
    LONGEST_LINE,
    LOOK_ALIKES,
    LOOSE,
    NAMES,
    NO_CLASSES,
    ONE_CLASS,
    Findings,
    print_findings,
)
from scripts.image_checks import ImageCheck
from utils.config import build, read_yaml
from utils.console import progress_bar, say
from utils.distributed import run_entry
from utils.errors import UserError, first_line, printable
from utils.files import write_atomically
from utils.limits import available_cores
from utils.process import shield_worker

MEASURED = 2000  # images whose brightness is compared with a config
SMALL = 5  # images; classes of fewer are listed
FAR_MEAN = 0.5  # of a standard deviation
FAR_STD = 1.5  # times


@dataclass(frozen=True)
class Split:
    """The images of train or val."""

    root: str
    classes: list[str]
    paths: list[str]


def list_split(root: str, is_labelled: bool, findings: Findings) -> Split:
    """What training will find in a folder, and more, since nothing here ends the listing.

    Images beside the class folders are in the list, since pretraining uses them.

    Args:
        is_labelled: there are train and val, so the folders are classes to learn; else any folder will do.
    Raises: UserError if the folder cannot be read or has no image and no class folder, or is val and has none.
    """
    try:
        found = list_root(root)
    except OSError:
        open_root(root)  # raises the error that training ends with
        raise
    listing = list_images(root, found.classes)
    for problem in sorted(found.problems + listing.problems):
        findings.add(FOLDERS, problem)
    for sentence in look_alikes(root, found.classes):
        if is_labelled:
            findings.add(FOLDERS, sentence)
        else:
            findings.note(LOOK_ALIKES, sentence)
    loose = [os.path.join(root, os.fsdecode(name)) for name in sorted(found.images)]
    if loose and not (is_labelled and found.classes):
        found.left_out.remove(BESIDE)  # pretraining uses them
        if found.classes:
            findings.notes[LOOSE] = loose
    for left_out in (found.left_out, listing.left_out):
        findings.add_left_out(root, left_out)
    is_val = os.path.basename(root) == "val"
    if not found.classes and not found.problems and (is_val or not found.images):
        open_root(root)
    paths = list(loose)
    for class_name, names in zip(found.classes, listing.names_of_class, strict=True):
        images = count_names(names)
        if images < SMALL:
            findings.add_small_class(os.path.join(root, spelled(class_name)), images, is_labelled)
        paths += [os.path.join(root, os.fsdecode(name)) for name in apart(names)]
    return Split(root, found.classes, paths)


def list_splits(root: Path, findings: Findings) -> list[Split]:
    """Train first, or the root alone if it has neither train/ nor val/. Raises: UserError if none can be listed."""
    roots = [root / name for name in ("train", "val") if os.path.lexists(root / name)]
    splits = []
    errors = []
    for folder in roots or [root]:
        try:
            splits.append(list_split(str(folder), is_labelled=len(roots) == 2, findings=findings))
        except UserError as error:
            errors.append(f"{error}; no image of {folder} was checked")
    if not splits:
        raise UserError("; ".join(errors))
    for error in errors:
        findings.add(FOLDERS, error)
    check_classes(splits, findings)
    return splits


def check_classes(splits: list[Split], findings: Findings) -> None:
    """Whether the classes of train can be learned, and are those of val."""
    train = splits[0]
    if not train.classes:
        sentence = f"{train.root}: has no class folders: pretraining can use it, finetuning not"
        if len(splits) == 2:
            findings.add(NO_CLASSES, sentence)
        else:
            findings.note(NO_CLASSES, sentence)
        return
    for sentence in name_warnings(train.root, train.classes):
        findings.note(NAMES, sentence)
    if len(splits) == 2:
        try:
            check_same_classes(splits[1].root, splits[1].classes, train.classes)
        except UserError as error:
            findings.add(CLASSES, str(error))
    if len(train.classes) == 1:
        sentence = (
            f"{train.root}: has the one class {spelled(train.classes[0])}: pretraining can use it, finetuning not"
        )
        if len(splits) == 2:
            findings.add(ONE_CLASS, sentence)
        else:
            findings.note(ONE_CLASS, sentence)


def sizes_in_both(splits: list[Split]) -> frozenset[int]:
    """Sizes in bytes that files of train and of val have: only they can be equal."""
    if len(splits) < 2:
        return frozenset()
    sizes = []
    for split in splits:
        sizes.append({os.stat(path).st_size for path in split.paths if os.path.exists(path)})
    return frozenset(sizes[0] & sizes[1])


def check_images(splits: list[Split], check: ImageCheck, workers: int, findings: Findings) -> torch.Tensor:
    """Decode everything. Returns: mean and mean square (n, 2, 3) float64 of the images that were measured.

    Raises: UserError if a process is killed, as the kernel does for want of memory.
    """
    paths = []
    for split in reversed(splits):  # val first: its digests are kept, those of train are not
        paths += split.paths
    in_train = set(range(len(paths) - len(splits[0].paths), len(paths)))
    path_in_val: dict[bytes, str] = {}
    brightness = [torch.empty(0, 2, 3, dtype=torch.float64)]
    # What a loader's worker processes collate are the paths themselves, one by one.
    results = DataLoader(
        paths, batch_size=None, num_workers=workers, collate_fn=check.check, worker_init_fn=shield_worker
    )
    try:
        for number, checked in enumerate(progress_bar(results, unit="image")):
            path = paths[number]
            for kind, line in checked.findings.items():
                findings.add(kind, line)
            for note in checked.notes:
                findings.note(note, path)
            if checked.digest and number not in in_train:
                path_in_val[checked.digest] = path
            elif checked.digest in path_in_val:
                findings.add(IN_BOTH, f"{path}: the same file as {path_in_val[checked.digest]}; remove one of the two")
            if checked.mean is not None:
                brightness.append(torch.stack([checked.mean, checked.mean_square])[None])
    except RuntimeError as error:
        raise UserError(f"a checking process was killed ({first_line(error)}); lower --workers") from error
    return torch.cat(brightness)


def compare_brightness(brightness: torch.Tensor, path: str, findings: Findings) -> None:
    """Whether data.mean and data.std of a config are those of the images, roughly."""
    values = {}
    for key, value in read_yaml(path).items():
        if key in ("data.mean", "data.std"):  # of recipes for pretraining and for finetuning
            values[key] = value
    data = build(PretrainConfig, values).data
    if not len(brightness):
        return
    mean, mean_square = brightness.mean(0)
    std = (mean_square - mean.square()).clamp_min(0).sqrt()
    config_mean, config_std = torch.tensor([data.mean, data.std], dtype=torch.float64)
    ratio = std / config_std
    is_far = ((mean - config_mean).abs() > FAR_MEAN * config_std) | (ratio > FAR_STD) | (ratio < 1 / FAR_STD)
    if is_far.any():
        findings.add(
            BRIGHTNESS,
            f"{path}: data.mean {three(config_mean)}, data.std {three(config_std)}; {len(brightness)} of the images "
            f"have mean {three(mean)}, std {three(std)}: set both, in pretraining and finetuning alike",
        )


def three(values: torch.Tensor) -> str:
    return " ".join(f"{value:.3f}" for value in values.tolist())


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Read every image as training will, and report what is wrong.")
    parser.add_argument("root", type=Path, help="a folder with train/ and val/, or any folder of images")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: the cores)")
    parser.add_argument("--report", type=Path, help="a JSON file for all findings and notes")
    parser.add_argument("--config", help="a recipe whose data.mean and data.std the images should have")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: must be at least 1")
    findings = Findings()
    splits = list_splits(arguments.root, findings)
    images = sum(len(split.paths) for split in splits)
    measure_every = max(1, images // MEASURED) if arguments.config else 0
    check = ImageCheck(sizes_in_both(splits), measure_every)
    brightness = check_images(splits, check, arguments.workers, findings)
    if arguments.config:
        compare_brightness(brightness, arguments.config, findings)
    print_findings(findings, has_report=arguments.report is not None)
    if arguments.report:
        content = {"findings": findings.lines, "counts": findings.counts, "notes": findings.notes}
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(arguments.report, lambda file: file.write(text.encode()))
    roots = ", ".join(split.root for split in splits)
    say(f"{images} images in {printable(roots, most=LONGEST_LINE)}: {findings.total()} findings")
    return 1 if findings.total() else 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:], output_is_result=True)
