"""Safe YAML within bounds: refuses duplicate keys, scalars that do not match their tag, and alias bombs."""

from __future__ import annotations

from typing import Any

import yaml

from vitrail.core.config.plain_data import DEEPEST, MOST_VALUES
from vitrail.errors import shortened

LONGEST_NUMBER = 64  # characters; PyYAML's time grows faster than the length
MERGE = "tag:yaml.org,2002:merge"
TAGS = "tag:yaml.org,2002:"
NUMBERS = (f"{TAGS}int", f"{TAGS}float")
TOO_MANY = f"more than {MOST_VALUES} values; long lists belong in files of their own"
TOO_DEEP = f"more than {DEEPEST} tables and lists within each other"


class StrictYaml(yaml.SafeLoader):
    """A loader for ``yaml.load`` that refuses by a ``MarkedYAMLError`` with the place."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node.

        Raises:
            yaml.MarkedYAMLError: If nodes are too many or nested too deep.
        """
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
        """Construct the data, if it is within bounds with its aliases expanded."""
        _measure(node, {})
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value.

        Raises:
            yaml.MarkedYAMLError: If a scalar does not match its tag, for which PyYAML raises exceptions of many kinds.
        """
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
        """Construct a table.

        Raises:
            yaml.MarkedYAMLError: If a key is given twice.
        """
        seen = set()
        for key, _ in node.value:
            name = None if key.tag == MERGE else self.construct_object(key, deep=True)
            if key.tag == MERGE or isinstance(name, (list, dict, set)):  # unhashable; reported later
                continue
            if name in seen:
                raise _error(f"key {shortened(str(name), 60)!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return the number of values under a node and its depth, with aliases expanded.

    Args:
        node: A node of a document.
        known: Results by node identity; None for nodes that are being measured.
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
