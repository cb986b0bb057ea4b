"""YAML of settings: plain values alone, each key once, and bounded, so that no file takes long or much memory.

A few lines of aliases can stand for billions of values ("billion laughs"), and a few hundred thousand brackets exhaust
the stack; both are refused while they are read. Numbers are those of YAML 1.2: `1e-5` is one, `1:30` and `010` are
texts.
"""

import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from actors.errors import UsageError

LARGEST = 1 << 20
"""Bytes of a configuration."""
DEEPEST = 32  # sections and lists in each other
MOST_VALUES = 10_000
"""Values of a configuration, those behind aliases counted each time."""


_ODD_INDENT = re.compile("(?m)^ *([\u00a0\u2000-\u200b\u202f\u3000])[^\n:]*:")
"""A setting that web pages and editors have indented with spaces that YAML does not know."""


class YamlError(ValueError):
    """A text is no YAML, or exceeds a limit; `place` says where, as `line 1, column 2: `, if that is known."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


def read_yaml(path: Path) -> Any:
    """Read a file. Raises YamlError, OSError, and UnicodeDecodeError."""
    # A shell's `<(...)` is a pipe too, below /dev.
    if stat.S_ISFIFO(path.stat().st_mode) and path.parts[1:2] not in (("dev",), ("proc",)):
        raise YamlError("it is a pipe, which may never be written to; give a file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise YamlError(f"it has more than {LARGEST:,} bytes, the most of a configuration")
    text = content.decode("utf-8")
    if (found := _ODD_INDENT.search(text)) is not None:
        place = f"line {text.count(chr(10), 0, found.start()) + 1}: "
        raise YamlError(
            f"the line begins with the character U+{ord(found[1]):04X}, which only looks like a space", place
        )
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """Read a text. Raises YamlError."""
    try:
        return yaml.load(text, BoundedLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(error.problem or error.context or "", place) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        what = f"the special character U+{ord(text[error.position]):04X} is not allowed"
        raise YamlError(what, f"line {line}, column {column}: ") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # also a number or date that Python refuses
        raise YamlError(" ".join(str(error).split()).partition("; use sys.")[0]) from None


class BoundedLoader(yaml.SafeLoader):
    """Safe YAML within the limits, that refuses a key written twice in one mapping; PyYAML would keep the last."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # values of a finished node, by its id; nodes live as long as the loader

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, or find the one that an alias means, and count its values."""
        event = self.peek_event()
        self._depth += 1
        if self._depth > DEEPEST:
            raise _limit(f"more than {DEEPEST} levels in each other", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = 1 + sum(self._sizes[id(each)] for each in _children(node))
        elif id(node) not in self._sizes:
            raise _limit("an alias that means what it stands in", event)
        if self._sizes[id(node)] > MOST_VALUES:
            raise _limit(f"more than {MOST_VALUES:,} values, those behind aliases counted each time", event)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping. Raises ConstructorError for a key that is there twice."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key_node.value}` is written twice in one section", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(
    r"^[-+]?([0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
_INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

BoundedLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag not in _NUMBERS]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
BoundedLoader.add_implicit_resolver(_NUMBERS[0], _INTEGER, list("-+0123456789"))
BoundedLoader.add_implicit_resolver(_NUMBERS[1], _FLOAT, list("-+.0123456789"))


class Dumper(yaml.SafeDumper):
    """Writes what `BoundedLoader` reads back: texts like `1e5` in quotes."""


Dumper.add_implicit_resolver(_NUMBERS[1], _FLOAT, list("-+.0123456789"))


def dump(value: Any, **options: Any) -> str:
    """Write YAML that `parse_yaml` reads back to an equal value."""
    return str(yaml.dump(value, Dumper=Dumper, allow_unicode=True, **options))


def _limit(problem: str, event: Any) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, problem, event.start_mark)


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def quoted(text: str) -> str:
    """Quote text so that YAML reads it back unchanged."""
    return f"'{text.replace(chr(39), chr(39) * 2)}'"


def leaves(tree: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of a tree of sections; an empty section is a value."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{above}.{key}" if above else str(key))
    else:
        yield above, tree


def read_recorded(path: Path) -> dict[str, Any]:
    """Read the configuration that a run wrote. Raises UsageError if it is damaged."""
    try:
        tree = read_yaml(path)
    except (YamlError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; a run wrote this file: restore it from a copy") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} holds no settings; a run wrote this file: restore it from a copy")
    return tree


def no_texts(tree: Any) -> list[tuple[str, str]]:
    """Return dotted keys and values of texts that no file can hold: they have half a character, a lone surrogate."""
    return [(key, value) for key, value in leaves(tree) if isinstance(value, str) and _HALF.search(value)]


_HALF = re.compile("[\ud800-\udfff]")
