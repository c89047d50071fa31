"""Requests generated from the server's own OpenAPI description never make it fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from front_harness import LiveFront, http, live
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error


@pytest.fixture(scope="module")
def front() -> Iterator[LiveFront]:
    with live() as front:
        yield front


def test_no_generated_request_is_a_server_error(front: LiveFront) -> None:
    schema = schemathesis.openapi.from_url(front.url + "/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 12
    for operation in operations:
        for mode, examples in ((schemathesis.GenerationMode.POSITIVE, 25), (schemathesis.GenerationMode.NEGATIVE, 25)):

            @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def never_fails(case: Any) -> None:
                case.call_and_validate(checks=[not_a_server_error])

            with suppress(Unsatisfiable):  # nothing about a request without parameters can be made invalid
                never_fails()


def test_description_covers_the_bodies(front: LiveFront) -> None:
    description = http.get(front.url + "/openapi.json").json()
    schemas = description["components"]["schemas"]
    assert schemas["CompletionRequest"]["properties"]["temperature"]["maximum"] == 2.0
    assert schemas["ChatRequest"]["required"] == ["messages"]
    assert "content" in schemas["Message"]["properties"]
