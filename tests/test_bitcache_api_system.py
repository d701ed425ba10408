"""Health, metrics and what every answer has in common, over real HTTP on the bare application."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from bitcache.app import make_app
from bitcache.db.migrate import upgrade
from bitcache.master_key import write_master_key
from bitcache.services import open_services
from regtest.node import wait_until
from tests.service import API_CHECK, running_server, test_config

Http = TestClient[web.Request, web.Application]


@pytest_asyncio.fixture
async def http(tmp_path: Path, aiohttp_client: AiohttpClient) -> AsyncIterator[Http]:
    """A client of the application alone: no loop runs beside it, so nobody has seen a node."""
    config = test_config(tmp_path)
    write_master_key(config.master_key)
    async with open_services(config) as services:
        await upgrade(services.database)
        yield await aiohttp_client(make_app(services), middlewares=(API_CHECK.middleware,))


async def document(http: Http, path: str) -> tuple[int, dict[str, Any]]:
    async with http.get(path) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_without_a_node_is_degraded_but_served(http: Http, path: str) -> None:
    status, health = await document(http, path)
    assert status == 200
    assert health["status"] == "degraded"
    assert health["node_online"] is False
    assert health["trouble"] == "the watcher does not run"


@pytest.mark.parametrize("path", ["/healthz", "/nothing", "/metrics"])
async def test_every_answer_has_security_headers(http: Http, path: str) -> None:
    async with http.get(path) as answer:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert len(answer.headers["Bitcache-Request-Id"]) == 16


async def test_unknown_paths_and_methods_are_problems(http: Http) -> None:
    async with http.get("/api/v1/nothing") as answer:
        assert answer.status == 404
        assert answer.content_type == "application/problem+json"
        assert (await answer.json())["type"] == "/problems/not-found"
    async with http.delete("/healthz") as answer:
        assert answer.status == 405
        assert "GET" in answer.headers["Allow"]
        assert (await answer.json())["type"] == "/problems/method-not-allowed"


async def test_unknown_query_parameters_are_refused_by_name(http: Http) -> None:
    status, refusal = await document(http, "/healthz?verbos=1")
    assert status == 400
    assert "verbos" in refusal["detail"]


async def test_metrics_count_requests_by_route(http: Http) -> None:
    await document(http, "/healthz")
    async with http.get("/metrics") as answer:
        page = await answer.text()
    assert 'bitcache_http_requests_total{method="GET",route="/healthz",status="200"} 1.0' in page
    assert "bitcache_node_online 0.0" in page


async def test_health_does_not_tell_where_the_node_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    health: dict[str, Any] = {}

    async with running_server(tmp_path) as server, server.session() as http:
        address = server.services.config.node.rpc_url.removeprefix("http://")

        async def unreachable() -> bool:
            async with http.get("/healthz") as answer:
                health.update(await answer.json())
            return str(health["trouble"]).startswith("the node")

        await wait_until(unreachable, "the watcher to miss the node")
    assert health["trouble"] == "the node cannot be reached (Connection refused)"
    assert health["trouble"] in caplog.text
    assert address not in str(health)


async def test_the_log_has_neither_query_nor_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    # Whether the framework keeps a log of its own is decided where the server is started.
    async with running_server(tmp_path) as server, server.session(token="bcs_verysecret") as http:
        await http.get("/healthz?secret=hunter2")
    assert "GET /healthz 400" in caplog.text
    assert "hunter2" not in caplog.text.replace("Unknown query parameter `secret`", "")
    assert "verysecret" not in caplog.text
