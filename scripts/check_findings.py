"""What scripts/check_data.py has found, by kind, and how it is printed."""

import os
from dataclasses import dataclass, field

from data.listing import LeftOut
from utils.console import say
from utils.errors import listed, printable

SHOWN = 20  # findings that are printed
LONGEST_LINE = 1000  # characters; paths are whole

# Kinds of findings, beside those of scripts/image_checks.py and data/listing.py.
FOLDERS = "folders, links and names to mend"
CLASSES = "classes that train and val do not share"
FEW_IMAGES = "classes with one image or none"
SMALL_CLASS = "classes of 2 to 4 images"
ONE_CLASS = "one class only"
NO_CLASSES = "no class folders"
IN_BOTH = "images of train that are in val too"
BRIGHTNESS = "brightness unlike the config's"
# Kinds of notes, of which the last three are sentences on a folder.
LOOSE = "beside class folders: pretraining uses them, finetuning does not"
LOOK_ALIKES = "class folders that look alike"
NAMES = "class names that may not be meant so"
SENTENCES = (NO_CLASSES, ONE_CLASS, LOOK_ALIKES, NAMES)


@dataclass
class Findings:
    """What is wrong, and what may surprise."""

    lines: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # by kind; what is left out has more than lines
    examples: dict[str, str] = field(default_factory=dict)  # the first line of each kind
    notes: dict[str, list[str]] = field(default_factory=dict)  # note -> what it is true of
    small_classes: dict[str, list[str]] = field(default_factory=dict)  # by kind, each with its number of images

    def add(self, kind: str, line: str) -> None:
        self.lines.append(line)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.examples.setdefault(kind, line)

    def add_left_out(self, root: str, left_out: LeftOut) -> None:
        for kind, examples in left_out.examples.items():
            for path in examples:
                self.add(kind, f"{os.path.join(root, path)}: left out ({kind})")
            self.counts[kind] += left_out.counts[kind] - len(examples)

    def note(self, kind: str, line: str) -> None:
        self.notes.setdefault(kind, []).append(line)

    def add_small_class(self, path: str, images: int, is_labelled: bool) -> None:
        """A class with one image or none is a finding where there are labels to learn, others are notes."""
        kind = FEW_IMAGES if images < 2 else SMALL_CLASS
        self.small_classes.setdefault(kind, []).append(f"{path}: {images}")
        line = f"{path}: this class has {images} images"
        if is_labelled and kind == FEW_IMAGES:
            self.add(kind, line)
        else:
            self.note(kind, line)

    def total(self) -> int:
        return sum(self.counts.values())


def print_findings(findings: Findings, has_report: bool) -> None:
    """The first findings, an example for each kind of note, and a table of all kinds and of small classes."""
    for line in findings.lines[:SHOWN]:
        say(printable(line, most=LONGEST_LINE))
    if findings.total() > SHOWN:
        more = f"… and {findings.total() - SHOWN} more"
        if not has_report:
            more += "; --report FILE writes them too"
        say(more)
    for note, lines in sorted(findings.notes.items()):
        if note in SENTENCES:
            for line in lines:
                say(printable(f"note: {line}", most=LONGEST_LINE))
        elif note not in findings.small_classes:
            say(printable(f"note: {len(lines)} images: {note}, as {lines[0]}", most=LONGEST_LINE))
    print_table(findings)


def print_table(findings: Findings) -> None:
    """Kinds of findings with an example each; small classes with their numbers of images, even if they are none."""
    if findings.counts or findings.small_classes:
        say("| count | finding | as |\n|---|---|---|")
    for kind, count in findings.counts.items():
        if kind not in findings.small_classes:
            example = printable(findings.examples[kind].partition(": ")[0], most=LONGEST_LINE)
            say(f"| {count} | {kind} | {example} |")
    for kind, classes in findings.small_classes.items():
        a_note = "" if kind in findings.counts else " (a note)"
        say(f"| {len(classes)} | {kind}{a_note} | {listed(classes, most=LONGEST_LINE)} |")
