"""YAML files and command lines into frozen dataclasses, every value checked and every complaint with its origin.

A config class has sections (dataclasses) of knobs (fields made by `configs.schema.knob`). A YAML file holds
`section: {key: value}` and at most one `base:`, a file relative to its own whose values it overrides.
"""

import argparse
import copy
import dataclasses
import difflib
import functools
import math
import operator
import os
import re
import types
import typing

import yaml

from utils.errors import UserError

Values = dict[str, tuple[object, str]]  # "section.key" -> (value as read, where it was read)
OVERRIDE = re.compile(r"\w+(\.\w+)+=")
YAML_SCALARS = {  # nearly YAML 1.2's: in 1.1 `1e-3` is a string, `012` is 10, `1:30` is 90 and `no` is False
    "null": (r"~|null|", ["~", "n", ""]),
    "bool": (r"true|false", list("tf")),
    "int": (r"[-+]?(0|[1-9][0-9]{0,18})", list("-+0123456789")),
    "float": (r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?(?<=[0-9.])([eE][-+]?[0-9]+)?", list("-+.0123456789")),
}


class StrictLoader(yaml.SafeLoader):
    """YAML without surprises: no doubled key, no alias, no tag, and numbers as a reader expects them."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise yaml.constructor.ConstructorError(None, None, "aliases and tags are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                what = f"key {key.value!r} is given twice, or is not a name"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class StrictDumper(yaml.SafeDumper):
    """Writes what StrictLoader, and any other YAML reader, reads back as it was."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = copy.deepcopy(yaml.SafeDumper.yaml_implicit_resolvers)


for _tag, (_pattern, _first) in YAML_SCALARS.items():
    for _class in (StrictLoader, StrictDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def parse_command_line(config_class, argv: list[str], description: str):
    """The config that a command line asks for: defaults, then --config and its bases, then flags and overrides.

    Args:
        config_class: `PretrainConfig` or `FinetuneConfig`.
        argv: the words after the program's name.
        description: first line of `--help`.
    Raises: UserError naming the origin, key and value of everything wrong.
    """
    overrides = [word for word in argv if OVERRIDE.match(word)]
    parser = argparse.ArgumentParser(
        description=description, epilog=describe(config_class), formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--config FILE] [flags] [section.key=value ...]", allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--config", action="append", default=[], help="YAML recipe, holding knobs listed below")
    for key, knob in knobs(config_class).items():
        if knob.flag and knob.hint is bool:
            parser.add_argument(knob.flag, dest=key, action="append_const", const="true", help=knob.meaning)
        elif knob.flag:
            count = {"nargs": "+"} if typing.get_origin(knob.hint) is tuple else {}
            parser.add_argument(knob.flag, dest=key, metavar="VALUE", action="append", help=knob.meaning, **count)
    arguments = vars(parser.parse_args([word for word in argv if not OVERRIDE.match(word)]))
    files = arguments.pop("config")
    if len(files) > 1:
        raise UserError(f"command line: --config is given twice ({', '.join(files)}); a `base:` can join two")
    values = read_yaml(files[0]) if files else {}
    given = [word.partition("=")[::2] for word in overrides]
    given += [(key, text) for key, texts in arguments.items() for text in texts or ()]
    for key, text in given:
        if (key, "command line") in [(known, origin) for known, (_, origin) in values.items()]:
            raise UserError(f"command line: {key} is given twice; give it once")
        typed = CommandLineText(text) if isinstance(text, str) else [CommandLineText(word) for word in text]
        values[key] = (typed, "command line")
    return build(config_class, values)


class CommandLineText(str):
    """A value typed in a shell: text where text is due, else read as YAML."""

    def value(self):
        try:
            return yaml.load(self, Loader=StrictLoader)
        except (yaml.YAMLError, RecursionError):
            return str(self)


def read_yaml(path: str, seen: tuple[str, ...] = ()) -> Values:
    """The values of a YAML file and its bases, each with the file it came from."""
    if os.path.abspath(path) in seen:
        raise UserError(f"{path}: base: leads back to this file; remove one of the base: lines")
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=StrictLoader)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read this config ({error}); configs/ holds some to start from") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not a config: {error}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: holds a {type(content).__name__}, not sections of keys")
    content = content or {}
    values, base = {}, content.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base = {base!r}: must be the name of one YAML file")
        values = read_yaml(os.path.join(os.path.dirname(path), base), (*seen, os.path.abspath(path)))
    for section, keys in content.items():
        if not isinstance(keys, dict) or not keys:
            raise UserError(f"{path}: {section} = {show(keys)}: must be a section, as in `{section}: {{key: value}}`")
        values |= {f"{section}.{key}": (value, path) for key, value in keys.items()}
    return values


def build(config_class, values: Values):
    """The config with these values over its defaults, or a UserError with one line for each thing wrong."""
    known, wrong, converted = knobs(config_class), [], {}
    for key, (value, origin) in values.items():
        if key not in known:
            wrong.append(f"{origin}: {key} = {show(value)}: unknown key; nearest valid name: {nearest(key, known)}")
            continue
        try:
            converted[key] = convert(value, known[key].hint)
            check_limits(converted[key], known[key])
        except ValueError as error:
            wrong.append(f"{origin}: {key} = {show(value)}: {error} ({known[key].meaning})")
    if not wrong:
        config = config_class()
        for key, value in converted.items():
            section, name = key.split(".")
            changed = dataclasses.replace(getattr(config, section), **{name: value})
            config = dataclasses.replace(config, **{section: changed})
        for key, what in config.problems():
            value = show(operator.attrgetter(key)(config))
            wrong.append(f"{values.get(key, (None, 'default'))[1]}: {key} = {value}: {what}")
    if wrong:
        raise UserError("\n".join(wrong))
    return config


def from_dict(config_class, saved: dict, origin: str):
    """The config that `dataclasses.asdict` turned into `saved`."""
    values = {f"{section}.{key}": (value, origin) for section, keys in saved.items() for key, value in keys.items()}
    return build(config_class, values)


def to_dict(config) -> dict:
    """Nested plain containers: what a checkpoint and a YAML file can hold."""
    return {
        section: {key: list(value) if isinstance(value, tuple) else value for key, value in keys.items()}
        for section, keys in dataclasses.asdict(config).items()
    }


def to_yaml(config: dict) -> str:
    """What `to_dict` gave as YAML that `read_yaml` reads back."""
    return yaml.dump(config, Dumper=StrictDumper, sort_keys=False)


@functools.cache
def knobs(config_class) -> dict[str, types.SimpleNamespace]:
    """Every knob as `section.key`: its type (hint), its default, and what `configs.schema.knob` says of it."""
    found = {}
    for section in dataclasses.fields(config_class):
        hints = typing.get_type_hints(type(section.default))
        for field in dataclasses.fields(section.default):
            knob = types.SimpleNamespace(hint=hints[field.name], default=field.default, **field.metadata)
            found[f"{section.name}.{field.name}"] = knob
    return found


def keys_affecting(config_class, *effects: str) -> frozenset[str]:
    """The knobs, as `section.key`, whose `affects` is one of these: "weights", "score" or "nothing"."""
    return frozenset(key for key, knob in knobs(config_class).items() if knob.affects in effects)


def convert(value, hint):
    """`value` as the type a knob has. Raises ValueError saying what is due."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, CommandLineText):
        value = value if str in options and value not in ("null", "~") else value.value()
    if value is None and type(None) in options:
        return None
    kind = options[0]
    if typing.get_origin(kind) is tuple:
        members = typing.get_args(kind)
        items = value if isinstance(value, list | tuple) else [value]
        if Ellipsis not in members and len(items) != len(members):
            raise ValueError(f"must be a list of {len(members)} numbers")
        if not items:
            raise ValueError("must be a list of at least one number")
        return tuple(convert(item, members[0]) for item in items)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        if kind is float and not math.isfinite(value):
            raise ValueError("must be a finite number")
        return kind(value)
    due = {str: "text (quoted if like a number)", int: "a whole number", float: "a number", bool: "true or false"}
    raise ValueError(f"must be {due[kind]}" + (" or null" if type(None) in options else ""))


def check_limits(value, knob) -> None:
    """Raise ValueError if a number, or a member of a tuple, lies outside a knob's limits."""
    for item in () if value is None else value if isinstance(value, tuple) else (value,):
        if knob.choices and item not in knob.choices:
            raise ValueError(f"must be {limits_text(knob)}; nearest: {nearest(item, knob.choices)}")
        if not all(holds(item, limit) for _, holds, limit in numeric_limits(knob)):
            raise ValueError(f"must be {limits_text(knob)}")


def numeric_limits(knob) -> list:
    limits = (("≥", operator.ge, knob.low), (">", operator.gt, knob.above), ("≤", operator.le, knob.high))
    return [limit for limit in limits if limit[2] is not None]


def limits_text(knob) -> str:
    if knob.choices:
        return "one of " + ", ".join(knob.choices)
    return " and ".join(f"{sign} {limit:g}" for sign, _, limit in numeric_limits(knob))


def nearest(word, known) -> str:
    """The known name most like `word`: by its whole spelling, else by its last part."""
    close = difflib.get_close_matches(str(word), known, 1, 0.6)
    tails = {name.rsplit(".", 1)[-1]: name for name in known}
    close = close or [tails[tail] for tail in difflib.get_close_matches(str(word).rsplit(".", 1)[-1], tails, 1, 0.0)]
    return close[0] if close else ", ".join(known)


def show(value) -> str:
    """A value as YAML would write it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(show(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def describe(config_class) -> str:
    """Every knob, one line each, for `--help`."""
    lines = ["every knob, as section.key=value on the command line or `section: {key: value}` in YAML:"]
    for key, knob in knobs(config_class).items():
        about = [text for text in (knob.unit, limits_text(knob), knob.flag) if text]
        lines.append(f"  {key} = {show(knob.default)}")
        lines.append(f"      {knob.meaning}" + (f" ({'; '.join(about)})" if about else ""))
    return "\n".join(lines)
