"""Requests made from our own description of the API: none may fail on our side or get an answer that it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from conftest import Place

DESCRIPTION = Path(__file__).parents[3] / "docs" / "openapi.yaml"
EXAMPLES = 25
CHECKS = (status_code_conformance, content_type_conformance, response_schema_conformance)
NO_EMBEDDINGS = 501
"""Ollama's own status for a completion model that is asked to embed."""
WRONG_OPTION = b'{"error":"option '
"""Ollama answers 500 to an option of a wrong type, and so do we."""

schema = schemathesis.openapi.from_path(str(DESCRIPTION))
met: set[tuple[str, int]] = set()


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_is_described(case: Any) -> None:
    place = Place()
    body = case.body
    if isinstance(body, dict) and "model" in body and len(str(body["model"])) % 4:  # else: whatever it made up
        body["model"] = place.embedder if "embed" in case.path else place.talker
    if case.path == "/v1/models/{model}" and len(case.path_parameters["model"]) % 2:
        case.path_parameters["model"] = place.talker
    answer = case.call(base_url=place.url, timeout=60)
    met.add((case.path, answer.status_code))
    if answer.status_code != NO_EMBEDDINGS and WRONG_OPTION not in answer.content:
        case.validate_response(answer, checks=[not_a_server_error])
    if answer.headers.get("content-type", [""])[0].startswith("application/json"):
        case.validate_response(answer, checks=CHECKS)


def test_good_answers_were_met_on_every_route() -> None:
    """Or the test above proves nothing. Nobody may manage here."""
    paths = schema.raw_schema["paths"]
    managing = {path for path, item in paths.items() if any(method.get("x-manages") for method in item.values())}
    assert {path for path, status in met if status in (200, 202)} == set(paths) - managing
    assert {(path, 403) for path in managing} <= met
    assert not {(path, 200) for path in managing} & met
    assert {status for _, status in met} >= {200, 400, 404}
