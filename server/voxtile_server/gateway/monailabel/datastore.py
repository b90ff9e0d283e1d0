"""The routes below `/datastore/`: images and labels that a client sends and asks for again."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from voxtile_server.gateway.failures import HttpFailure
from voxtile_server.gateway.monailabel.door import Door, ending_of, one_file_in
from voxtile_server.gateway.monailabel.info import all_of, info_of_file, pairs_of, stats_of
from voxtile_server.gateway.monailabel.params import object_in
from voxtile_server.gateway.monailabel.store import FINAL, Stored

VIEWS = {"": stats_of, "stats": stats_of, "all": all_of, "train": pairs_of}


def datastore_routes(door: Door) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/datastore", tags=["MONAI Label"])

    @router.get("/")
    async def seen(request: Request, output: str = "") -> Response:
        """The caller's images and labels: how many (`stats`), `all`, or the finished ones (`train`)."""
        if output not in VIEWS:
            raise HttpFailure(422, f"expected an output out of stats, all and train, found {output[:40]!r}")
        return JSONResponse(VIEWS[output](door.store(request).images(door.caller(request))))

    @router.put("/")
    @router.put("/image")
    async def add_image(request: Request, image: str = "") -> dict[str, str]:
        """Keeps the form's `file` for a while under the name `image`."""
        store = door.store(request)
        with store.arriving(door.announced(request)) as one:
            await _taken(request, one, "file")
            return {"image": await store.keep_image(door.caller(request), image, one)}

    @router.get("/image")
    @router.head("/image")
    async def get_image(request: Request, image: str = "", check_sum: str = "") -> Response:
        """An image."""
        if check_sum:
            raise HttpFailure(501, "expected no check_sum, found one; images are not compared by it here")
        return _file(image, door.store(request).image(door.caller(request), image))

    @router.get("/image/info")
    async def image_info(request: Request, image: str = "") -> dict[str, Any]:
        """What there is to say of an image."""
        return info_of_file(image, door.store(request).image(door.caller(request), image))

    @router.delete("/")
    @router.delete("/image")
    async def remove_image(request: Request, id: str = "") -> dict[str, Any]:
        """Removes an image and its labels."""
        door.store(request).remove_image(door.caller(request), id)
        return {}

    @router.put("/label")
    async def save_label(request: Request, image: str = "", tag: str = "") -> dict[str, Any]:
        """Keeps the form's `label` for as long as its image."""
        store, caller = door.store(request), door.caller(request)
        store.image(caller, image)  # before a byte is taken
        with store.arriving(door.announced(request)) as one:
            await _taken(request, one, "label")
            store.keep_label(caller, image, tag or FINAL, one)
        kept = f"kept until it is not used for {store.keep_s:g} s; save it on your side too"
        return {"image": image, "label": image, "tag": tag or FINAL, "note": kept}

    @router.get("/label")
    async def get_label(request: Request, label: str = "", tag: str = "") -> Response:
        """A label."""
        return _file(label, door.store(request).label(door.caller(request), label, tag or FINAL))

    @router.head("/label")
    async def check_label(request: Request, image: str = "", tag: str = "") -> Response:
        """Whether there is a label of an image."""
        return await get_label(request, image, tag)

    @router.get("/label/info")
    async def label_info(request: Request, label: str = "", tag: str = "") -> dict[str, Any]:
        """What there is to say of a label."""
        return info_of_file(label, door.store(request).label(door.caller(request), label, tag or FINAL))

    @router.delete("/label")
    async def remove_label(request: Request, id: str = "", tag: str = "") -> dict[str, Any]:
        """Removes a label."""
        door.store(request).remove_label(door.caller(request), id, tag or FINAL)
        return {}

    async def _taken(request: Request, one: Stored, field: str) -> None:
        """Takes the one file of a request, and what the client says of it."""
        form = await door.form(request, one.folder, partial(door.store(request).grow, one))
        file = one_file_in(form, field)
        one.files, one.ending = [file.path], ending_of([file])
        one.info = object_in(form.texts.get("params", ""))

    return router


def _file(name: str, one: Stored) -> Response:
    return FileResponse(one.files[0], media_type="application/octet-stream", filename=f"{name}{one.ending}")
