"""Names of classes: comparing them, and showing how similar ones differ."""

import unicodedata

from utils.errors import UserError, printable

# Cyrillic and Greek letters that look like Latin ones in most fonts.
LIKE_LATIN = str.maketrans("асеорхуіјѕАВЕКМНОРСТХУІЈЅοΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aceopxyijsABEKMHOPCTXYIJSoABEZHIKMNOPTYX")


def look_alikes(root: str, classes: list[str]) -> list[str]:
    """A line for each class name that looks like another one, with the code points that differ."""
    lines = []
    seen: dict[str, str] = {}
    for name in classes:
        look = appearance(name)
        if look in seen:
            lines.append(
                f"{root}: the class folders {spelled(seen[look])} and {spelled(name)} look alike but are two names; "
                "merge them, or rename one"
            )
        seen[look] = name
    return lines


def appearance(name: str) -> str:
    """What names have in common that look alike: without invisible characters, and every accent in one spelling."""
    composed = unicodedata.normalize("NFC", name)
    visible = [character for character in composed if unicodedata.category(character) not in ("Cf", "Cc")]
    return "".join(visible).strip()


def case_twins(classes: list[str]) -> str:
    """The first two class names that differ by case alone, as "Ant and ant"; "" if there are none."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            return f"{spelled(other)} and {spelled(name)}"
    return ""


def of_two_alphabets(classes: list[str]) -> str:
    """The first class name with Latin and with Cyrillic or Greek letters, which can look alike; "" if there is none."""
    for name in classes:
        alphabets = {unicodedata.name(letter, "").split(" ")[0] for letter in name if letter.isalpha()}
        if len(alphabets & {"LATIN", "CYRILLIC", "GREEK"}) > 1:
            return spelled(name)
    return ""


def alphabet_twins(classes: list[str]) -> str:
    """The first two class names that look alike since letters of another alphabet do; "" if there are none."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(appearance(name).translate(LIKE_LATIN), name)
        if other != name:
            return f"{spelled(other)} and {spelled(name)}"
    return ""


def name_warnings(root: str, classes: list[str]) -> list[str]:
    """Sentences on class names that may not be meant as they are; they begin with the folder."""
    sentences = []
    twins = case_twins(classes)
    if twins:
        sentences.append(f"{root}: the class folders {twins} differ by case alone; are they two classes?")
    twins = alphabet_twins(classes)
    if twins:
        sentences.append(
            f"{root}: the class folders {twins} look alike, but have letters of different alphabets; are they two "
            "classes?"
        )
    mixed = of_two_alphabets(classes)
    if mixed:
        sentences.append(
            f"{root}: the class folder {mixed} has letters of two alphabets, which can look alike; is it meant so?"
        )
    return sentences


def spelled(name: str) -> str:
    """A name with the code points of what is not plain ASCII, which show how similar names differ."""
    special = [character for character in name if not "!" <= character <= "~"]
    if not special or (set(special) == {" "} and name == name.strip()):
        return name
    code_points = " ".join(f"U+{ord(character):04X}" for character in special)
    return f"{printable(name)} [{code_points}]"


def check_same_classes(root: str, folders: list[str], classes: list[str]) -> None:
    """Raise UserError unless the class folders in root are the classes of the training set or checkpoint."""
    missing = sorted(set(classes) - set(folders))
    unexpected = sorted(set(folders) - set(classes))
    if missing or unexpected:
        raise UserError(
            f"{root}: its class folders are not those of the training set or checkpoint: "
            f"missing {abbreviate(missing)}; unexpected {abbreviate(unexpected)}; make the folders agree"
        )


def abbreviate(names: list[str]) -> str:
    """The first three of some names, and how many more there are."""
    if not names:
        return "none"
    listed = ", ".join(spelled(name) for name in names[:3])
    if len(names) > 3:
        return f"{listed} and {len(names) - 3} more"
    return listed
