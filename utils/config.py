"""YAML files and command lines into frozen dataclasses, every value checked and every complaint with its origin.

A config class has sections (dataclasses) of knobs (fields made by `configs.schema.knob`). A YAML file holds
`section: {key: value}` and at most one `base:`, a file relative to its own whose values it overrides.
"""

import argparse
import dataclasses
import functools
import math
import operator
import os
import re
import sys
import types
import typing
from collections.abc import Callable

import yaml

from utils.errors import UserError, nearest, printable
from utils.saved_config import first_lines, refuse_odd_values
from utils.strict_yaml import StrictDumper, StrictLoader

Values = dict[str, tuple[object, str]]  # "section.key" -> (value as read, where it was read)
Config = typing.TypeVar("Config")  # PretrainConfig or FinetuneConfig
OVERRIDE = re.compile(r"\w+(\.\w+)+=")  # begins a word of the command line such as schedule.epochs=30


@dataclasses.dataclass(frozen=True)
class Knob:
    """What is known of a knob: its type and default, and what `configs.schema.knob` says about it."""

    hint: typing.Any  # a type, or a union of a type and None
    default: object
    meaning: str
    unit: str
    low: float | None
    high: float | None
    above: float | None
    choices: tuple[str, ...] | None
    flag: str | None
    affects: str
    compared: bool


@functools.cache
def knobs(config_class: type) -> dict[str, Knob]:
    """Every knob of a config class, as `section.key`."""
    by_key = {}
    for section in dataclasses.fields(config_class):
        hints = typing.get_type_hints(type(section.default))
        for field in dataclasses.fields(section.default):
            knob = Knob(hint=hints[field.name], default=field.default, **field.metadata)
            by_key[f"{section.name}.{field.name}"] = knob
    return by_key


def keys_affecting(config_class: type, *effects: str) -> frozenset[str]:
    """The knobs, as `section.key`, whose `affects` is one of these: "weights", "score" or "nothing"."""
    return frozenset(key for key, knob in knobs(config_class).items() if knob.affects in effects)


def parse_command_line(config_class: type[Config], argv: list[str], description: str) -> Config:
    """The config that a command line asks for: defaults, then --config and its bases, then flags and overrides.

    Args:
        config_class: `PretrainConfig` or `FinetuneConfig`.
        argv: the words after the program's name.
        description: first line of `--help`.
    Raises: UserError naming the origin, key and value of everything wrong.
    """
    overrides = [word for word in argv if OVERRIDE.match(word)]
    other_words = [word for word in argv if not OVERRIDE.match(word)]
    arguments = vars(argument_parser(config_class, description).parse_args(other_words))
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
    return build(config_class, values)


def argument_parser(config_class: type, description: str) -> argparse.ArgumentParser:
    """A parser of --config and of every knob's flag. Each gives a list of all the times it is used."""
    parser = argparse.ArgumentParser(
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


class CommandLineText(str):
    """A value typed in a shell: taken as it is where a knob is text, else read as YAML."""

    def read(self) -> object:
        try:
            return yaml.load(self, Loader=StrictLoader)
        except (yaml.YAMLError, RecursionError):
            return str(self)


def read_yaml(path: str, seen: tuple[str, ...] = ()) -> Values:
    """The values of a YAML file and its bases, each with the file it came from. `seen`: the files it is a base of."""
    if os.path.abspath(path) in seen:
        raise UserError(f"{path}: base: leads back to this file; remove one of the base: lines")
    try:
        with open(path, encoding="utf-8") as file:
            sections = yaml.load(file, Loader=StrictLoader)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read this config ({error}); configs/ holds some to start from") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not a config: {error}") from error
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
        if not isinstance(keys, dict) or not keys:
            given = f"{section} = {yaml_text(keys)}"
            raise UserError(f"{path}: {given}: must be a section, as in `{section}: {{key: value}}`")
        for key, value in keys.items():
            values[f"{section}.{key}"] = (value, path)
    return values


def build(config_class: type[Config], values: Values) -> Config:
    """The config with these values over its defaults, or a UserError with one line for each thing wrong."""
    known = knobs(config_class)
    wrong = []
    config = config_class()
    for key, (value, origin) in values.items():
        given = f"{origin}: {printable(key)} = {printable(yaml_text(value))}"
        if key not in known:
            wrong.append(f"{given}: unknown key; nearest valid name: {nearest(key, known)}")
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
    if wrong:
        raise UserError("\n".join(wrong))
    return config


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
    try:
        return build(config_class, values)
    except UserError as error:
        raise UserError(first_lines(str(error), origin)) from error


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


def convert(value: object, hint: typing.Any) -> object:
    """`value` as the type that a knob has. Raises: ValueError that says what it must be."""
    alternatives = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind, may_be_null = alternatives[0], type(None) in alternatives
    if isinstance(value, CommandLineText) and (kind is not str or value in ("null", "~")):
        value = value.read()
    if value is None and may_be_null:
        return None
    if typing.get_origin(kind) is tuple:
        return convert_members(value, typing.get_args(kind))
    is_bool = isinstance(value, bool)
    if kind is float and isinstance(value, int) and not is_bool and abs(value) <= sys.float_info.max:
        return float(value)
    if not isinstance(value, kind) or (is_bool and kind is int):  # True is an int to Python
        names = {str: "text (quoted if like a number)", int: "a whole number", float: "a number", bool: "true or false"}
        or_null = " or null" if may_be_null else ""
        raise ValueError(f"must be {names[kind]}{or_null}")
    if kind is float and not math.isfinite(value):
        raise ValueError("must be a finite number")
    return kind(value)


def convert_members(value: object, members: tuple) -> tuple:
    """A list, or a single value, as a tuple. `members`: the types of its members, or one type and Ellipsis."""
    items = value if isinstance(value, list | tuple) else [value]
    if Ellipsis not in members and len(items) != len(members):
        raise ValueError(f"must be a list of {len(members)} numbers")
    if not items:
        raise ValueError("must be a list of at least one number")
    return tuple(convert(item, members[0]) for item in items)


def check_limits(value: object, knob: Knob) -> None:
    """Raise ValueError if a number, or a member of a tuple, lies outside a knob's limits."""
    if value is None:
        return
    items = value if isinstance(value, tuple) else (value,)
    for item in items:
        if knob.choices and item not in knob.choices:
            raise ValueError(f"must be {limits_text(knob)}; nearest: {nearest(item, knob.choices)}")
        for _, holds, limit in numeric_limits(knob):
            if not holds(item, limit):
                raise ValueError(f"must be {limits_text(knob)}")


def numeric_limits(knob: Knob) -> list[tuple[str, Callable[[float, float], bool], float]]:
    """The limits that a knob has: (sign, comparison, limit)."""
    limits = [("≥", operator.ge, knob.low), (">", operator.gt, knob.above), ("≤", operator.le, knob.high)]
    return [(sign, holds, limit) for sign, holds, limit in limits if limit is not None]


def limits_text(knob: Knob) -> str:
    if knob.choices:
        return "one of " + ", ".join(knob.choices)
    return " and ".join(f"{sign} {limit:g}" for sign, _, limit in numeric_limits(knob))


def yaml_text(value: object) -> str:
    """A value as YAML would write it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(yaml_text(item) for item in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def describe(config_class: type) -> str:
    """Every knob, two lines each, for `--help`."""
    lines = ["every knob, as section.key=value on the command line or `section: {key: value}` in YAML:"]
    for key, knob in knobs(config_class).items():
        lines.append(f"  {key} = {yaml_text(knob.default)}")
        details = "; ".join(text for text in (knob.unit, limits_text(knob), knob.flag) if text)
        lines.append(f"      {knob.meaning} ({details})" if details else f"      {knob.meaning}")
    return "\n".join(lines)
