"""YAML that is read as a reader expects, and from which nothing but plain values can come."""

import copy
import re
import typing

import yaml


class StrictLoader(yaml.SafeLoader):
    """YAML without surprises: no doubled key, no alias, no tag, and numbers as a reader expects them."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise yaml.constructor.ConstructorError(None, None, "aliases and tags are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in keys:
                problem = f"key {key.value!r} is given twice, or is not a name"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


class StrictDumper(yaml.SafeDumper):
    """Writes what StrictLoader, and any other YAML reader, reads back as it was."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = copy.deepcopy(yaml.SafeDumper.yaml_implicit_resolvers)


def recognise_plain_scalars(yaml_class: type[StrictLoader] | type[StrictDumper]) -> None:
    """Have a loader or dumper take unquoted scalars nearly as YAML 1.2 does.

    PyYAML follows YAML 1.1, where `1e-3` is a string, `012` is 10, `1:30` is 90 and `no` is False.
    """
    patterns = {  # type -> (pattern, characters that it may begin with)
        "null": (r"~|null|", ["~", "n", ""]),
        "bool": (r"true|false", list("tf")),
        "int": (r"[-+]?(0|[1-9][0-9]{0,18})", list("-+0123456789")),
        "float": (r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?(?<=[0-9.])([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    }
    for name, (pattern, first_characters) in patterns.items():
        yaml_class.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$"), first_characters)


recognise_plain_scalars(StrictLoader)
recognise_plain_scalars(StrictDumper)
