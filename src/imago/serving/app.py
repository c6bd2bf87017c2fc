"""Routes of the server: predictions, health, metrics, and the page."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imago.definitions import __version__
from imago.serving.gate import IS_READ, refuse, shown
from imago.serving.limits import RefusedError
from imago.serving.service import FAILED, STOPS, Service
from imago.serving.uploads import FORM, uploads_of

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

TEXT, NUMBER = {"type": ["string", "null"]}, {"type": ["number", "null"]}
PREDICTION = {
    "type": "object",
    "properties": {
        "name": TEXT | {"description": "Name of the file in the form"},
        "prediction": TEXT | {"description": "The predicted class; null if the image could not be read"},
        "probability": NUMBER,
        "probabilities": {
            "type": "object",
            "additionalProperties": NUMBER,
            "description": "Probability of each class, or of the five most likely of 100 classes or more",
        },
        "accepted": {"type": ["boolean", "null"], "description": "False: leave it to a person. Null: not calibrated"},
        "set": {"type": ["array", "null"], "items": {"type": "string"}, "description": "Conformal prediction set"},
        "warning": TEXT | {"description": "Damage inside a file that could be read all the same"},
        "error": TEXT | {"description": "Why the image could not be read"},
    },
}
FILE = {"type": "string", "format": "binary"}
BODY = {
    FORM: {"schema": {"type": "object", "properties": {"images": {"type": "array", "items": FILE}}}},
    "application/octet-stream": {"schema": FILE},
}
REFUSALS = {
    400: "No image, or no form",
    401: "The key is missing or wrong",
    403: "A page of another site",
    408: "The body came too slowly",
    413: "The body is too large, or has too many images",
    422: "No image could be read",
    429: "Too many requests are in flight",
    500: "The network failed",
    503: "The answer took too long, or the server is stopping",
}


def make_app(service: Service) -> "FastAPI":
    """Make the application with all routes. It loads nothing from other servers, as the usual page of documentation of
    FastAPI does."""
    from fastapi import Depends, FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from fastapi.security import HTTPBearer
    from prometheus_client import CONTENT_TYPE_LATEST

    app = FastAPI(title="Imago", version=__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(RefusedError, _refusal)
    app.add_exception_handler(Exception, _failure)
    for status in (404, 405):
        app.add_exception_handler(status, _no_route)
    locked = [Depends(HTTPBearer(auto_error=False))] if service.api_key is not None else []
    answers = {"type": "object", "properties": {"predictions": {"type": "array", "items": PREDICTION}}}
    content = {"application/json": {"schema": answers}}
    described: dict[int | str, Any] = {200: {"description": "The predictions, in order", "content": content}}
    described |= {status: {"description": what} for status, what in REFUSALS.items()}

    @app.post(
        "/predict",
        openapi_extra={"requestBody": {"required": True, "content": BODY}},
        responses=described,
        dependencies=locked,
        summary="Predict the class of each image",
    )
    async def predict(request: Request) -> Response:
        return await _predict(request, service)

    @app.get("/health", summary="Whether the server answers")
    async def health() -> Response:
        state = service.state
        return JSONResponse({"status": state, "in_flight": service.in_flight}, 200 if state == "ok" else 503)

    @app.get("/metrics", dependencies=locked, summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        text, policy = rendered_page(service.api_key is not None)
        return HTMLResponse(text, headers={"content-security-policy": policy})

    return app


async def _predict(request: "Request", service: Service) -> "Response":
    from fastapi.responses import JSONResponse, Response
    from starlette.requests import ClientDisconnect

    seconds = service.limits.timeout_s
    try:
        async with service.slot():
            answers = await service.answers(await uploads_of(request, service.limits))
    except ClientDisconnect:
        return Response(status_code=499)  # for the metrics: nobody reads it
    except TimeoutError:
        if service.is_stopping:
            raise RefusedError(503, STOPS) from None
        if not request.scope[IS_READ]:
            raise RefusedError(408, f"The body did not come within {seconds:g} s (timeout_s).") from None
        raise RefusedError(503, f"There was no answer within {seconds:g} s (timeout_s). Try again later.") from None
    errors = [entry["error"] for entry in answers if entry["error"] is not None]
    content: dict[str, Any] = {"predictions": answers}
    if len(errors) == len(answers):
        content = {"detail": errors[0]} | content
    return JSONResponse(content, 422 if "detail" in content else 200)


async def _refusal(request: "Request", error: Exception) -> "Response":
    from fastapi.responses import Response

    class Refusal(Response):
        """Answer with a sentence, which first sees what the client still sends."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            assert isinstance(error, RefusedError)
            await refuse(error, scope, receive, send)

    del request
    return Refusal()


async def _no_route(request: "Request", error: Exception) -> "Response":
    from fastapi.responses import JSONResponse

    asked = f"{shown(request.method)} {shown(request.url.path)}"
    sentence = f"There is no {asked} here. Images go to POST /predict; GET /openapi.json lists the routes."
    return JSONResponse({"detail": sentence}, getattr(error, "status_code", 404), getattr(error, "headers", None))


async def _failure(request: "Request", error: Exception) -> "Response":
    from fastapi.responses import JSONResponse

    del request, error  # which is raised again, and logged
    return JSONResponse({"detail": FAILED}, 500)


@cache
def rendered_page(asks_for_key: bool) -> tuple[str, str]:
    """Return the page on which images are dropped, and the policy by which it runs its own script alone."""
    from jinja2 import Environment, PackageLoader

    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    templates = Environment(loader=PackageLoader("imago", "serving"), autoescape=True)
    return templates.get_template("page.html.j2").render(script=script, asks_for_key=asks_for_key), policy
