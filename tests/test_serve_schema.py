"""Schemathesis over our own OpenAPI document, with a fixed seed: no 5xx, and every answer is as the document says."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")
httpx = pytest.importorskip("httpx")

from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from schemathesis.checks import load_all_checks  # noqa: E402
from serving import running  # noqa: E402
from test_serve_clients import Held  # noqa: E402

from nomoat.serve.models import Served  # noqa: E402

load_all_checks()
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models", "/metrics")


@pytest.fixture(scope="module")
def server():
    patch = pytest.MonkeyPatch()
    patch.setattr(Served, "constraint", lambda self, kind, spec: Held(kind, spec))
    with running() as server:
        yield server
    patch.undo()


def test_the_document_names_every_endpoint(server):
    document = httpx.get(server.base + "/openapi.json").json()
    assert set(PATHS) <= set(document["paths"])
    for methods in document["paths"].values():
        for operation in methods.values():
            assert {"200", "4XX", "5XX"} <= set(operation["responses"])
            assert "422" not in operation["responses"]


def test_nothing_that_is_sent_breaks_it(server):
    schema = schemathesis.openapi.from_url(server.base + "/openapi.json")
    checks = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ in CHECKS]
    assert len(checks) == len(CHECKS)
    answered = set()
    for operation in (one.ok() for one in schema.get_all_operations()):
        strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
        strategy |= operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

        @seed(20)
        @settings(max_examples=25, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        def attack(case):
            if isinstance(case.body, dict) and "model" in case.body and len(str(case.body)) % 3:
                case.body["model"] = "tiny"  # else nearly all are about models that there are not
            if isinstance(case.body, dict) and case.body.get("stream") and len(str(case.body)) % 2:
                case.body["stream"] = False
            if isinstance(case.body, dict):
                for name in ("presence_penalty", "frequency_penalty", "logit_bias", "previous_response_id"):
                    case.body.pop(name, None)
            answer = case.call(timeout=10)
            answered.add((case.path, answer.status_code))
            case.validate_response(answer, checks=checks)
            assert answer.status_code < 500

        given(case=strategy)(attack)()
    assert {path for path, status in answered if status == 200} >= set(PATHS)
