"""The OpenAPI document, and the page that shows it: /openapi.json and /docs.

Swagger UI's files come from the wheel fastapi-offline (nothing else of it is used), so that nothing is fetched from
elsewhere and nothing has to be built.
"""

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response

from app.web.api.problems import ProblemDetails, errors
from app.web.auth import User, Viewer, known
from app.web.headers import policy
from app.web.reader import reader
from app.web.render import render

DESCRIPTION = """\
Ask for work on rows that wait, and follow it.

Errors are problem details (RFC 9457, `application/problem+json`), but for the monitor's webhook, whose contract is
older.
Send an API key (`toban key add NAME --scope …`) as `Authorization: Bearer …` or `X-API-Key: …`.
"""
REF = "#/components/schemas/{model}"

# With any key, or signed in: it says what there is, and nothing of what is in it.
machine = APIRouter(include_in_schema=False)
# A page.
page = APIRouter()


def swagger_ui() -> Path:
    """The folder of Swagger UI's files."""
    return Path(str(files("fastapi_offline") / "static"))


@machine.get("/openapi.json")
def openapi(request: Request, _user: Annotated[User, Depends(known)]) -> Response:
    app: FastAPI = request.app
    return JSONResponse({**app.openapi(), "servers": [{"url": reader().root or "/"}]})


@page.get("/docs")
def docs(request: Request, _user: Viewer) -> Response:
    response = render(request, "docs.html")
    # Swagger UI's arrows are images within its style sheet.
    response.headers["Content-Security-Policy"] = policy(images=["data:"])
    return response


def document(app: FastAPI) -> dict[str, Any]:
    """The document of an app with all its routes; the pages are not in it."""
    if app.openapi_schema is None:
        found = get_openapi(title="Toban", version=version("toban"), description=DESCRIPTION, routes=app.routes)
        components = found.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        # FastAPI's own shape of a 422, which nothing here answers with.
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for operation in (operation for item in found["paths"].values() for operation in item.values()):
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                operation["responses"]["422"] = errors(422)[422]
        own = ProblemDetails.model_json_schema(ref_template=REF)
        schemas |= {**own.pop("$defs", {}), "Problem": own}
        app.openapi_schema = found
    return app.openapi_schema
