"""The chat page: static files of serve/page, read once, that load nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import Response

from serve.http.errors import ApiError
from serve.http.routes.route import Route

FOLDER = Path(__file__).parents[1] / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles are files of this origin alone, and only it is spoken to.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": CONTENT_POLICY, "Cache-Control": "no-cache"}


def page_routes() -> list[Route]:
    """Return the routes of the page and of its files."""
    files = {
        path.name: Response(path.read_bytes(), media_type=KINDS[path.suffix], headers=HEADERS)
        for path in FOLDER.iterdir()
    }

    async def page() -> Response:
        return files["index.html"]

    async def file(name: str) -> Response:
        if name not in files:
            raise ApiError(404, f"/page has no file of this name; it has {', '.join(files)}")
        return files[name]

    return [Route("/", page), Route("/page/{name}", file)]
