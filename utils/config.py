"""YAML files and command lines into frozen dataclasses, every value checked and every complaint with its origin.

A config class has sections (dataclasses) of knobs (fields made by `configs.schema.knob`). A YAML file holds
`section: {key: value}` and at most one `base:`, a file relative to its own whose values it overrides.
"""

import argparse
import dataclasses
import itertools
import operator
import os
import re
import typing
from collections.abc import Iterable

import yaml

from utils.errors import UserError, first_line, printable
from utils.hints import nearest_key
from utils.knobs import CommandLineText, check_limits, convert, knobs, limits_text, yaml_text
from utils.saved_config import refuse_odd_values
from utils.strict_yaml import StrictDumper, StrictLoader

Values = dict[str, tuple[object, str]]  # "section.key" -> (value as read, where it was read)
Config = typing.TypeVar("Config")  # PretrainConfig or FinetuneConfig
MOST_COMPLAINTS = 10  # that an error lists
MOST_COMPLAINTS_OF_A_FILE = 2  # about the config in a checkpoint, which nobody can edit
LARGEST_YAML = 2**20  # characters
OVERRIDE = re.compile(r"\w+(\.\w+)+=")  # begins a word of the command line such as schedule.epochs=30


def keys_affecting(config_class: type, *effects: str) -> frozenset[str]:
    """The knobs, as `section.key`, whose `affects` is one of these: "weights", "score" or "nothing"."""
    return frozenset(key for key, knob in knobs(config_class).items() if knob.affects in effects)


def parse_entry(config_class: type[Config], argv: list[str], description: str, other_entry: tuple[str, type]) -> Config:
    """`parse_command_line` for an entry file, which wants at least one word, and knows the other entry's knobs.

    Args:
        other_entry: its file's name and its config class.
    """
    if not argv:
        usage = argument_parser(config_class, description).format_usage().strip()
        raise UserError(f"nothing given to do; --help lists every knob, configs/ holds recipes\n{usage}")
    return parse_command_line(config_class, argv, description, other_entry)


def parse_command_line(
    config_class: type[Config], argv: list[str], description: str, other_entry: tuple[str, type] | None = None
) -> Config:
    """The config that a command line asks for: defaults, then --config and its bases, then flags and overrides.

    Args:
        config_class: `PretrainConfig` or `FinetuneConfig`.
        argv: the words after the program's name.
        description: first line of `--help`.
    Raises: UserError naming the origin, key and value of everything wrong.
    """
    overrides = [word for word in argv if OVERRIDE.match(word)]
    other_words = [word for word in argv if not OVERRIDE.match(word)]
    known, unknown = argument_parser(config_class, description).parse_known_args(other_words)
    arguments = vars(known)
    files = arguments.pop("config")
    if len(files) > 1:
        raise UserError(f"command line: --config is given twice ({', '.join(files)}); a `base:` can join two")
    for word in overrides:
        key, _, text = word.partition("=")
        arguments.setdefault(key, []).append(CommandLineText(text))
    values = read_yaml(files[0]) if files else {}
    for key, texts in arguments.items():
        if len(texts) > 1:
            raise UserError(f"command line: {key} is given twice; give it once")
        for text in texts:
            values[key] = (text, "command line")
    return build(config_class, values, unknown_words(config_class, unknown, other_entry), other_entry)


def keys_given(config_class: type, argv: list[str]) -> frozenset[str]:
    """The knobs, as `section.key`, that a command line itself sets, by a flag or as section.key=value."""
    keys = {word.partition("=")[0] for word in argv if OVERRIDE.match(word)}
    flags, _ = argument_parser(config_class, "").parse_known_args([word for word in argv if not OVERRIDE.match(word)])
    keys.update(key for key, texts in vars(flags).items() if texts)
    return frozenset(keys & knobs(config_class).keys())


def unknown_words(config_class: type, words: list[str], other_entry: tuple[str, type] | None) -> list[str]:
    """A complaint about each flag or `key=value` that there is not; a word without either may belong to one before."""
    complaints = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if not word.startswith("-") and "=" not in word and complaints:
            continue
        name, _, value = word.partition("=")
        value = value or ("" if following.startswith("-") or "=" in following else following)
        key = nearest_key(name, knobs(config_class))
        remedy = "--help lists all flags and knobs"
        if other_entry and name in [knob.flag for knob in knobs(other_entry[1]).values()]:
            remedy = f"it is a flag of {other_entry[0]}"
        elif key:
            flag = knobs(config_class)[key].flag
            remedy = f"write {flag} {value}".rstrip() if flag else f"write {key}={value or 'VALUE'}"
        complaints.append(f"command line: {word}: unknown; {remedy}")
    return complaints


def argument_parser(config_class: type, description: str) -> argparse.ArgumentParser:
    """A parser of --config and of every knob's flag. Each gives a list of all the times it is used."""
    parser = Parser(
        description=description,
        epilog=describe(config_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--config FILE] [flags] [section.key=value ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", default=[], help="YAML recipe, holding knobs listed below")
    for key, knob in knobs(config_class).items():
        if not knob.flag:
            continue
        options = {"dest": key, "default": [], "help": knob.meaning}
        if knob.hint is bool:
            options |= {"action": "append_const", "const": CommandLineText("true")}
        else:
            options |= {"action": "append", "metavar": "VALUE", "type": CommandLineText}
        if typing.get_origin(knob.hint) is tuple:
            options["nargs"] = "+"
        parser.add_argument(knob.flag, **options)
    return parser


class Parser(argparse.ArgumentParser):
    def print_help(self, file: typing.TextIO | None = None) -> None:
        """Once, and not on each rank."""
        if os.environ.get("RANK", "0") == "0":
            super().print_help(file)

    def error(self, message: str) -> typing.NoReturn:
        """Complain as everything else does, and not with the usage and exit() on each rank."""
        raise UserError(f"command line: {message}; --help shows how")


def read_yaml(path: str, seen: tuple[str, ...] = ()) -> Values:
    """The values of a YAML file and its bases, each with the file it came from. `seen`: the files it is a base of."""
    if os.path.abspath(path) in seen:
        raise UserError(f"{path}: base: leads back to this file; remove one of the base: lines")
    sections = load_yaml(path)
    if sections is None:  # an empty file
        return {}
    if not isinstance(sections, dict):
        raise UserError(f"{path}: holds a {type(sections).__name__}, not sections of keys")
    values = {}
    base = sections.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base = {base!r}: must be the name of one YAML file")
        values = read_yaml(os.path.join(os.path.dirname(path), base), (*seen, os.path.abspath(path)))
    for section, keys in sections.items():
        if "." in str(section):
            first, _, rest = section.partition(".")
            raise UserError(f"{path}: {section} = {yaml_text(keys)}: must be a section: `{first}: {{{rest}: …}}`")
        if not isinstance(keys, dict) or not keys:
            values[str(section)] = (keys, path)  # `build` complains, and knows what it may have meant
            continue
        for key, value in keys.items():
            values[f"{section}.{key}"] = (value, path)
    return values


def load_yaml(path: str) -> object:
    """What a YAML file holds. Raises: UserError if it cannot be read, or is none."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST_YAML + 1)
        if len(text) > LARGEST_YAML:
            raise UserError(f"{path}: has more than {LARGEST_YAML:,} characters, so it is no config; give another")
        return yaml.load(text, Loader=StrictLoader)
    except UnicodeDecodeError as error:
        remedy = "give a YAML file; a checkpoint goes after --weights or --resume"
        raise UserError(f"{path}: not a config: no text in UTF-8 (at byte {error.start}); {remedy}") from error
    except OSError as error:
        reason = error.strerror or first_line(error)  # strerror leaves out the path
        raise UserError(f"{path}: cannot read this config ({reason}); configs/ holds some to start from") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path}: not a config: {problem}{line}") from error


def build(
    config_class: type[Config], values: Values, complaints: Iterable[str] = (),
    other_entry: tuple[str, type] | None = None, most: int = MOST_COMPLAINTS,
) -> Config:  # fmt: skip
    """The config with these values over its defaults, or a UserError with a line for each thing wrong.

    Args:
        complaints: what is wrong already.
        most: things wrong that the error lists.
    """
    known = knobs(config_class)
    wrong = list(complaints)
    config = config_class()
    for key, (value, origin) in values.items():
        given = f"{origin}: {printable(key)} = {printable(yaml_text(value), most=60)}"
        if key not in known:
            wrong.append(f"{given}: {hint(key, known, values, origin, other_entry)}")
            continue
        try:
            converted = convert(value, known[key].hint)
            check_limits(converted, known[key])
        except ValueError as error:
            wrong.append(f"{given}: {error} ({known[key].meaning})")
        else:
            config = with_value(config, key, converted)
    if not wrong:  # each value alone is right, but they may not go together
        for key, problem in config.problems():
            _, origin = values.get(key, (None, "default"))
            wrong.append(f"{origin}: {key} = {yaml_text(operator.attrgetter(key)(config))}: {problem}")
    if len(wrong) > most:
        wrong[most:] = [f"and {len(wrong) - most} more"]
    if wrong:
        raise UserError("\n".join(wrong))
    return config


def hint(key: str, known: Iterable[str], values: Values, origin: str, other_entry: tuple[str, type] | None) -> str:
    """What a key that names no knob may have meant. Raises: UserError if its file is a config of the other entry."""
    if other_entry:
        name, other_class = other_entry
        keys_of_file = [other for other, (_, file) in values.items() if file == origin]
        if origin != "command line" and set(keys_of_file) <= knobs(other_class).keys():
            raise UserError(f"{origin}: this is a config of {name} ({key}); run that, or give another --config")
        if key in knobs(other_class):
            return f"unknown key; it is a knob of {name}"
    near = nearest_key(key, known)
    if "." not in key:  # of a YAML file, where a section should be
        if near is None or key in {name.split(".")[0] for name in known}:
            return f"must be a section, as in `{key}: {{key: value}}`"
        section, name = near.split(".")
        return f"must stand in a section: write `{section}: {{{name}: …}}`"
    return f"unknown key; nearest valid name: {near}" if near else "unknown key; --help lists all"


def with_value(config: Config, key: str, value: object) -> Config:
    """The config with another value of the knob `section.key`."""
    section, name = key.split(".")
    options = dataclasses.replace(getattr(config, section), **{name: value})
    return dataclasses.replace(config, **{section: options})


def from_dict(config_class: type[Config], saved: dict, origin: str) -> Config:
    """The config that `to_dict` turned into `saved`.

    Raises: UserError with `origin` for the first things wrong, each on a line: a file may hold any number of them.
    """
    refuse_odd_values(saved, origin)
    values = {}
    for section, keys in saved.items():
        for key, value in keys.items():
            values[f"{section}.{key}"] = (value, origin)
    return build(config_class, values, most=MOST_COMPLAINTS_OF_A_FILE)


def to_dict(config: object) -> dict:
    """Nested plain containers: what a checkpoint and a YAML file can hold."""
    sections = dataclasses.asdict(config)
    for keys in sections.values():
        for key, value in keys.items():
            if isinstance(value, tuple):
                keys[key] = list(value)
    return sections


def to_yaml(config: dict) -> str:
    """What `to_dict` gave as YAML that `read_yaml` reads back."""
    return yaml.dump(config, Dumper=StrictDumper, sort_keys=False)


def describe(config_class: type) -> str:
    """Every knob, two lines each, for `--help`."""
    lines = ["every knob, as section.key=value on the command line or `section: {key: value}` in YAML:"]
    for key, knob in knobs(config_class).items():
        lines.append(f"  {key} = {yaml_text(knob.default)}")
        details = "; ".join(text for text in (knob.unit, limits_text(knob), knob.flag) if text)
        lines.append(f"      {knob.meaning} ({details})" if details else f"      {knob.meaning}")
    return "\n".join(lines)
