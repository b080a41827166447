"""Safe YAML within bounds: a key given twice, a scalar that is not what its tag says, and bombs are refused."""

from __future__ import annotations

from typing import Any

import yaml

from vitrail.core.config.plain_data import DEEPEST, MOST_VALUES
from vitrail.errors import shortened

LONGEST_NUMBER = 64  # characters; PyYAML takes ever longer over longer ones
MERGE = "tag:yaml.org,2002:merge"
TAGS = "tag:yaml.org,2002:"
NUMBERS = (f"{TAGS}int", f"{TAGS}float")
TOO_MANY = f"more than {MOST_VALUES} values; long lists belong in files of their own"
TOO_DEEP = f"more than {DEEPEST} tables and lists within each other"


class StrictYaml(yaml.SafeLoader):
    """A loader for ``yaml.load``; what it refuses, it refuses by a ``MarkedYAMLError`` with the place."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, as long as there are few and not too deep."""
        self._depth += 1
        self._count += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._depth > DEEPEST + 1:
            raise _error(TOO_DEEP, mark)
        if self._count > MOST_VALUES:
            raise _error(TOO_MANY, mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_document(self, node: yaml.Node) -> Any:
        """The data, if what its aliases stand for is within bounds, too."""
        _measure(node, {})
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; of a scalar that is none of its tag's, PyYAML tells in exceptions of many kinds."""
        if node.tag in NUMBERS and isinstance(node, yaml.ScalarNode) and len(node.value) > LONGEST_NUMBER:
            raise _error(
                f"a number has {LONGEST_NUMBER} characters at most, this one {len(node.value)}", node.start_mark
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            shown = repr(shortened(node.value, 60)) if isinstance(node, yaml.ScalarNode) else "this"
            raise _error(f"{shown} is no {node.tag.removeprefix(TAGS)}", node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A table, no key of which is given twice."""
        seen = set()
        for key, _ in node.value:
            name = None if key.tag == MERGE else self.construct_object(key, deep=True)
            if key.tag == MERGE or isinstance(name, (list, dict, set)):  # which cannot be a key, as is told later
                continue
            if name in seen:
                raise _error(f"key {shortened(str(name), 60)!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node stands for and how deep it is, each alias written out.

    Args:
        node: Of a document.
        known: Those that are done, by identity; None for those in work.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1, 0
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise _error("an alias within what it stands for", node.start_mark)
        return found
    known[id(node)] = None
    mapping = isinstance(node, yaml.MappingNode)
    parts = [part for pair in node.value for part in pair] if mapping else node.value
    sizes = [_measure(part, known) for part in parts]
    count, depth = 1 + sum(size for size, _ in sizes), 1 + max((below for _, below in sizes), default=0)
    if count > MOST_VALUES or depth > DEEPEST:
        raise _error(f"with its aliases written out, {TOO_MANY if count > MOST_VALUES else TOO_DEEP}", node.start_mark)
    known[id(node)] = count, depth
    return count, depth
