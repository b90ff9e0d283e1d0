"""All routes of MONAI Label's protocol, and those of it that are not offered."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from voxtile_server.gateway.failures import HttpFailure
from voxtile_server.gateway.models import Models
from voxtile_server.gateway.monailabel.datastore import datastore_routes
from voxtile_server.gateway.monailabel.door import Door
from voxtile_server.gateway.monailabel.infer import infer_routes
from voxtile_server.gateway.monailabel.info import STRATEGIES, info_of, info_of_file
from voxtile_server.gateway.monailabel.sessions import session_routes
from voxtile_server.gateway.monailabel.store import FINAL
from voxtile_server.gateway.settings import Settings
from voxtile_server.gateway.tokens import Tokens
from voxtile_server.gateway.uploads import take_form

SIGN_IN = ("/auth/", "/auth/token")
"""What may be asked without a token: whether one is needed, and whether one is right."""

MOST_SIGN_IN = 1 << 16
"""Bytes of a form with a name and a password."""

NOT_OFFERED = {
    "/train": "training",
    "/scoring": "scoring",
    "/batch": "inference over a datastore (voxtile batch does it)",
    "/model": "weights to download",
    "/logs": "a log to read",
    "/ohif": "OHIF's pages",
    "/proxy": "a way to another server",
    "/infer/{kind}": "whole-slide images",
    "/datastore": "more of a datastore than images and labels",
}
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE"]


def monailabel_routes(settings: Settings, models: Models, tokens: Tokens) -> APIRouter:
    """The routes; `app.state` has the intake and the store.

    Args:
        settings: how the gateway works.
        models: what can be asked for.
        tokens: who may call.
    """
    door = Door(settings, tokens)
    router = APIRouter()
    for part in (_general_routes(door, models), infer_routes(door), datastore_routes(door), session_routes(door)):
        router.include_router(part)
    router.include_router(_refusals())
    return router


def _general_routes(door: Door, models: Models) -> APIRouter:
    router = APIRouter(tags=["MONAI Label"])

    @router.get("/info/")
    async def info(request: Request) -> dict[str, Any]:
        """The models, with what a client needs for its menus."""
        listings = await asyncio.to_thread(models.listed)
        return info_of(listings, door.store(request).images(door.caller(request)))

    @router.post("/activelearning/{strategy}")
    async def next_sample(strategy: str, request: Request) -> dict[str, Any]:
        """The caller's first image without a final label; nothing where there is none."""
        if strategy not in STRATEGIES:
            raise HttpFailure(404, f"expected a strategy out of {', '.join(STRATEGIES)}, found {strategy[:40]!r}")
        images = door.store(request).images(door.caller(request))
        return next(
            ({"id": name, **info_of_file(name, one)} for name, one in images.items() if FINAL not in one.labels), {}
        )

    @router.get("/auth/")
    async def auth() -> dict[str, Any]:
        """Whether a token is needed."""
        return {"enabled": door.tokens.wanted, "client_id": "", "realm": ""}

    @router.post("/auth/token")
    async def sign_in(request: Request) -> dict[str, Any]:
        """Takes one of the operator's tokens as a password, whatever the name; the answer is the token."""
        if not door.tokens.wanted:
            return {"access_token": None, "token_type": None}
        form = await take_form(request, None, MOST_SIGN_IN, door.settings.upload_timeout_s)  # anybody may come here
        password = form.texts.get("password", "")
        if not door.tokens.knows(password.encode()):
            text = "expected one of the operator's tokens as the password, found another one"
            raise HttpFailure(401, text, {"WWW-Authenticate": "Bearer"})
        return {"access_token": password, "token_type": "Bearer"}

    @router.get("/auth/token/valid")
    async def valid() -> dict[str, Any]:
        """An answer for who has a token; nobody else comes here."""
        return {"username": "", "roles": []}

    return router


def _refusals() -> APIRouter:
    """What the protocol has and the gateway has not; the last of the routes."""
    router = APIRouter(include_in_schema=False)

    def refuse(prefix: str, what: str) -> None:
        @router.api_route(f"{prefix}/{{rest:path}}", methods=METHODS)
        async def refused(rest: str) -> None:
            raise HttpFailure(501, f"the gateway does not offer {what}; docs/how-to/slicer.md says what it does")

    for prefix, what in NOT_OFFERED.items():
        refuse(prefix, what)
    return router
