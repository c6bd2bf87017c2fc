"""Images of a request: files of a form, or one as the body. They stay in memory."""

import re
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from imago.serving.gate import shown
from imago.serving.limits import Limits, RefusedError
from imago.serving.service import Upload

if TYPE_CHECKING:
    from fastapi import Request

FORM = "multipart/form-data"
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")
HOW = "Send files as a form (curl -F images=@photo.jpg URL/predict), or one as the body (curl --data-binary @photo.jpg)"


async def uploads_of(request: "Request", limits: Limits) -> list[Upload]:
    """Read the images of a request.

    Raises:
        RefusedError: There are none, or too many, or the body is too large or no form.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM:
        uploads = await _files(request, limits)
    else:
        content = bytearray()
        async for chunk in _chunks(request, limits.max_body):
            content += chunk
        uploads = [Upload(None, bytes(content))] if content else []
    if not uploads:
        raise RefusedError(400, f"The request holds no image. {HOW}")
    return uploads


async def _chunks(request: "Request", most: int) -> AsyncGenerator[bytes, None]:
    """The body, as it comes."""
    too_large = RefusedError(
        413, f"The body has more than {most / 2**20:g} MB (max_body_mb). Send smaller or fewer images."
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise too_large
        yield chunk


async def _files(request: "Request", limits: Limits) -> list[Upload]:
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    most = limits.max_images
    headers = Headers({"content-type": f'{FORM}; boundary="{_boundary(request)}"'})  # its charset may be any codec
    parser = MultiPartParser(headers, _chunks(request, limits.max_body), max_files=most, max_fields=0)
    parser.spool_max_size = limits.max_body + 1  # in memory, and not in a temporary file
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise RefusedError(413, f"A request may hold {most} images (max_images). Send fewer at a time.") from error
        if "Too many fields" in error.message:  # its text has not been read
            raise RefusedError(400, f"A field of the form is no file. {HOW}") from error
        raise RefusedError(400, f"The form cannot be read. {error.message}") from error
    try:
        files = [(field, file) for field, file in form.multi_items() if isinstance(file, UploadFile)]
        return [Upload(shown(file.filename or field), await file.read()) for field, file in files]
    finally:
        await form.close()


def _boundary(request: "Request") -> str:
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"").decode("latin-1")
    if BOUNDARY.fullmatch(boundary) is None:
        raise RefusedError(400, "The form cannot be read. Its Content-Type has no valid boundary.")
    return boundary
