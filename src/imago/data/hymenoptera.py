"""Ants and bees: the photographs of PyTorch's transfer-learning tutorial."""

import hashlib
import logging
import shutil
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from imago.errors import DownloadError, UserError
from imago.files import atomic_folder, atomic_write

log = logging.getLogger(__name__)

URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
SHA256 = "fbc41b31d544714d18dd1230b1e2b455e1557766e13e67f9f5a7a23af7c02209"


def download_hymenoptera(root: str, url: str = URL, sha256: str = SHA256) -> Path:
    """Return the folder `root`/hymenoptera_data with `train/ val/` of ants and bees, downloaded at the first call.

    Raises:
        ConnectionError: The download failed; the message says what to do by hand.
        ValueError: The downloaded file is not the expected one.
    """
    folder = Path(root) / "hymenoptera_data"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(".hymenoptera_data.lock")):
        if not folder.is_dir():
            archive = folder.with_name("hymenoptera_data.zip")
            if not archive.is_file():  # it may have been put here by hand
                _download(url, archive, folder)
            _check(archive, sha256, url)
            _unpack(archive, folder)
            archive.unlink()
    return folder


def _download(url: str, archive: Path, folder: Path) -> None:
    log.info("Downloading %s (47 MB)", url)
    for leftover in archive.parent.glob(f".{archive.name}.*.tmp"):  # from a download that was killed
        leftover.unlink()
    try:
        with atomic_write(archive) as temporary, urllib.request.urlopen(url, timeout=20) as response:
            with temporary.open("wb") as file:
                shutil.copyfileobj(response, file)
            expected = response.headers.get("Content-Length")
            if expected is not None and temporary.stat().st_size != int(expected):
                raise DownloadError(f"the connection broke after {temporary.stat().st_size} of {expected} bytes")
    except (OSError, HTTPException) as error:  # no network, an HTTP status, a broken connection, a time-out
        raise DownloadError(
            f"The ants and bees could not be downloaded ({error}). Either\n"
            f"  download {url} into {folder.parent}, or unpack it so that {folder}/train exists, or\n"
            "  type data.data_dir=PATH with the folder that contains them"
        ) from error


def _check(archive: Path, sha256: str, url: str) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        archive.unlink()
        raise UserError(f"{url} returned a file with SHA-256 {digest} instead of {sha256}. It was removed. Try again.")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive's one folder as `folder`, all or nothing."""
    with atomic_folder(folder) as temporary, zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if not (temporary / name).resolve().is_relative_to(temporary.resolve()):
                raise UserError(f"{archive} contains {name!r}, a path outside its folder. Nothing was unpacked.")
        file.extractall(temporary)
        inner = temporary / folder.name
        for child in inner.iterdir():
            child.rename(temporary / child.name)
        inner.rmdir()
