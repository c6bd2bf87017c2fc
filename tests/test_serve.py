"""ml-serve: answers, batches, limits, overload, damaged bodies, its end, and the page in a browser."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from helpers import REPO, Run, damaged_jpeg, photograph, rows, start_in_subprocess
from omegaconf import OmegaConf
from PIL import Image, TiffImagePlugin
from serve import fuzzed

import imago
from imago.config.carried import read_checkpoint_config
from imago.evaluation.calibration import Calibration
from imago.evaluation.calibration_file import file_beside, key_of, write
from imago.serving.address import listen, url_of
from imago.serving.limits import Limits
from imago.serving.predictor import Predictor
from imago.serving.server import make_server
from imago.serving.service import Service

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

KEY = "a-key-of-the-tests-0123"
UNUSUAL = '<img src=x onerror="document.title=1">.png'


def png(seed: int = 0, size: int = 20) -> bytes:
    file = io.BytesIO()
    photograph(seed, size).save(file, "PNG")
    return file.getvalue()


@contextmanager
def serving(predictor: Predictor, limits: Limits | None = None, **options: Any) -> Iterator[tuple[Any, Service]]:
    """A client of a server in a thread of this process, and what is behind it."""
    service = Service(predictor, limits or Limits(), **options)
    service.start()
    with listen("127.0.0.1", 0) as listener, httpx.Client(timeout=60) as client:
        server = make_server(service, listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        client.base_url = url_of(listener)
        try:
            yield client, service
        finally:
            server.should_exit = True
            thread.join(30)
            service.close()


@pytest.fixture(scope="module")
def predictor(trained: Run) -> Predictor:
    return Predictor([imago.load_classifier(trained.dir)])


@pytest.fixture(scope="module")
def calibrated(trained: Run, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a calibration beside it, which accepts some images and leaves others to a person."""
    folder = tmp_path_factory.mktemp("calibrated")
    file = Path(shutil.copy(trained.dir / "checkpoints" / "best.ckpt", folder / "best.ckpt"))
    classifier = imago.load_classifier(file)
    sure = sorted(p.probability for p in classifier.predict(sorted((colours / "val").rglob("*.png"))))
    data = OmegaConf.create(read_checkpoint_config(classifier.checkpoint["config"], file, True)).data
    key = key_of(classifier.checkpoint["timestamp"], data)
    sets = [0.1] * len(classifier.class_names)
    write(Calibration(1.0, (sure[6] + sure[7]) / 2, 0.9, None, sets, 0.9, 15, "val", key), file_beside(file))
    return file


@contextmanager
def typed(folder: Path, *words: str) -> Iterator[tuple[Any, Any]]:
    """`python src/imago/serve.py <words>` in a process of its own, when it serves; and a client of it."""
    words = (*words, "port=0", f"paths.log_dir={folder}/logs", f"hydra.run.dir={folder}/run")
    process = start_in_subprocess(folder, *words, script="src/imago/serve.py")
    try:
        while "Serving at" not in (said := (folder / "stdout").read_text() if (folder / "stdout").exists() else ""):
            assert process.is_alive(), said + (folder / "stderr").read_text()
            time.sleep(0.05)
        url = said.partition("Serving at ")[2].split()[0]
        with httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as client:
            yield client, process
    finally:
        process.kill()
        process.join()


def special_images(folder: Path) -> list[Path]:
    """Images that are decoded in different ways, one that is damaged inside, and one that is cut."""
    folder.mkdir()
    exif = Image.Exif()
    exif[274] = 6
    photograph(1).crop((0, 0, 96, 50)).save(folder / "turned.jpg", exif=exif)
    photograph(2).convert("CMYK").save(folder / "cmyk.jpg")
    photograph(3).convert("P").save(folder / "palette.png", transparency=3)
    Image.new("I;16", (30, 20), 40_000).save(folder / "deep.png")
    (folder / "damaged.jpg").write_bytes(damaged_jpeg())
    (folder / "cut.png").write_bytes(png()[:100])
    return sorted(folder.iterdir())


def assert_same(answer: dict[str, Any], row: dict[str, str]) -> None:
    if answer["error"] is not None:
        assert answer["error"].partition(": ")[2] == row["error"].partition(": ")[2]
        assert answer["prediction"] is None
        return
    assert (answer["prediction"], answer["warning"] or "") == (row["prediction"], row["warning"])
    assert answer["probability"] == pytest.approx(float(row["probability"]), abs=1e-6)
    for name, share in answer["probabilities"].items():
        assert share == pytest.approx(float(row[f"prob_{name}"]), abs=1e-6)
    assert int(answer["accepted"]) == int(row["accepted"])
    assert " | ".join(answer["set"]) == row["set"]


def test_the_command_answers_as_inference_does_and_finishes_what_is_in_flight(
    calibrated, colours, command, tmp_path, monkeypatch
):
    photos = [*sorted((colours / "val").rglob("*.png")), *special_images(tmp_path / "special")]
    (tmp_path / "list.txt").write_text("\n".join(map(str, photos)))
    words = [f"ckpt_path={calibrated}", f"source={tmp_path}/list.txt", "calibrated=true", "data.on_bad_image=skip"]
    wanted = command("inference", *words)
    assert wanted.exit_code == 0, wanted.output
    wanted_rows = rows_of(wanted)
    monkeypatch.setenv("IMAGO_API_KEY", KEY)
    with typed(tmp_path, f"ckpt_path={calibrated}") as (client, process):
        together = client.post("/predict", files=[("images", (path.name, path.read_bytes())) for path in photos])
        assert together.status_code == 200, together.text
        answers = together.json()["predictions"]
        assert [answer["name"] for answer in answers] == [path.name for path in photos]
        assert {answer["accepted"] for answer in answers} == {True, False, None}
        for answer, path, row in zip(answers, photos, wanted_rows, strict=True):
            assert_same(answer, row)
            alone = client.post("/predict", content=path.read_bytes())
            assert alone.status_code == (422 if row["error"] else 200)
            assert_same(alone.json()["predictions"][0], row)
        assert client.post("/predict", content=png(), headers={"Authorization": ""}).status_code == 401
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
            slow.settimeout(30)
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
            slow.sendall(f"{head}Content-Length: {len(png())}\r\n\r\n".encode() + png()[:50])
            while client.get("/health").json()["in_flight"] == 0:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGTERM)
            while (health := client.get("/health")).status_code == 200:
                time.sleep(0.05)
            assert (health.status_code, health.json()["status"]) == (503, "stopping")
            late = client.post("/predict", content=png())
            assert (late.status_code, late.json()) == (503, {"detail": "The server is stopping. Try again later."})
            assert late.headers["connection"] == "close"
            slow.sendall(png()[50:])
            assert slow.recv(1000).startswith(b"HTTP/1.1 200 OK")
        process.join(5)  # with nobody in flight it is there at once
        assert process.exitcode == 0, (tmp_path / "stderr").read_text()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "completed"
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def rows_of(run: Run) -> list[dict[str, str]]:
    (run.dir / "reports").mkdir(exist_ok=True)
    shutil.copy(run.dir / "predictions.csv", run.dir / "reports" / "predictions_source.csv")
    return rows(run, "source")


def test_ensembles_and_views_are_averaged_as_in_inference(trained, colours, command, calibrated):
    members = [imago.load_classifier(trained.dir), imago.load_classifier(calibrated)]
    words = [f"ckpt_path=[{trained.dir},{calibrated}]", "weights=[2,1]", "tta=ten_crop", f"source={colours}/val/red"]
    wanted = rows_of(command("inference", *words))
    with serving(Predictor(members, [2, 1], "ten_crop")) as (client, _):
        for row in wanted:
            content = (colours / "val" / "red" / row["path"]).read_bytes()
            answer = client.post("/predict", content=content).json()["predictions"][0]
            assert answer["accepted"] is None
            for name, share in answer["probabilities"].items():
                assert share == pytest.approx(float(row[f"prob_{name}"]), abs=1e-6)


def test_requests_beyond_a_limit_are_refused_with_a_sentence(predictor):
    limits = Limits(max_body=20_000, max_images=3, max_pixels=10_000, max_in_flight=2, timeout_s=1)
    bomb = io.BytesIO()
    Image.new("1", (4000, 4000)).save(bomb, "PNG")
    scans = io.BytesIO()
    photograph(1).save(scans, "JPEG")
    page, thumbnail = io.BytesIO(), TiffImagePlugin.ImageFileDirectory_v2()
    thumbnail[254] = 1
    pages = [Image.new("1", (4000, 4000))]
    pages[0].encoderinfo = {"tiffinfo": {}}  # without the tag of the first page
    Image.new("1", (1, 1)).save(
        page, "TIFF", save_all=True, compression="group4", tiffinfo=thumbnail, append_images=pages
    )
    tiled = TiffImagePlugin.ImageFileDirectory_v2()
    tiled[256], tiled[257], tiled[258], tiled[262], tiled[322], tiled[323] = 1, 1, 8, 1, 4000, 4000
    tiled[324], tiled[325] = 8, 8  # offset and length of the tile, which is not reached
    tile = io.BytesIO()
    tile.write(b"II*\0\x08\0\0\0" + tiled.tobytes(8))
    punycode = "multipart/form-data; boundary=BB; charset=punycode"
    text = b'--BB\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + bytes(19_000) + b"\r\n--BB--\r\n"
    escape = "multipart/form-data; boundary=BB; charset=unicode_escape"
    named = rb'Content-Disposition: form-data; name="a"; filename="\ud800.jpg"'
    named = b"--BB\r\n" + named + b"\r\n\r\nx\r\n--BB--\r\n"
    with serving(predictor, limits, api_key=KEY) as (client, service):
        host, port = client.base_url.host, client.base_url.port
        open_routes = {client.get(path).status_code for path in ("/", "/health", "/openapi.json")}
        assert open_routes == {200}
        refused = {
            path: client.get(path).status_code for path in ("/metrics", "/predict", "/docs", "/../../etc/passwd")
        }
        assert refused == dict.fromkeys(refused, 401)
        client.headers["Authorization"] = f"Bearer {KEY}"
        one = ("images", ("a.png", png()))
        cases: list[tuple[int, str, dict[str, Any]]] = [
            (413, "more than 0.0190735 MB (max_body_mb)", {"content": bytes(20_001)}),
            (413, "max_body_mb", {"content": iter([bytes(15_000), bytes(15_000)])}),
            (413, "may hold 3 images (max_images)", {"files": [one] * 4}),
            (422, "4000 x 4000 pixels are more than 10,000 (max_pixels)", {"content": bomb.getvalue()}),
            (422, "scans of 9,216 pixels", {"content": scans.getvalue() + b"\xff\xda" * 100}),
            (422, "4000 x 4000 pixels are more than 10,000 (max_pixels)", {"content": page.getvalue()}),
            (422, "tiles of 4000 x 4000 pixels are more than 10,000", {"content": tile.getvalue()}),
            (400, "A field of the form is no file", {"content": text, "headers": {"Content-Type": punycode}}),
            (422, "ud800.jpg: not an image", {"content": named, "headers": {"Content-Type": escape}}),
            (422, "an.txt: not an image", {"files": [("images", ("an.txt", b"hello"))]}),
            (400, "holds no image. Send files as a form", {"content": b""}),
            (400, "A field of the form is no file", {"data": {"photo": "x"}, "files": [one]}),
            (400, "The form cannot be read", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
            (400, "names evil.example, but this server is", {"content": png(), "headers": {"Host": "evil.example"}}),
            (403, "A page of http://evil.example may", {"content": b"", "headers": {"Origin": "http://evil.example"}}),
            (403, "A page of null may", {"content": b"", "headers": {"Origin": "null"}}),
            (403, "A page of http://localhost:1 may", {"content": b"", "headers": {"Origin": "http://localhost:1"}}),
            (401, "Authorization: Bearer KEY", {"content": png(), "headers": {"Authorization": f"Bearer {KEY}x"}}),
        ]
        for status, sentence, message in cases:
            answer = client.post("/predict", **message)
            assert (answer.status_code, sentence in answer.json()["detail"]) == (status, True), answer.text
        assert client.post("/predict", files=[one, ("images", ("b.png", b"x"))]).status_code == 200  # one can be read
        own = {"Origin": f"http://{host}:{port}"}
        assert client.post("/predict", content=png(), headers=own).status_code == 200
        with socket.create_connection((host, port)) as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
            assert (head[:12], json.loads(body)) == (b"HTTP/1.1 400", {"detail": "The request is not valid HTTP."})
        with ExitStack() as stack:
            silent, *slow = (stack.enter_context(socket.create_connection((host, port))) for _ in range(3))
            for connection in slow:
                key = f"Authorization: Bearer {KEY}"
                connection.sendall(
                    f"POST /predict HTTP/1.1\r\nHost: {host}\r\n{key}\r\nContent-Length: 9\r\n\r\nx".encode()
                )
            while service.in_flight < 2:
                time.sleep(0.01)
            full = client.post("/predict", content=png())
            assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
            for connection in slow:
                connection.settimeout(20)
                assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
            silent.settimeout(20)
            assert silent.recv(1) == b""  # closed
        assert client.post("/predict", content=png()).status_code == 200
        assert client.get("/predict").json()["detail"].startswith("There is no GET /predict here. Images go to POST")
        routes = client.get("/openapi.json").json()["paths"]
        assert {name: [*route] for name, route in routes.items()} == {
            "/predict": ["post"],
            "/health": ["get"],
            "/metrics": ["get"],
        }


def test_connections_of_clients_that_do_not_read_are_cut(predictor, monkeypatch):
    monkeypatch.setattr("imago.serving.connection.SLOW_READER_S", 0.5)
    with serving(predictor, Limits(timeout_s=1)) as (client, service):
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((client.base_url.host, client.base_url.port))
            deaf.setblocking(False)
            with suppress(BlockingIOError):
                deaf.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
            time.sleep(0.2)
            deaf.settimeout(20)
            while True:  # sending fails once the connection is cut
                try:
                    deaf.send(b"x")
                except OSError:
                    break
                time.sleep(0.05)
        assert client.get("/health").json() == {"status": "ok", "in_flight": 0}
        assert service.in_flight == 0


def test_under_overload_every_request_is_answered_and_images_share_batches(predictor):
    with serving(predictor, Limits(max_in_flight=4), max_batch_size=8, batch_wait_ms=500, network_threads=2) as (
        client,
        _,
    ):
        files = [("images", (f"{n}.png", png(n))) for n in range(8)]
        assert client.post("/predict", files=files).status_code == 200
        before = float(metric(client, "imago_batch_images_count"))
        assert before <= 5
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda n: client.post("/predict", content=png(n)), range(200)))
        statuses = [answer.status_code for answer in answers]
        assert {200} <= {*statuses} <= {200, 429}
        assert float(metric(client, 'imago_images_total{result="predicted"}')) == 8 + statuses.count(200)
        assert client.get("/health").json() == {"status": "ok", "in_flight": 0}


def metric(client: Any, name: str) -> str:
    return next(line.split()[-1] for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} "))


def test_damaged_bodies_are_refused_and_harm_nothing(predictor):
    with serving(predictor, Limits(max_images=8, timeout_s=20), network_threads=2) as (client, _):
        before = client.post("/predict", content=png()).json()
        statuses = set()
        for seed in range(300):
            kind, content = fuzzed(seed)
            answer = client.post("/predict", content=content, headers={"Content-Type": kind})
            statuses.add(answer.status_code)
            assert answer.json().keys() & {"predictions", "detail"}, (seed, answer.text)
        assert {200, 400, 422} <= statuses <= {200, 400, 413, 422}
        after = client.post("/predict", content=png()).json()
        shares = [[*each["predictions"][0]["probabilities"].values()] for each in (before, after)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-6)


def test_a_network_that_fails_or_hangs_is_said(trained):
    predictor = Predictor([imago.load_classifier(trained.dir)])
    with serving(predictor, Limits(timeout_s=1)) as (client, _):
        net, go_on = predictor.members[0].model, threading.Event()
        hook = net.register_forward_pre_hook(lambda *_: go_on.wait(20) and None)
        assert client.post("/predict", content=png()).status_code == 503
        time.sleep(0.2)
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "stuck")
        go_on.set()
        hook.remove()
        assert client.post("/predict", content=png()).status_code == 200
        hook = net.register_forward_pre_hook(lambda *_: 1 / 0)
        failed = client.post("/predict", content=png())
        assert (failed.status_code, failed.json()) == (500, {"detail": "The server failed. Its log says why."})
        hook.remove()
        assert client.post("/predict", content=png()).status_code == 200


def test_a_server_stops_in_time_whatever_is_in_flight(trained, monkeypatch):
    monkeypatch.setattr("imago.serving.server.STOP_S", 0.5)
    predictor = Predictor([imago.load_classifier(trained.dir)])
    go_on = threading.Event()
    predictor.members[0].model.register_forward_pre_hook(lambda *_: go_on.wait(20) and None)
    with ThreadPoolExecutor(1) as pool:
        go_on.set()
        with serving(predictor, network_threads=2) as (client, service):
            go_on.clear()
            asked = pool.submit(client.post, "/predict", content=png())
            while service.batcher.busy_s == 0:
                time.sleep(0.01)
            began = time.monotonic()
        seconds = time.monotonic() - began
        go_on.set()
    assert (asked.result().status_code, asked.result().json()["detail"][:23]) == (503, "The server is stopping.")
    assert 0.5 <= seconds < 7  # a second for slow readers, one for the network, and the rest for a busy machine


def test_the_lines_of_the_docs_are_answered(predictor, tmp_path):
    page = (REPO / "docs" / "serve.md").read_text()
    (tmp_path / "photo.jpg").write_bytes(png(1))
    (tmp_path / "other.png").write_bytes(png(2))
    (asking,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    typed_lines = [*asking.splitlines(), f"{sys.executable} -c {shlex.quote(code)}"]
    wanted = [prediction.class_name for prediction in predictor.members[0].predict([png(1), png(2)])]
    with serving(predictor) as (client, _):
        here = [line.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/")) for line in typed_lines]
        one, two, said = (subprocess.check_output(line, shell=True, cwd=tmp_path, text=True) for line in here)
    assert [entry["prediction"] for entry in json.loads(one)["predictions"]] == wanted[:1]
    assert [(entry["name"], entry["prediction"]) for entry in json.loads(two)["predictions"]] == [
        ("photo.jpg", wanted[0]),
        ("other.png", wanted[1]),
    ]
    assert said.split()[0] == wanted[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["port=PORT"], "is in use. Type another one, such as port="),
        ([], "ml-serve needs uvicorn, not installed here: pip install 'imago[serve]'"),
        (["api_key=short"], "api_key must have 16 characters or more"),
        (["trainer=gpu"], "trainer=gpu has no use in ml-serve"),
        (["device=gpu0"], "Type device=cpu, cuda, cuda:1, … or auto"),
    ],
)
def test_settings_that_cannot_work_are_refused(command, trained, words, message, monkeypatch):
    if "needs" in message:
        monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(imago.UserError, match="host=256.1.1.1 is no address of this machine"):
        listen("256.1.1.1", 0)
    with listen("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        run = command("serve", f"ckpt_path={trained.dir}", *(word.replace("PORT", port) for word in words))
    assert (run.exit_code, message in run.output) == (1, True), run.output
    assert "short" not in run.output


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_images_are_dropped_on_the_page_in_a_browser(predictor, tmp_path):
    (member,) = predictor.members
    sure = member.predict([png(1), png(2)])
    threshold = sum(prediction.probability for prediction in sure) / 2
    classifier = imago.load_classifier(member.file)
    sets = [0.1] * len(classifier.class_names)
    classifier.calibration = Calibration(1.0, threshold, 0.9, None, sets, 0.9, 15, "val", "none")
    files = {"sure.png": png(1), UNUSUAL: png(2), "text.txt": b"no image"}
    contents = json.dumps({name: base64.b64encode(content).decode() for name, content in files.items()})
    drop = f"""(async () => {{
      document.getElementById("key").value = "{KEY}";
      const data = new DataTransfer();
      for (const [name, text] of Object.entries({contents}))
        data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
      document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: data, bubbles: true, cancelable: true }}));
      while (document.querySelector("div.waiting")) await new Promise((go) => setTimeout(go, 20));
      return Object.fromEntries([...document.querySelectorAll("#results li")].map((each) =>
        [each.querySelector("h2").textContent, each.innerText.split("\\n").filter(Boolean).slice(1)]));
    }})()"""
    with serving(Predictor([classifier]), api_key=KEY) as (client, _):
        with Browser(tmp_path / "profile") as page:
            page.open(str(client.base_url))
            shown = page.value(drop)
            title = page.value("document.title")
        assert "script-src 'sha256-" in client.get("/").headers["content-security-policy"]
    assert title == "Imago"
    assert shown.pop("text.txt") == ["text.txt: not an image"]
    assert {*shown} == {"sure.png", UNUSUAL}
    for name, prediction in zip(("sure.png", UNUSUAL), sure, strict=True):
        assert shown[name][0] == prediction.class_name
        assert ("left to a person" in shown[name]) is (prediction.probability < threshold)
        assert f"{prediction.probability:.1%}" in shown[name]
