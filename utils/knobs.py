"""What a knob is, what it may be, and how a value that was typed becomes one."""

import dataclasses
import functools
import math
import operator
import sys
import types
import typing
from collections.abc import Callable

import yaml

from utils.hints import nearest_choice
from utils.strict_yaml import StrictLoader


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


class CommandLineText(str):
    """A value typed in a shell: taken as it is where a knob is text, else read as YAML."""

    def read(self) -> object:
        try:
            return yaml.load(self, Loader=StrictLoader)
        except (yaml.YAMLError, RecursionError):
            return str(self)


def convert(value: object, hint: typing.Any) -> object:
    """`value` as the type that a knob has. Raises: ValueError that says what it must be."""
    alternatives = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind, may_be_null = alternatives[0], type(None) in alternatives
    if isinstance(value, CommandLineText) and (kind is not str or value in ("null", "~")):
        value = value.read()
    if value is None and may_be_null:
        return None
    if isinstance(value, list | tuple):  # of a number or several, such as filter.radius, it is several
        kind = next((one for one in alternatives if typing.get_origin(one) is tuple), kind)
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
            raise ValueError(f"must be {limits_text(knob)}; nearest: {nearest_choice(item, knob.choices)}")
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
