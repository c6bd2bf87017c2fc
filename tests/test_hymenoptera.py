import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from imago.data.hymenoptera import SHA256, URL, download_hymenoptera


def archive(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"content of " + name.encode())
    return buffer.getvalue()


GOOD = archive(["hymenoptera_data/train/ants/1.jpg", "hymenoptera_data/val/bees/2.jpg"])


@pytest.fixture
def serve():
    """`serve(content, promised)` answers with `content`, under a Content-Length of `promised`; returns the address."""
    servers, requests = [], []

    def start(content: bytes, promised: int | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(promised or len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/hymenoptera_data.zip"

    start.requests = requests
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_it_is_downloaded_once_and_unpacked(tmp_path, serve):
    url = serve(GOOD)
    for _ in range(2):
        folder = download_hymenoptera(str(tmp_path), url, sha(GOOD))
        assert folder == tmp_path / "hymenoptera_data"
        assert (folder / "train/ants/1.jpg").read_bytes() == b"content of hymenoptera_data/train/ants/1.jpg"
    assert len(serve.requests) == 1
    assert left(tmp_path) == ["hymenoptera_data"]


def test_data_that_is_there_is_taken(tmp_path):
    (tmp_path / "hymenoptera_data").mkdir()
    assert download_hymenoptera(str(tmp_path), "http://127.0.0.1:1/none") == tmp_path / "hymenoptera_data"


def test_an_archive_that_was_put_there_by_hand_is_taken(tmp_path):
    (tmp_path / "hymenoptera_data.zip").write_bytes(GOOD)
    assert (download_hymenoptera(str(tmp_path), "http://127.0.0.1:1/none", sha(GOOD)) / "val/bees/2.jpg").is_file()


def test_another_file_is_refused_and_removed(tmp_path, serve):
    with pytest.raises(ValueError, match=f"{sha(GOOD)} instead of {SHA256}"):
        download_hymenoptera(str(tmp_path), serve(GOOD))
    assert left(tmp_path) == []


def test_half_a_download_is_never_taken_for_data(tmp_path, serve):
    with pytest.raises(ConnectionError, match=f"{len(GOOD) // 2} of {len(GOOD)} bytes"):
        download_hymenoptera(str(tmp_path), serve(GOOD[: len(GOOD) // 2], promised=len(GOOD)), sha(GOOD))
    assert left(tmp_path) == []
    download_hymenoptera(str(tmp_path), serve(GOOD), sha(GOOD))


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "hymenoptera_data/../../outside.txt"])
def test_a_path_outside_the_folder_is_refused(tmp_path, serve, name):
    evil = archive(["hymenoptera_data/train/ants/1.jpg", name])
    with pytest.raises(ValueError, match="outside its folder"):
        download_hymenoptera(str(tmp_path / "data"), serve(evil), sha(evil))
    assert not list(tmp_path.rglob("outside.txt"))
    assert not (tmp_path / "data" / "hymenoptera_data").exists()


def test_without_a_network_one_message_says_what_to_do(command, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    run = command("train", "experiment=resnet18_ants", f"paths.data_dir={tmp_path}/data")
    assert run.exit_code == 1
    message = run.error
    for words in (URL, f"{tmp_path}/data/hymenoptera_data", "data.data_dir=PATH", "Network is unreachable"):
        assert words in message
    assert "Traceback" not in run.output
