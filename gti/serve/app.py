"""The ASGI application: admission, limits, paths and their answers."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import io
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gti import __version__
from gti.errors import DeviceError, FormatError, ImageError
from gti.serve import metrics
from gti.serve.models import Answer, Model

_BODY_S = 20.0  # for a picture to arrive
_FORM_BYTES = 64 * 1024  # of a form beside the picture
_RATE_S = 10.0
NOTHING = ("background", "unknown")  # labels that say that nothing was found
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " img-src 'self' blob: data:; media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Limits:
    """What one server accepts."""

    waiting: int = 64  # requests at the same time; more are answered 503
    file_bytes: int = 10 * 1024 * 1024
    token: str = ""  # "": everybody may ask


class Refused(Exception):  # noqa: N818  (an answer, not a mistake of the program)
    """The request is answered with `status` and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Server:
    """The routes around one model, and what was counted."""

    def __init__(self, model: Model, limits: Limits = Limits()) -> None:
        self.model = model
        self.limits = limits
        self.waiting = 0
        self.rejected: Counter[str] = Counter(busy=0, token=0, picture=0, device=0)
        self.answers = 0
        self.answer_s = 0.0
        self._done: deque[float] = deque(maxlen=4096)

    def app(self) -> Starlette:
        """Return the ASGI application; its end releases the model."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            try:
                yield
            finally:
                await asyncio.to_thread(self.model.release)

        return Starlette(
            lifespan=lifespan,
            routes=[
                Route("/", self._page),
                Route("/api/info", self._info),
                Route("/api/state", self._state),
                Route("/api/classify", self._classify, methods=["POST"]),
                Route("/api/edges", self._edges, methods=["POST"]),
                Route("/v1/vision/scene", self._scene, methods=["POST"]),
                Route("/v1/vision/custom/{name}", self._custom, methods=["POST"]),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={Refused: _told},
        )

    # Looking

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(
            resources.files("gti.serve").joinpath("page.html").read_text("utf-8"), headers=_PAGE_HEADERS
        )

    async def _info(self, request: Request) -> Response:
        self._check_token(request)
        model = self.model
        return JSONResponse(
            {"name": model.name, "kind": model.kind, "labels": model.labels, "version": __version__,
             "max_bytes": self.limits.file_bytes}
        )  # fmt: skip

    async def _state(self, request: Request) -> Response:
        self._check_token(request)
        return JSONResponse(
            {"devices": self.model.devices, "problem": self.model.problem, "fps": self.rate(),
             "waiting": self.waiting, "counters": dict(self.model.counters)}
        )  # fmt: skip

    async def _health(self, _: Request) -> Response:
        good = not self.model.problem
        return JSONResponse({"status": "ok" if good else "failing"}, 200 if good else 503)

    async def _metrics(self, request: Request) -> Response:
        self._check_token(request)
        return PlainTextResponse(metrics.text(self), media_type="text/plain; version=0.0.4")

    def rate(self) -> float | None:
        """Return frames per second over the last ten seconds, None where there were none."""
        since = time.monotonic() - _RATE_S
        recent = sum(done > since for done in self._done)
        return recent / _RATE_S if recent else None

    # Answering

    async def _classify(self, request: Request) -> Response:
        self._check_kind("classify")
        answer, _, took = await self._answered(request)
        return JSONResponse({"result": answer.result, "ms": round(took * 1000, 2)})

    async def _edges(self, request: Request) -> Response:
        self._check_kind("edges")
        answer, _, took = await self._answered(request)
        return Response(answer.png, media_type="image/png", headers={"X-Answer-Ms": f"{took * 1000:.2f}"})

    async def _scene(self, request: Request) -> Response:
        self._check_kind("classify")
        answer, _, _ = await self._answered(request)
        best = answer.result[0]
        return JSONResponse({"success": True, "label": best["label"], "confidence": best["probability"]})

    async def _custom(self, request: Request) -> Response:
        self._check_kind("classify")
        if request.path_params["name"] != self.model.name:
            raise Refused(404, f"this server has the model {self.model.name}")
        answer, form, _ = await self._answered(request)
        try:
            least = float(form.get("min_confidence", "0.4"))
        except ValueError:
            raise Refused(400, "min_confidence is no number") from None
        width, height = await asyncio.to_thread(_size_of, form["image"])
        box = {"x_min": 0, "y_min": 0, "x_max": width, "y_max": height}  # a classifier speaks of the whole picture
        found = [one for one in answer.result if one["label"] not in NOTHING and one["probability"] >= least]
        predictions = [{"label": one["label"], "confidence": one["probability"], **box} for one in found]
        return JSONResponse({"success": True, "predictions": predictions})

    def _check_token(self, request: Request, form: dict[str, Any] | None = None) -> None:
        if not self.limits.token:
            return
        kind, _, said = request.headers.get("authorization", "").partition(" ")
        said = said if kind.lower() == "bearer" else str((form or {}).get("api_key", ""))
        if not hmac.compare_digest(said.encode(), self.limits.token.encode()):
            self.rejected["token"] += 1
            raise Refused(401, "the token is missing or wrong")

    def _check_kind(self, kind: str) -> None:
        if self.model.kind != kind:
            raise Refused(404, f"the model {self.model.name} answers /api/{self.model.kind}")

    async def _answered(self, request: Request) -> tuple[Answer, dict[str, Any], float]:
        """Return the answer for the picture of a request, its form, and how many seconds that took once it was here."""
        # DeepStack's clients put the key into the form; everybody else is turned away before anything is read.
        if not request.url.path.startswith("/v1/"):
            self._check_token(request)
        if self.waiting >= self.limits.waiting:
            self.rejected["busy"] += 1
            raise Refused(503, f"{self.waiting} pictures wait already; ask again in a second")
        self.waiting += 1
        try:
            form = await self._form(request)
            if request.url.path.startswith("/v1/"):
                self._check_token(request, form)
            started = time.monotonic()
            answer = await self.model.compute(form["image"])
            took = time.monotonic() - started
        except (ImageError, FormatError) as problem:
            self.rejected["picture"] += 1
            raise Refused(400, str(problem)) from None
        except DeviceError as problem:
            self.rejected["device"] += 1
            raise Refused(503, str(problem)) from None
        finally:
            self.waiting -= 1
        self.answers += 1
        self.answer_s += took
        self._done.append(time.monotonic())
        return answer, form, took

    async def _form(self, request: Request) -> dict[str, Any]:
        """Return the fields of a form, the bytes of the picture as "image"; another body is the picture itself."""
        try:
            body = await asyncio.wait_for(self._body(request), _BODY_S)
        except asyncio.TimeoutError:
            raise Refused(408, f"the picture did not arrive within {_BODY_S:g} s") from None
        except ClientDisconnect:
            raise Refused(400, "the client left") from None
        form: dict[str, Any] = {"image": body}
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            form = await _fields(request, body)
        if not isinstance(form.get("image"), bytes) or not form["image"]:
            raise Refused(400, 'no picture: send it as the field "image" of a form, or as the body')
        if len(form["image"]) > self.limits.file_bytes:
            raise self._too_large()
        return form

    async def _body(self, request: Request) -> bytes:
        most = self.limits.file_bytes + _FORM_BYTES
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise self._too_large()
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> Refused:
        self.rejected["picture"] += 1
        return Refused(413, f"a picture may have {self.limits.file_bytes} bytes")


async def _fields(request: Request, body: bytes) -> dict[str, Any]:
    async def pieces() -> AsyncIterator[bytes]:
        yield body

    try:
        parsed = await MultiPartParser(request.headers, pieces(), max_files=1, max_fields=20).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError, ValueError):
        raise Refused(400, "the form cannot be read") from None
    found: dict[str, Any] = {}
    for key, value in parsed.multi_items():
        found[key] = value if isinstance(value, str) else await value.read()
    await parsed.close()
    return found


def _size_of(data: bytes) -> tuple[int, int]:
    """Return width and height of a picture that was read before, upright."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (picture.height, picture.width) if turned else picture.size


async def _told(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Refused)
    headers = {"Retry-After": "1"} if problem.status == 503 else {}
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if problem.status in (408, 413):
        headers["Connection"] = "close"  # what is still under way is not read
    return JSONResponse({"success": False, "error": str(problem)}, problem.status, headers)
