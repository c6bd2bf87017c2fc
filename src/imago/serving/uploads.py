"""Images of a request: files of a form, or one as the body. They stay in memory."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from imago.serving.gate import shown
from imago.serving.limits import Limits, RefusedError
from imago.serving.service import Upload

if TYPE_CHECKING:
    from fastapi import Request

FORM = "multipart/form-data"
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
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    most = limits.max_images
    parser = MultiPartParser(request.headers, _chunks(request, limits.max_body), max_files=most, max_fields=most)
    parser.spool_max_size = limits.max_body + 1  # in memory, and not in a temporary file
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many" in error.message:
            raise RefusedError(413, f"A request may hold {most} images (max_images). Send fewer at a time.") from error
        raise RefusedError(400, f"The form cannot be read. {error.message}") from error
    try:
        files = []
        for field, file in form.multi_items():
            if not isinstance(file, UploadFile):
                raise RefusedError(400, f"The field {shown(field)} is no file. {HOW}")
            files.append(Upload(shown(file.filename or field), await file.read()))
        return files
    finally:
        await form.close()
