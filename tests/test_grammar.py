"""JSON by a schema: what a model that knows no JSON writes under the grammar of `parley.engine.grammar`."""

import json
import random
import re
from typing import Any

import jsonschema
import pytest
import requests

from parley.contract.schema import LARGEST_INTEGER, check_schema
from parley.engine.grammar import grammar
from tests.conftest import Served

NODE = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Alfred", "Robin"]},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["name", "next"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "numbers in a list that may be empty": {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 999},
        "maxItems": 8,
    },
    "a number on both sides of zero": {"type": "integer", "minimum": -120, "maximum": 45},
    "no bound on a number": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    "names that grammars escape": {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in ("é0", 'a "b"', "c\\d", "line\nbreak", "日本9", "")},
        "required": ["é0", "日本9"],
        "additionalProperties": False,
    },
    "values of every kind": {"enum": ["Batman \"x\"", 1, -2.5, True, None, ["a", 1], {"k": []}, "ü1"]},
    "one value": {"const": {"hero": "Batman"}},
    "counted characters": {"type": "string", "minLength": 3, "maxLength": 9},
    "only what may be left out": {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 1, "maximum": 3} for name in "abc"},
        "additionalProperties": False,
    },
    "several types": {"type": ["boolean", "null", "integer"]},
    "others of one type": {"type": "object", "additionalProperties": False},
    "named properties beside others": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 9}, "b": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": {"type": "string"},
    },
    "a chain": {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
}  # fmt: skip


def ask(served: Served, schema: dict[str, Any], **more: Any) -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "Who?"}], "response_format": form, "max_tokens": 300, **more}
    answer = requests.post(f"{served.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_written_meets_the_schema_and_ends(service: Served, name: str) -> None:
    """Fails when an answer drowns in white space or digits, or the grammar engine reads the grammar in another way."""
    for seed in range(4):
        choice = ask(service, SCHEMAS[name], seed=seed, temperature=1.5)
        assert choice["finish_reason"] == "stop", choice
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMAS[name])
        assert not re.search(r"\n|  ", re.sub(r'"(\\.|[^"\\])*"', "", choice["message"]["content"]))


def test_any_object_is_written_without_line_breaks(service: Served) -> None:
    """Fails when `json_object` is answered with line breaks up to the limit."""
    for seed in range(4):
        body = {"messages": [{"role": "user", "content": "Who?"}], "response_format": {"type": "json_object"}}
        more = {"max_tokens": 40, "temperature": 1.5, "seed": seed}
        answer = requests.post(f"{service.url}/v1/chat/completions", json=body | more, timeout=120).json()["choices"][0]
        assert "\n" not in answer["message"]["content"]
        if answer["finish_reason"] == "stop":
            assert isinstance(json.loads(answer["message"]["content"]), dict)


def integers(low: int | None, high: int | None) -> re.Pattern[str]:
    """The rule for integers of a range as a regular expression: it has only strings, sets, counts and choices."""
    bounds = {"minimum": low, "maximum": high}
    schema = {"type": "integer", **{name: bound for name, bound in bounds.items() if bound is not None}}
    check_schema(schema)
    rule = next(line for line in grammar(schema).splitlines() if line.startswith("p0 ::= "))
    return re.compile(re.sub(r'[" ]', "", rule.removeprefix("p0 ::= ")))


def test_integers_are_those_between_their_bounds() -> None:
    """Fails when a bound is missed by one, where numbers get another digit, or at zero."""
    rng = random.Random(1)
    edges = [0, 1, 5, 9, 10, 11, 99, 100, 101, 190, 999, 1000, LARGEST_INTEGER]
    edges = sorted({*edges, *(-edge for edge in edges)})
    ranges = [(low, high) for low in [None, *edges] for high in [None, *edges] if (low, high) != (None, None)]
    for low, high in (pair for pair in ranges if None in pair or pair[0] <= pair[1]):  # type: ignore[operator]
        rule = integers(low, high)
        for number in [*edges, *(edge + 1 for edge in edges), *(rng.randrange(-1200, 1200) for _ in range(50))]:
            inside = abs(number) <= 10**16 - 1 and (low is None or low <= number) and (high is None or number <= high)
            assert bool(rule.fullmatch(str(number))) == inside, (low, high, number)
        assert not any(rule.fullmatch(text) for text in ("-0", "00", "01", "-01", ""))


def test_no_named_property_is_written_as_another() -> None:
    """Fails when a property is written twice, or with a type that is meant for properties without a name."""
    for others in (True, {"type": "string"}):
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": others}
        assert "string colon" not in "".join(re.findall(r"p\d+ ::= .*", grammar(schema)))
