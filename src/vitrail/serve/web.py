"""The page as an ASGI application: addresses, and errors as words."""

from __future__ import annotations

import asyncio
import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from vitrail.errors import VitrailError
from vitrail.pictures.tiles import VIEWER
from vitrail.serve.guard import Guard, TooLongError
from vitrail.serve.pyramid import NotThereError, Pyramid
from vitrail.serve.studio import BusyError
from vitrail.serve.wishes import read_wish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from vitrail.serve.studio import Studio

PAGE = Path(__file__).parent / "page"
SHARED = (
    "page.css",
    "elements.js",
    "words.js",
    "view.js",
    "tiles.js",
    "panes.js",
    "gestures.js",
    "slider.js",
    "viewer.css",
)
FILES = {name: VIEWER / name for name in SHARED}  # a report's page looks at pictures in the same way
FILES |= {name: PAGE / name for name in ("serve.css", "zoom.js", "serve.js")}
KINDS = {".js": "text/javascript", ".css": "text/css"}
PATIENCE_S = 10  # for the body of a request


class BoundedNumber(Convertor[int]):
    """Numbers in addresses, of a bounded length: Python refuses to read very long ones."""

    regex = "[0-9]{1,9}"

    def convert(self, value: str) -> int:
        """Return the number of a text."""
        return int(value)

    def to_string(self, value: int) -> str:
        """Return the text of a number."""
        return str(value)


register_url_convertor("count", BoundedNumber())


class Web:
    """Answers to the page's requests.

    Args:
        studio: The model and its pictures.
        method: Name of the method that is chosen at first.
    """

    def __init__(self, studio: Studio, method: str):
        self._studio, self._method = studio, method

    async def page(self, request: Request) -> Response:
        """Return the page."""
        return FileResponse(PAGE / "page.html", media_type="text/html")

    async def part(self, request: Request) -> Response:
        """Return a script or style by its name, of a closed list."""
        path = FILES.get(request.path_params["name"])
        if path is None:
            return PlainTextResponse("There is no such file.\n", 404)
        return FileResponse(path, media_type=KINDS[path.suffix])

    async def icon(self, request: Request) -> Response:
        """Return nothing: the page has no icon, and browsers ask for one."""
        return Response(status_code=204)

    def about(self, request: Request) -> Response:
        """Describe the model and its methods, which do not change."""
        studio, backbone = self._studio, self._studio.backbone
        side = backbone.native_size * backbone.vae_scale_factor
        defaults = {"num_inference_steps": 30, "guidance_scale": 3.0, **backbone.defaults}
        return JSONResponse(
            {
                "version": metadata.version("vitrail"),
                "model": studio.model,
                "device": str(backbone.device),
                "native": side,
                "method": self._method,
                "methods": studio.methods,
                "steps": defaults["num_inference_steps"],
                "guidance_scale": defaults["guidance_scale"],
            }
        )

    def state(self, request: Request) -> Response:
        """Describe the pictures, the latest first."""
        return JSONResponse(self._studio.state())

    async def plan(self, request: Request) -> Response:
        """Plan a picture."""
        config = read_wish(await _body(request), self._studio.backbone.defaults)
        return JSONResponse(await run_in_threadpool(self._studio.plan_data, config))

    async def begin(self, request: Request) -> Response:
        """Begin a picture."""
        config = read_wish(await _body(request), self._studio.backbone.defaults)
        work = await run_in_threadpool(self._studio.begin, config)
        return JSONResponse(work.as_data(), 202)

    def stop(self, request: Request) -> Response:
        """Ask a picture to stop."""
        return JSONResponse(self._studio.stop(request.path_params["number"]).as_data(), 202)

    async def go_on(self, request: Request) -> Response:
        """Go on with a stopped picture."""
        work = await run_in_threadpool(self._studio.go_on, request.path_params["number"])
        return JSONResponse(work.as_data(), 202)

    def preview(self, request: Request) -> Response:
        """Return the latest preview of a picture."""
        preview = self._studio.work(request.path_params["number"]).preview
        if preview is None:
            raise NotThereError("there is no preview yet")
        return Response(preview, media_type="image/png")

    def picture(self, request: Request) -> Response:
        """Return a picture with its recipe inside, as a download."""
        work = self._studio.work(request.path_params["number"])
        if work.status != "done":
            raise NotThereError("the picture is not done")
        slug = re.sub(r"[^a-z0-9]+", "-", work.config.prompt.lower()).strip("-")[:48] or "picture"
        return FileResponse(work.file, media_type="image/png", filename=f"{slug}-{work.config.seed}.png")

    def thumb(self, request: Request) -> Response:
        """Return a small copy of a picture."""
        return Response(self._shown(request).thumb(), media_type="image/webp")

    def tile(self, request: Request) -> Response:
        """Return a tile of a picture."""
        places = [request.path_params[name] for name in ("level", "row", "column")]
        return Response(self._shown(request).tile(*places), media_type="image/webp")

    def _shown(self, request: Request) -> Pyramid:
        """Return the picture that an address names."""
        return self._studio.work(request.path_params["number"]).of_version(request.path_params["version"])

    def routes(self) -> list[Route]:
        """Return all addresses."""
        one = "/pictures/{number:count}"
        return [
            Route("/", self.page),
            Route("/parts/{name}", self.part),
            Route("/favicon.ico", self.icon),
            Route("/api/about", self.about),
            Route("/api/state", self.state),
            Route("/api/plan", self.plan, methods=["POST"]),
            Route("/api/pictures", self.begin, methods=["POST"]),
            Route("/api" + one + "/stop", self.stop, methods=["POST"]),
            Route("/api" + one + "/go-on", self.go_on, methods=["POST"]),
            Route("/api" + one + "/preview.png", self.preview),
            Route(one + "/picture.png", self.picture),
            Route(one + "/{version}/thumb.webp", self.thumb),
            Route(one + "/{version}/{level:count}/{row:count}_{column:count}.webp", self.tile),
        ]


def application(studio: Studio, method: str, hosts: frozenset[str] | None, token: str | None = None) -> Guard:
    """Return the page's application behind its guard.

    Args:
        studio: The model and its pictures.
        method: Name of the method that is chosen at first.
        hosts: ``Host`` headers that are ours; None for any.
        token: What a visitor must know; None for nothing.
    """
    handlers = {BusyError: _said(409), NotThereError: _said(404), VitrailError: _said(422), TooLongError: _said(413)}
    handlers |= {ClientDisconnect: _said(400)}
    app = Starlette(routes=Web(studio, method).routes(), exception_handlers=handlers)
    return Guard(app, hosts, token)


async def _body(request: Request) -> bytes:
    """Return the body of a request, for which it has ``PATIENCE_S`` seconds."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await request.body()
    except TimeoutError as error:
        raise NotThereError("the request did not arrive") from error


def _said(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return a handler that answers an error with its words."""

    async def said(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error) or "that is too long"}, status)

    return said
