"""aiohttp with nothing around it, as a process to compare with: `python -m bench.bare PORT FOLDER`.

GET /<name> is a `FileResponse` from the folder; PUT reads the body and throws it away. Freed memory is kept
as the server keeps it, which makes reading a body three times cheaper: what is left is aiohttp's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aiohttp import web

from bitcache.freed_memory import keep_freed_memory

READ_BUFFER_BYTES = 512 * 1024


def make_app(folder: Path) -> web.Application:
    async def get(request: web.Request) -> web.FileResponse:
        return web.FileResponse(folder / request.match_info["name"])

    async def put(request: web.Request) -> web.Response:
        while not request.content.at_eof():
            await request.content.readchunk()
        return web.Response(status=204)

    app = web.Application(client_max_size=0)
    app.router.add_get("/{name}", get)
    app.router.add_put("/{name}", put)
    return app


if __name__ == "__main__":
    keep_freed_memory()
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    web.run_app(
        make_app(folder),
        host="127.0.0.1",
        port=port,
        access_log=None,
        print=None,
        read_bufsize=READ_BUFFER_BYTES,
    )
