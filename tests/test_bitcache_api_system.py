"""Health, metrics and what every answer has in common, over real HTTP."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.service import RunningServer, running_server


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path) as server:
        yield server


async def test_health_without_a_node_is_degraded_but_served(server: RunningServer) -> None:
    async with server.session() as http:
        for path in ("/healthz", "/readyz"):
            async with http.get(path) as answer:
                health = await answer.json()
                assert answer.status == 200
                assert health["status"] == "degraded"
                assert health["node_online"] is False
                assert health["trouble"]


async def test_every_answer_has_security_headers(server: RunningServer) -> None:
    async with server.session() as http:
        for path in ("/healthz", "/nothing", "/metrics"):
            async with http.get(path) as answer:
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
                assert len(answer.headers["Bitcache-Request-Id"]) == 16


async def test_unknown_paths_and_methods_are_problems(server: RunningServer) -> None:
    async with server.session() as http:
        async with http.get("/api/v1/nothing") as answer:
            assert answer.status == 404
            assert answer.content_type == "application/problem+json"
            assert (await answer.json())["type"] == "/problems/not-found"
        async with http.delete("/healthz") as answer:
            assert answer.status == 405
            assert "GET" in answer.headers["Allow"]
            assert (await answer.json())["type"] == "/problems/method-not-allowed"


async def test_unknown_query_parameters_are_refused_by_name(server: RunningServer) -> None:
    async with server.session() as http, http.get("/healthz?verbos=1") as answer:
        assert answer.status == 400
        assert "verbos" in (await answer.json())["detail"]


async def test_metrics_count_requests_by_route(server: RunningServer) -> None:
    async with server.session() as http:
        await http.get("/healthz")
        async with http.get("/metrics") as answer:
            page = await answer.text()
    assert 'bitcache_http_requests_total{method="GET",route="/healthz",status="200"} 1.0' in page
    assert "bitcache_node_online 0.0" in page


async def test_the_log_has_neither_query_nor_token(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with server.session(token="bcs_verysecret") as http:
        await http.get("/healthz?secret=hunter2")
    assert "GET /healthz 400" in caplog.text
    assert "hunter2" not in caplog.text.replace("Unknown query parameter `secret`", "")
    assert "verysecret" not in caplog.text
