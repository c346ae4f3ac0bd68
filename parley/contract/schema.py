"""The JSON schemas that `response_format` takes: those whose every keyword is enforced while the answer is decoded.

A grammar engine that meets a schema which it cannot compile may end the process in which everybody's answers are made,
and one that skips a keyword breaks a promise without a word. So a schema is checked here, before it goes anywhere: a
subset of JSON Schema 2020-12, wide enough for what pydantic and OpenAI's strict mode write.
"""

from collections.abc import Iterator
from typing import Any

TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
ANNOTATIONS = frozenset({"title", "description", "default", "examples", "$schema", "$id", "$comment"})
DEFINITIONS = frozenset({"$defs", "definitions"})
RANGES = {
    "minItems": ("maxItems", "array"),
    "minLength": ("maxLength", "string"),
    "minimum": ("maximum", "integer"),
}
"""Lower bounds, the upper bound of each, and the one type for which both are enforced."""

KEYWORDS = (
    frozenset({"type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref"})
    | DEFINITIONS
    | ANNOTATIONS
    | {name for low, (high, _) in RANGES.items() for name in (low, high)}
)

BESIDE: dict[str, set[str]] = {"$ref": set(), "anyOf": set(), "enum": {"type"}, "const": {"type"}}
"""Keywords that a grammar is made from alone, and what may stand beside each."""

LARGEST_COUNT = 1000
"""Longest string or array that a schema may count: the grammar grows with it."""

LARGEST_LENGTHS = 4 * LARGEST_COUNT
"""Most characters that the strings of a schema may count together, those of one length once: each length takes the
grammar engine tenths of a second, in which nobody's answer goes on."""

LARGEST_ITEMS = 10 * LARGEST_COUNT
"""Most items that the arrays of a schema may count together. 200 optional arrays of up to 1,000 took the grammar engine
32 seconds, 10 take a tenth of one."""

LARGEST_INTEGER = 2**53
"""Beyond it JSON numbers are not exact (RFC 8259, section 6)."""

_PYTHON: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class SchemaFault(ValueError):
    """A schema that cannot be enforced; the message names the place by its path, and holds no more of the schema."""


def check_schema(root: Any) -> None:
    """Raises `SchemaFault` unless every part of the schema can be enforced."""
    for path, node in _nodes(root):
        _check_node(path, node)
    _check_references(root)
    lengths = {(node.get("minLength", 0), node.get("maxLength", 0)) for _, node in _nodes(root)}
    if sum(map(max, lengths)) > LARGEST_LENGTHS:
        raise SchemaFault(f"schema: minLength and maxLength are together more than {LARGEST_LENGTHS}")
    if sum(max(node.get("minItems", 0), node.get("maxItems", 0)) for _, node in _nodes(root)) > LARGEST_ITEMS:
        raise SchemaFault(f"schema: minItems and maxItems are together more than {LARGEST_ITEMS}")


def _nodes(root: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with its path."""
    pending = [("schema", root)]
    while pending:
        path, node = pending.pop()
        if not isinstance(node, dict):
            raise SchemaFault(f"{path}: a schema is an object")
        yield path, node
        pending += _children(path, node)


def _children(path: str, node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword in ("properties", *DEFINITIONS):
        for index, child in enumerate(node.get(keyword, {}).values()):
            yield f"{path}.{keyword}[{index}]", child
    for index, child in enumerate(node.get("anyOf", [])):
        yield f"{path}.anyOf[{index}]", child
    if "items" in node:
        yield f"{path}.items", node["items"]
    if not isinstance(node.get("additionalProperties", True), bool):
        yield f"{path}.additionalProperties", node["additionalProperties"]


def _check_node(path: str, node: dict[str, Any]) -> None:
    unknown = node.keys() - KEYWORDS
    if unknown:
        name = min(unknown)
        raise SchemaFault(f"{path}: {name if name.isalnum() and len(name) < 30 else 'a keyword'} cannot be enforced")
    _check_alone(path, node)
    _check_shapes(path, node)
    kinds = _kinds(path, node)
    _check_values(path, node, kinds)
    for low, (high, kind) in RANGES.items():
        if low in node or high in node:
            bounds = [node[name] for name in (low, high) if name in node]
            _check_range(f"{path}: {low} and {high}", bounds, kinds == [kind], kind)


def _check_alone(path: str, node: dict[str, Any]) -> None:
    """What stands beside a reference, a choice or a list of values would not be enforced."""
    for keyword, beside in BESIDE.items():
        if keyword in node and node.keys() - ANNOTATIONS - DEFINITIONS - {keyword, *beside}:
            raise SchemaFault(f"{path}: what stands beside {keyword} cannot be enforced")


def _check_shapes(path: str, node: dict[str, Any]) -> None:
    """Keywords hold what they must, and nothing is empty that would allow no value at all."""
    for keyword in ("properties", *DEFINITIONS):
        if not isinstance(node.get(keyword, {}), dict):
            raise SchemaFault(f"{path}: {keyword} is an object")
    for keyword in ("enum", "anyOf"):
        if keyword in node and not (isinstance(node[keyword], list) and node[keyword]):
            raise SchemaFault(f"{path}: {keyword} is a list with at least one item")
    names = node.get("required", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SchemaFault(f"{path}: required is a list of names")
    if not set(names) <= node.get("properties", {}).keys():
        raise SchemaFault(f"{path}: required names something that is not among the properties")


def _kinds(path: str, node: dict[str, Any]) -> list[str]:
    given = node.get("type", sorted(TYPES))
    kinds = given if isinstance(given, list) else [given]
    if not kinds or not all(isinstance(kind, str) and kind in TYPES for kind in kinds):
        raise SchemaFault(f"{path}: type is one or more of {', '.join(sorted(TYPES))}")
    return kinds


def _check_values(path: str, node: dict[str, Any], kinds: list[str]) -> None:
    values = node.get("enum", [node["const"]] if "const" in node else [])
    if not all(any(_is(kind, value) for kind in kinds) for value in values):
        raise SchemaFault(f"{path}: a value is not of the given type")


def _is(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _PYTHON[kind])


def _check_range(what: str, bounds: list[Any], fits: bool, kind: str) -> None:
    if not fits:
        raise SchemaFault(f"{what} can be enforced for type {kind} only")
    largest, smallest = (LARGEST_INTEGER, -LARGEST_INTEGER) if kind == "integer" else (LARGEST_COUNT, 0)
    for bound in bounds:
        if not (type(bound) is int and smallest <= bound <= largest):
            raise SchemaFault(f"{what} are integers from {smallest} to {largest}")
    if bounds != sorted(bounds):
        raise SchemaFault(f"{what} leave nothing between them")


def _check_references(root: Any) -> None:
    """No way leads from a schema back to itself before anything of the answer is written. Each is entered once."""
    done: set[int] = set()
    for path, node in _nodes(root):
        way = [] if id(node) in done else [(id(node), iter(_same_place(path, node, root)))]
        inside = {at for at, _ in way}
        while way:
            at, places = way[-1]
            place = next(places, None)
            if place is None:
                way.pop()
                inside.discard(at)
                done.add(at)
            elif id(place) in inside:
                raise SchemaFault(f"{path}: the reference leads back to itself")
            elif id(place) not in done:
                inside.add(id(place))
                way.append((id(place), iter(_same_place(path, place, root))))


def _same_place(path: str, node: dict[str, Any], root: Any) -> list[dict[str, Any]]:
    """The schemas that a value must meet at the very place where it must meet this one."""
    if "$ref" in node:
        return [_target(path, node["$ref"], root)]
    options = node.get("anyOf", [])
    return [option for option in options if isinstance(option, dict)] if isinstance(options, list) else []


def _target(path: str, reference: Any, root: Any) -> dict[str, Any]:
    """What `#`, `#/$defs/name` or `#/definitions/name` leads to."""
    target = root if reference == "#" else None
    match str(reference).split("/"):
        case ["#", ("$defs" | "definitions") as keyword, name] if isinstance(root.get(keyword), dict):
            target = root[keyword].get(name)
    if not isinstance(target, dict):
        raise SchemaFault(f"{path}: $ref leads to no schema of this document")
    return target
