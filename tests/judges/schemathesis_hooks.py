"""What schemathesis is told beside the document: the served model, and the rules that JSON Schema cannot say."""

import os
from typing import Any

import schemathesis
from schemathesis import CheckContext
from schemathesis.generation import GenerationMode

MODEL = os.environ["JUDGED_MODEL"]

ANY = ""

EXPECTED = {
    ("history", "its last item must be a user turn"): "no keyword speaks of a list's last item",
    ("generated_responses", "they must have the same length"): "no keyword compares two lists",
    ("messages", "give either messages or prompt"): "null counts as not given, for every field",
    ("stream_options", "only allowed with stream"): "as above",
    ("top_logprobs", "only allowed with logprobs"): "as above",
    ("top_logprobs", "does not support"): "what an engine honours is told by GET /v1/models",
    ("logit_bias", "does not support"): "what an engine honours is told by GET /v1/models",
    ("response_format", "json_schema is given with the type json_schema"): "as above",
    ("response_format.json_schema.schema", ""): "which schemas can be enforced is told by `parley.contract.schema`",
    ("messages", "context"): "how many tokens a text has is not a matter of schemas",
    (ANY, "input should be a valid integer"): "8.0 is an integer to JSON Schema, and no count to us",
}
"""Refusals of requests that the document allows: the parameter, words of the message, why."""


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Asks for the model that is served: nearly all made-up names are only a 404."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = MODEL


@schemathesis.check
def allowed_requests_are_served(context: CheckContext, response: Any, case: Any) -> None:
    """What the document allows is served, or refused for one of the expected reasons."""
    if case.meta.generation.mode is GenerationMode.POSITIVE and response.status_code == 400:
        error = response.json()["error"]
        fits = [param in (ANY, error["param"]) and words in error["message"] for param, words in EXPECTED]
        assert any(fits), f"refused: {error['message']}"
