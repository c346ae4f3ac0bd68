"""JSON schemas as grammars: what `parley.contract.schema` lets through, in the EBNF that grammar engines read.

Between the tokens of the JSON there is one space or none. XGrammar's own translation allows any white space there, and
a small model puts line breaks until its limit. Numbers have a bounded length for the same reason. What is written by
such a grammar meets the schema; not everything that meets the schema can be written.

The XGrammar of GenAI 2026.4 reads two things wrongly, which are avoided here: digits in a group that may be missing,
as in `"[" (digits ("," digits)*)? "]"`, and digits after a character beyond ASCII within one string.
"""

import json
import re
from typing import Any

from parley.contract.schema import TYPES, check_schema

_LEXICON = r"""
comma ::= "," " "?
colon ::= ":" " "?
hex ::= [0-9a-fA-F]
char ::= [^"\\\x00-\x1f] | "\\" ["\\/bfnrt] | "\\u" [0-9a-cefA-CEF] hex hex hex
string ::= "\"" char* "\""
integer ::= "-"? ("0" | [1-9] [0-9]{0,14})
number ::= integer ("." [0-9]{1,15})? ([eE] [+-]? [0-9]{1,2})?
boolean ::= "true" | "false"
null ::= "null"
"""


def grammar(schema: dict[str, Any]) -> str:
    """The grammar of a schema; its start is the rule `root`. Raises `SchemaFault` for what cannot be enforced."""
    check_schema(schema)
    return _Grammar(schema).text()


class _Grammar:
    """Rules by the place of the schema that they are made from, so that a reference back to a place ends."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._names: dict[int, str] = {}
        self._rules: dict[str, str] = {}
        self._parts: dict[str, str] = {}

    def text(self) -> str:
        start = self._rule(self._schema)
        parts = {name: body for body, name in self._parts.items()}
        rules = [f"{name} ::= {body}" for name, body in {**self._rules, **parts}.items()]
        return "\n".join([f"root ::= {start}", *rules, _LEXICON])

    def _rule(self, node: dict[str, Any]) -> str:
        """The name of the rule for a schema."""
        if id(node) not in self._names:
            name = self._names[id(node)] = f"s{len(self._names)}"
            self._rules[name] = self._body(node)
        return self._names[id(node)]

    def _part(self, body: str) -> str:
        """The name of a rule with this body; parts that are alike are one, as each costs the engine time."""
        return self._parts.setdefault(body, f"p{len(self._parts)}")

    def _body(self, node: dict[str, Any]) -> str:
        if "$ref" in node:
            return self._rule(self._target(node["$ref"]))
        if "anyOf" in node:
            return _either([self._rule(option) for option in node["anyOf"]])
        if "enum" in node or "const" in node:
            values = node["enum"] if "enum" in node else [node["const"]]
            return _either([_literal(_compact(value)) for value in values])
        kinds = node.get("type", sorted(TYPES))
        return _either([self._kind(kind, node) for kind in ([kinds] if isinstance(kinds, str) else kinds)])

    def _target(self, reference: str) -> dict[str, Any]:
        target = self._schema
        for part in reference.split("/")[1:]:
            target = target[part]
        return target

    def _kind(self, kind: str, node: dict[str, Any]) -> str:
        if kind == "object":
            return self._object(node)
        if kind == "array":
            return self._array(node)
        if kind == "string" and ("minLength" in node or "maxLength" in node):
            return self._part(f'"\\"" char{_times(node.get("minLength", 0), node.get("maxLength"))} "\\""')
        if kind == "integer" and ("minimum" in node or "maximum" in node):
            return self._part(" | ".join(_integers(node.get("minimum"), node.get("maximum"))))
        return kind

    def _array(self, node: dict[str, Any]) -> str:
        item = self._rule(node["items"]) if "items" in node else self._anything()
        low, high = node.get("minItems", 0), node.get("maxItems")
        some = f'"[" {item} (comma {item}){_times(max(low - 1, 0), None if high is None else high - 1)} "]"'
        options = ['"[]"'] * (low == 0) + [some] * (high != 0)
        return self._part(" | ".join(options))

    def _object(self, node: dict[str, Any]) -> str:
        """Properties in their order, those that are not required written or left out; or, where none is named, any."""
        fields = [
            (f"{_literal(_compact(name))} colon {self._rule(child)}", name in node.get("required", []))
            for name, child in node.get("properties", {}).items()
        ]
        # A name that is not listed may be any string, a listed one too, whose type would then not be held to.
        first, rest = self._others(False if fields else node.get("additionalProperties", True))
        for field, required in reversed(fields):
            begun, went_on = f"{field} {rest}", f"comma {field} {rest}"
            first = self._part(begun if required else f"{begun} | {first}")
            rest = self._part(went_on if required else f"{went_on} | {rest}")
        return f'"{{" {first} "}}"'

    def _others(self, allowed: bool | dict[str, Any]) -> tuple[str, str]:
        """Properties without a name of their own: where nothing was written before, and where something was."""
        if allowed is False:
            return '""', '""'
        field = self._part(f"string colon {self._rule(allowed) if isinstance(allowed, dict) else self._anything()}")
        return self._part(f'"" | {field} (comma {field})*'), self._part(f"(comma {field})*")

    def _anything(self) -> str:
        return self._rule(_ANYTHING)


_ANYTHING: dict[str, Any] = {}
"""The schema of any value at all."""


def _either(options: list[str]) -> str:
    return options[0] if len(options) == 1 else "(" + " | ".join(options) + ")"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _literal(text: str) -> str:
    """A text as the grammar has it: strings, which escape as JSON does, and characters beyond ASCII as sets of one."""
    parts = re.findall(r"[ -~]+|[^ -~]", text)
    return " ".join(json.dumps(part) if part.isascii() else f"[{part}]" for part in parts)


def _times(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def _integers(low: int | None, high: int | None) -> list[str]:
    """Grammars of the integers from `low` to `high`, which together are all of them."""
    options = []
    if high is None or high >= 0:
        options += _counts(max(low or 0, 0), high)
    if low is None or low < 0:
        least, most = 1 if high is None else max(1, -high), None if low is None else -low
        options += [f'"-" ({part})' for part in _counts(least, most)]
    return options


def _counts(low: int, high: int | None) -> list[str]:
    """The same for integers from 0 on, by their numbers of digits."""
    longest = _LONGEST if high is None else len(str(high))
    options = []
    for digits in range(len(str(low)), longest + 1):
        least = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        most = 10**digits - 1 if high is None else min(high, 10**digits - 1)
        options += _same_length(str(least), str(most))
    return options


_LONGEST = 16
"""Digits of the largest integer that JSON numbers are exact for."""


def _same_length(low: str, high: str) -> list[str]:
    """The same for integers of one number of digits; what they begin with in common comes first."""
    if low == high:
        return [f'"{low}"']
    if set(low) <= {"0"} and set(high) <= {"9"}:
        return [f"[0-9]{{{len(low)}}}"]
    ends = len(low) - 1
    if low[0] == high[0]:
        return [f'"{low[0]}" {tail}' for tail in _same_length(low[1:], high[1:])]
    options, first, last = [], int(low[0]), int(high[0])
    if set(low[1:]) - {"0"}:
        options += [f'"{first}" {tail}' for tail in _same_length(low[1:], "9" * ends)]
        first += 1
    if set(high[1:]) - {"9"}:
        options += [f'"{last}" {tail}' for tail in _same_length("0" * ends, high[1:])]
        last -= 1
    if first <= last:
        options.append(f"[{first}-{last}]" + (f" [0-9]{{{ends}}}" if ends else ""))
    return options
