"""YAML as people write settings: safe, of bounded size, with numbers as YAML 1.2 has them (1e-3 is one)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from proxscore.config.files import check_regular
from proxscore.config.plain_values import MAX_VALUES
from proxscore.config.section import ConfigError

MAX_BYTES = 2**17  # of a file; what takes longest to read takes seconds
_EXPONENT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_FLOAT = "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, and aliases that stand for more than ``MAX_VALUES`` values, or for themselves."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _expanded(node, {}) > MAX_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MAX_VALUES:,} values")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts text that reads as a number into quotes, and writes out what occurs twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """A YAML text as plain values, none of them shared between two places.

    Raises:
        ValueError: it is none; says why, in one line.
    """
    try:
        return _unshared(yaml.load(text, Loader=_Loader))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # beside YAMLError, whatever constructors of numbers and dates raise
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def dump_yaml(tree: Any) -> str:
    """Plain values as a YAML text, which :func:`parse_yaml` reads back to equal ones."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: Path) -> Any:
    """A YAML file as plain values.

    Raises:
        ConfigError: it cannot be read, is no YAML, or too large; names the file.
    """
    where = f"configuration file {path}"
    try:
        check_regular(path, where)
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError(f"{where}: has {size:,} bytes; at most {MAX_BYTES:,} are read")
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}") from error
    except ConfigError:
        raise
    except ValueError as error:  # a path with a null character
        raise ConfigError(f"{where}: {error}") from error
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except ValueError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, with every alias written out; infinite for one that holds itself."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MAX_VALUES + 1  # until it is known: only its own inside meets it
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]


def _unshared(value: Any) -> Any:
    """A copy in which an alias is a value of its own: an override of one place changes no other."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unshared(inner) for inner in value]
    return value
