"""Shards: what ml-shard writes, what is read of it, and what is said of damage."""

import json
import os
import random
import resource
import shutil
import signal
import tarfile
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, Run, draw_classes, rows, same, type_shard

from imago.data.columns import PackedNames
from imago.data.crops import CenterBox
from imago.data.samplers import TrainBatchSampler
from imago.data.shard_index import map_arrays, read_index, write_arrays
from imago.data.shards import ShardDataModule
from imago.data.split_files import read_rows
from imago.data.transforms import ImageTransform, Normalize
from imago.errors import UserError

TRANSFORM = ImageTransform(CenterBox(1.0), batch={"normalize": Normalize(mean=[0.5] * 3, std=[0.5] * 3)})
PER_SHARD = 0.0125  # MB: four images, of three blocks and three headers each


@pytest.fixture(scope="module")
def shards(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `colours` in shards of a few. Not to be changed."""
    folder = tmp_path_factory.mktemp("shards") / "colours"
    type_shard(colours, "--output", folder, "--shard-mb", PER_SHARD)
    return folder


@pytest.fixture
def own_shards(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "own"))


def module(folder: object, **options: object) -> ShardDataModule:
    settings = {"num_workers": 0, "image_size": 16, "batch_size": 8, "cache": "none"} | options
    return ShardDataModule(str(folder), TRANSFORM, TRANSFORM, **settings)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_tars_hold_the_files_and_their_labels_as_webdataset_reads_them(tmp_path):
    root = draw_classes(tmp_path / "photos", {"blue": 3, "red": 3})
    odd = [
        "a.v1.png",
        "a.v2.png",
        "twins.png",
        "twins.PNG",
        "twins.PNG..png",
        "100%.png",
        f"{'long' * 40}.png",
        "größe.png",
    ]
    for name in odd:
        shutil.copy(root / "red" / "000.png", root / "red" / name)
    type_shard(root, "--output", tmp_path / "out")
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            key, _, suffix = name.partition(".")  # as webdataset, and Hugging Face, divide a name
            sample = samples.setdefault(f"{folder}/{key}", {})
            assert suffix not in sample
            sample[suffix] = tar.extractfile(member).read()
    assert len(samples) == 6 + len(odd)
    assert all(sample.keys() in ({"png", "cls"}, {"PNG", "cls"}) for sample in samples.values())
    assert {key: sample["cls"] for key, sample in samples.items() if "00" in key} == {
        **{f"blue/00{n}": b"0" for n in range(3)},
        **{f"red/00{n}": b"1" for n in range(3)},
        "red/100%25": b"1",
    }
    assert samples["blue/001"]["png"] == (root / "blue" / "001.png").read_bytes()
    images = read_index(tmp_path / "out" / "index.npz").splits["train"]
    data = module(tmp_path / "out").sets
    paths = [path for images in data.splits.values() for path in images.paths]
    assert sorted(paths) == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))
    assert sum(getattr(images, name).itemsize for name in ("label", "shard", "block", "size", "crc")) <= 16


def test_a_second_start_resumes_to_the_same_bytes(colours, shards, tmp_path):
    child = os.fork()
    if child == 0:
        type_shard(colours, "--output", tmp_path / "out", "--shard-mb", PER_SHARD)
        os._exit(0)
    until = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("train-*.tar"))) < 3 and time.monotonic() < until:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    out = tmp_path / "out"
    (out / ".train-000099.tar.17.tmp").write_bytes(b"left by a kill")
    (out / "train-000099.tar").write_bytes(b"of another plan")
    (out / "my-backup.tar").write_bytes(b"of the user")
    (out / ".ml-shard" / "train-000002.tar.npz").write_bytes(b"cut by a full disk")
    with (out / "train-000001.tar").open("r+b") as damaged:
        damaged.seek(600)
        damaged.write(b"!")
    kept = (out / "train-000000.tar").stat().st_mtime_ns
    type_shard(colours, "--output", out, "--shard-mb", PER_SHARD)
    assert contents(out) == contents(shards) | {"my-backup.tar": b"of the user"}
    assert (out / "train-000000.tar").stat().st_mtime_ns == kept


def test_a_full_disk_ends_with_a_sentence_and_the_next_start_resumes(colours, shards, tmp_path):
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (18_000, limits[1]))  # a shard has 20,480 bytes
        with pytest.raises(SystemExit, match="could not be written .* type the same words again: it continues"):
            type_shard(colours, "--output", out, "--shard-mb", PER_SHARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(contents(out)) == []
    type_shard(colours, "--output", out, "--shard-mb", PER_SHARD)
    assert contents(out) == contents(shards)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist. Type a folder of images, or a file of ml-split"),
        (["{colours}", "--shard-mb", "0"], "--shard-mb must be above 0"),
        (["data.data_dir={colours}"], "Type: ml-shard {colours} --output {out}"),
        (["{out}"], "there is already"),
        (
            ["{colours}/train", "--output", "{colours}/train/SHARDS"],
            "SHARDS lies in {colours}/train, where it would be taken",
        ),
        (["{table}"], ".png is listed 2 times"),
        (["{colours}"], "already exists, and is not a folder of ml-shard"),
    ],
)
def test_shards_that_cannot_be_written_are_refused(colours, tmp_path, words, message):
    out = tmp_path / "out"
    if message.startswith("already"):
        out.mkdir()
        (out / "thesis.txt").touch()
    table = tmp_path / "table.csv"
    image = next((colours / "train").rglob("*.png"))
    table.write_text("path,label\n" + f"{image},red\n{colours / 'train' / 'blue' / '000.png'},blue\n" * 2)
    words = [word.format(colours=colours, out=out, table=table) for word in words]
    if words == [str(out)]:
        type_shard(colours, "--output", out, "--shard-mb", PER_SHARD)
        words, message = [str(colours)], "has the shards of {colours} with --shard-mb 0.0125. Type another --output"
    with pytest.raises(SystemExit) as stop:
        type_shard(*words, *([] if "--output" in words else ["--output", out]))
    assert message.format(colours=colours, out=out) in str(stop.value)


def test_shards_give_the_weights_of_the_folder_to_the_bit(shards, train, command):
    folder = train("data.decode=fast")
    run = command("train", "data=shards", f"data.shards={shards}", "data.window=null", "data.decode=fast", *SMALL)
    assert run.exit_code == 0, run.output
    assert same(run.weights(), folder.weights())
    assert run.history == folder.history
    assert rows(run, "test") == rows(folder, "test")
    scored = command("eval", f"ckpt_path={run.dir}", "data.num_workers=0", "trainer.accelerator=cpu")
    assert scored.exit_code == 0, scored.output
    assert scored.json("reports/metrics_test.json")["acc"] == run.json("reports/metrics_test.json")["acc"]
    both = [one.checkpoint()["imago"]["train_images"] for one in (run, folder)]
    assert torch.equal(*both)


def test_a_run_resumes_within_an_epoch_of_windows_to_the_same_bits(shards, command, tmp_path):
    to = tmp_path / "snapshots"
    watch = ["+callbacks.snapshots._target_=snapshots.Snapshots", f"+callbacks.snapshots.to={to}"]
    words = ["data=shards", f"data.shards={shards}", "data.window=2", "callbacks.resume.every_n_train_steps=1"]
    whole = command("train", *words, *SMALL, *watch)
    assert whole.exit_code == 0, whole.output
    for folder in (to / "002", to / "007"):
        run = command("train", f"resume={folder}", "callbacks.snapshots=null", folder=folder)
        assert run.exit_code == 0, run.output
        assert same(run.weights(), whole.weights())
        assert run.history == whole.history
    other = command("train", f"resume={to / '003'}", "data.window=3", "callbacks.snapshots=null", folder=to / "003")
    said = " ".join(other.output.split())
    assert "data.window: 2, now 3. To resume, type data.window=2" in said, said


def epoch(images, number: int = 0, rank: int = 0, processes: int = 1, seed: int = 42) -> list[int]:
    sampler = TrainBatchSampler(images, 4, seed, rank=rank, processes=processes)
    sampler.epoch = number
    return [index for batch in sampler for _, index in batch]


def test_the_order_mixes_windows_of_shards_and_is_a_function_of_seed_and_epoch(shards):
    images = module(shards, window=2).sets.splits["train"]
    order, shard_of = images.order(torch.randperm(39), torch.Generator()).tolist(), images.index.shard
    assert sorted(order) == list(range(39))
    assert len(images.index.shard_size) == 10
    windows = []  # sets of shards, in the order in which they are read
    for index in order:
        number = int(shard_of[index])
        if not windows or (number not in windows[-1] and len(windows[-1]) == 2):
            windows.append(set())
        windows[-1].add(number)
    assert len(windows) == 5
    assert set().union(*windows) == set(range(10))
    order = epoch(images)
    assert order == epoch(images)
    assert order != epoch(images, 1)
    assert order != epoch(images, seed=1)
    halves = [epoch(images, rank=rank, processes=2) for rank in (0, 1)]
    assert {*halves[0], *halves[1]} == {*order}
    fewer = images.without({images.paths[order[0]]})
    assert [fewer.paths[index] for index in epoch(fewer)][:20] == [images.paths[index] for index in order[1:21]]
    assert epoch(module(shards, window=10).sets.splits["train"]) == epoch(
        module(shards, window=None).sets.splits["train"]
    )


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda out: (out / "train-000002.tar").unlink(),
            "has 1 shard missing: train-000002.tar. Copy it again, or type",
        ),
        (lambda out: os.truncate(out / "val-000000.tar", 700), "1 shard of another size than written: val-000000.tar"),
        (lambda out: (out / "index.npz").unlink(), "has no index.npz. ml-shard has not finished: type it again"),
        (lambda out: os.truncate(out / "index.npz", 900), "index.npz is damaged, or no index of shards"),
        (lambda out: flip(out / "train-000003.tar", 700), "is damaged: the bytes of an image do not have the checksum"),
        (shutil.rmtree, "is no folder. It must be a folder that ml-shard wrote"),
    ],
)
def test_damage_is_named_with_its_shard(own_shards, spoil, message):
    spoil(own_shards)
    with pytest.raises(ValueError, match=message) as refused:
        list(module(own_shards).train_dataloader())
    assert "ml-shard" in str(refused.value)


ODD_COLUMNS = {
    "train.label": lambda column: column.astype(np.int64) - 1,
    "train.block": lambda column: np.full(len(column), 2**63, np.uint64),
    "train.size": lambda column: np.full(len(column), 2**32 - 1, np.uint32),
    "train.crc": lambda column: np.zeros(len(column), [("a", "u4")]),
    "train.name_starts": lambda column: column[::-1],
    "train.names": lambda column: np.full_like(column, 65),
    "meta": lambda column: np.frombuffer(b"[" * 10**5, np.uint8),
}


@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_an_index_by_a_stranger_ends_with_a_sentence(own_shards, name):
    columns = map_arrays(own_shards / "index.npz")
    write_arrays(own_shards / "index.npz", columns | {name: ODD_COLUMNS[name](columns[name])})
    with pytest.raises(UserError, match="damaged|ends before an image that the index has there"):
        list(module(own_shards).train_dataloader())


def test_no_damage_of_an_index_goes_beyond_a_sentence(own_shards):
    file, drawn = own_shards / "index.npz", random.Random(0)
    whole = file.read_bytes()
    for cut in range(300):
        content = bytearray(whole[: drawn.randrange(len(whole))] if cut % 3 == 0 else whole)
        for _ in range(cut % 3 * 2):
            content[drawn.randrange(len(content))] = drawn.randrange(256)
        file.write_bytes(content)
        with suppress(UserError):
            for columns in read_index(file).splits.values():
                list(PackedNames(columns))


def test_a_run_ends_with_a_sentence_on_damage(own_shards, command):
    flip(own_shards / "train-000003.tar", 700)
    words = ("data=shards", f"data.shards={own_shards}", *SMALL, "data.num_workers=1", "trainer.max_epochs=1")
    run = command("train", *words, "data.cache=none", "preflight=false")
    assert run.exit_code == 1
    assert f"train-000003.tar in {own_shards} is damaged" in run.error
    assert "Traceback" not in run.output
    shutil.rmtree(own_shards)
    assert "does not exist. Make it with: ml-shard PHOTOS --output" in command("train", *words).error


def test_without_shards_it_is_said_what_to_type(command):
    assert "ml-train data=shards data.shards=DIR" in command("train", "data=shards").error


def test_workers_map_the_index_and_copy_none_of_it(shards):
    import pickle

    images = module(shards).sets.splits["train"]
    sent = pickle.dumps(images)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    assert list(again.paths) == list(images.paths)
    assert list(again.labels) == list(images.labels)
    assert torch.equal(again.read(3), images.read(3))
    data = module(shards, num_workers=2)
    batches = list(data.train_dataloader())
    data.teardown("fit")
    for a, b in zip(batches, module(shards).train_dataloader(), strict=True):
        assert torch.equal(a["image"], b["image"])


def test_a_table_of_splits_and_exclusions_are_followed(tmp_path, own_colours):
    table, images = tmp_path / "splits.csv", sorted((own_colours / "train").rglob("*.png"))
    splits = ["train", "val", "train", "test"]
    lines = [f"{splits[n % 4]},{path.relative_to(own_colours)},{path.parent.name}" for n, path in enumerate(images)]
    table.write_text("\n".join(["split,path,label", *lines]))
    (tmp_path / "exclude.txt").write_text("train/red/000.png\n")
    (own_colours / "splits.csv").write_text(table.read_text())
    type_shard(own_colours / "splits.csv", "--output", tmp_path / "out", "--exclude", tmp_path / "exclude.txt")
    data = module(tmp_path / "out")
    counts = {split: sum(line.startswith(split) for line in lines) for split in ("train", "val", "test")}
    assert data.sizes == counts | {"train": counts["train"] - 1}
    assert "train/red/000.png" not in data.split("train").paths
    (tmp_path / "exclude.txt").write_text("train/blue/000.png\n")
    assert module(tmp_path / "out", exclude=str(tmp_path / "exclude.txt")).sizes["train"] == counts["train"] - 2
    assert data.sets.groups == {}
    groups = [f"{line},{'' if n % 5 == 0 else f'p{n % 4}{n % 3}'}" for n, line in enumerate(lines)]
    (own_colours / "splits.csv").write_text("\n".join(["split,path,label,group", *groups]))
    type_shard(own_colours / "splits.csv", "--output", tmp_path / "out")
    group_of = read_rows(own_colours / "splits.csv", None).groups
    kept = module(tmp_path / "out").sets.groups  # by numbers, which are equal where the names are
    assert kept.keys() == group_of.keys()
    pairs = {(kept[path], group) for path, group in group_of.items()}
    assert len(pairs) == len({*kept.values()}) == len({*group_of.values()})
    assert {kept[path] for path, group in group_of.items() if not group} == {""}
    with pytest.raises(UserError, match="data.calibration_ratio=0.5 draws single images"):
        module(tmp_path / "out", calibration_ratio=0.5)


def test_the_doctor_reads_every_shard(own_shards, command, server):
    def faults(run: Run) -> list[tuple[str, str]]:
        return [
            (fault["kind"], fault["path"]) for fault in run.json("doctor.json")["faults"] if fault["level"] != "note"
        ]

    whole = command("doctor", "data=shards", f"data.shards={own_shards}", "data.image_size=16")
    assert (whole.exit_code, faults(whole)) == (0, []), whole.output
    assert whole.json("doctor.json")["counts"]["train"] == {"blue": 14, "green": 12, "red": 13}
    flip(own_shards / "train-000003.tar", 700)
    (own_shards / "val-000001.tar").unlink()
    run = command("doctor", "data=shards", f"data.shards={own_shards}", "data.image_size=16")
    assert run.exit_code == 2
    assert {path for kind, path in faults(run) if kind == "damaged shard"} == {"train-000003.tar", "val-000001.tar"}
    by_url = command(
        "doctor", "data=shards", f"data.shards={server.url}", "data.image_size=16", "data.shard_cache_gb=1e-4"
    )
    assert {*faults(by_url)} == {*faults(run)}
    assert by_url.json("doctor.json")["root"] == server.url


class Server(ThreadingHTTPServer):
    """Serves a folder; what each file has been asked for decides how it answers."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.faults: tuple[str, ...] = ()
        self.faulty = ".tar"
        self.url = f"http://127.0.0.1:{self.server_port}/data"


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the output of the tests clean."""

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        tries = self.server.asked[name]
        self.server.asked[name] += 1
        self.answer(
            self.server.faults[tries] if name.endswith(self.server.faulty) and tries < len(self.server.faults) else ""
        )

    def answer(self, fault: str = "") -> None:
        file = self.server.folder / self.path.rpartition("/")[2]
        if not file.is_file():
            self.send_error(404)
            return
        if fault == "drop":
            self.connection.close()
            return
        if fault.isdecimal():
            self.send_response(int(fault))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.close_connection = True
            return
        content = bytearray(file.read_bytes())
        if fault == "delay":
            time.sleep(0.2)
        if fault == "flip":
            content[700] ^= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        parts = {"halves": 2, "slow": 20}.get(fault, 1)
        for part in np.array_split(np.frombuffer(content, np.uint8), parts):
            self.wfile.write(part[:9000] if fault == "cut" else part)
            time.sleep(0.05 if parts > 1 else 0)
        self.close_connection = fault == "cut"


@pytest.fixture
def server(own_shards, monkeypatch):
    monkeypatch.setattr("imago.data.shard_download.DELAY", 0.01)
    with Server(own_shards) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def batches_of(data: ShardDataModule) -> list[torch.Tensor]:
    return [batch["image"] for batch in data.train_dataloader()]


def cached(folder: Path) -> list[Path]:
    return sorted(folder.glob("shards/*/*.tar"))


def test_a_server_that_drops_cuts_and_delays_gives_what_the_disk_gives(server, shards, tmp_path, caplog):
    server.faults = ("drop", "cut", "flip", "delay")
    data = module(server.url, window=2, shard_cache_gb=0.0001, cache_dir=str(tmp_path))
    sizes, local = [], batches_of(module(shards, window=2))
    for batch, expected in zip(data.train_dataloader(), local, strict=True):
        assert torch.equal(batch["image"], expected)
        sizes.append(sum(path.stat().st_size for path in cached(tmp_path)))
    assert max(sizes) <= 100_000
    assert {server.asked[f"train-{n:06d}.tar"] for n in range(10)} == {4}
    assert "Shards in use need more" not in caplog.text
    large = module(server.url, shard_cache_gb=0.01, cache_dir=str(tmp_path), num_workers=2)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(batches_of(large), batches_of(module(shards)), strict=True))
    large.teardown("fit")
    assert len(cached(tmp_path)) == 10
    assert sum(server.asked[f"train-{n:06d}.tar"] for n in range(10)) <= 40 + 10
    flip(cached(tmp_path)[0], 700)
    again = module(server.url, shard_cache_gb=0.01, cache_dir=str(tmp_path), window=2)
    assert all(torch.equal(a, b) for a, b in zip(batches_of(again), local, strict=True))  # one is downloaded again
    assert large.train_digests.tolist() == module(shards).train_digests.tolist()
    assert not list(tmp_path.rglob("*.part"))


def test_a_server_that_fails_is_named_with_the_shard(server, own_shards, tmp_path):
    options = {"cache_dir": str(tmp_path), "shard_cache_gb": 0.01}
    (own_shards / "train-000004.tar").unlink()
    with pytest.raises(ValueError, match=f"train-000004.tar is not at {server.url}. Copy it there again, or write"):
        batches_of(module(server.url, **options))
    server.faults = ("cut",) * 5
    server.asked.clear()
    with pytest.raises(ValueError, match=r"train-00000\d.tar could not be downloaded from .* in 5 tries; the last one"):
        batches_of(module(server.url, cache_dir=str(tmp_path / "another")))
    with pytest.raises(ValueError, match=r"data.window=16 needs 0.000195 GB of disk for shards, and has 5e-05. Type"):
        module(server.url, cache_dir=str(tmp_path), shard_cache_gb=0.00005)
    (own_shards / "index.json").unlink()
    with pytest.raises(ValueError, match="index.json is not at"):
        module(server.url, cache_dir=str(tmp_path))


@pytest.mark.parametrize("faults", [("503", "429", "drop"), ("halves",)])
def test_a_server_that_fails_for_a_moment_is_asked_again(server, tmp_path, faults):
    server.faults, server.faulty = faults, "index.json"
    assert module(server.url, cache_dir=str(tmp_path), shard_cache_gb=0.01).sizes["train"] == 39
    assert server.asked["index.json"] == max(1, len(faults) + (faults != ("halves",)))


@pytest.mark.parametrize(
    ("fault", "message", "tries"),
    [
        ("403", "/data refuses train-000....tar .HTTP 403 Forbidden.. If it needs a password, put it into ~/.netrc", 1),
        ("503", "in 5 tries; the last one: HTTP 503 Service Unavailable", 5),
        ("slow", "in 5 tries; the last one: less than 1 MB came in 0 seconds", 5),
    ],
)
def test_a_shard_that_cannot_be_had_is_tried_five_times_and_not_for_each_image(
    server, tmp_path, monkeypatch, fault, message, tries
):
    monkeypatch.setattr("imago.data.shard_download.TIMEOUT", 0.3)
    server.faults = (fault,) * 50
    with pytest.raises(ValueError, match=message):
        batches_of(module(server.url, cache_dir=str(tmp_path), shard_cache_gb=0.01))
    assert [count for name, count in server.asked.items() if name.endswith(".tar")] == [tries]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:secret@127.0.0.1/data", "without a query and without a password"),
        ("http://127.0.0.1/data?token=x", "without a query and without a password"),
        ("simplecache::http://me:secret@127.0.0.1/data", "chains of protocols"),
        ("htp://127.0.0.1/data", "htp:// is no protocol that fsspec knows"),
        ("http:///data", "names no server"),
    ],
)
def test_urls_that_cannot_be_read_are_refused_at_once(tmp_path, url, message):
    with pytest.raises(ValueError, match=message):
        module(url, cache_dir=str(tmp_path))


def test_a_manifest_by_a_stranger_and_a_cache_that_cannot_be_written_end_with_a_sentence(server, own_shards, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="could not be written to .* or another paths.cache_dir="):
        module(server.url, cache_dir=str(tmp_path / "file"), shard_cache_gb=0.01)
    for entry in ({"sha256": "../../x", "size": 9}, {"sha256": "a" * 64, "size": -9}, {"sha256": ["a"], "size": 9}):
        (own_shards / "index.json").write_text(json.dumps({"index.npz": entry}))
        with pytest.raises(ValueError, match="index.json is not one that ml-shard wrote"):
            module(server.url, cache_dir=str(tmp_path), shard_cache_gb=0.01)


def test_the_shards_of_the_next_window_are_downloaded_while_this_one_is_read(server, tmp_path):
    data = module(server.url, window=2, shard_cache_gb=0.01, cache_dir=str(tmp_path))
    batches = iter(data.train_dataloader())
    next(batches)
    until = time.monotonic() + 30
    while len(cached(tmp_path)) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(cached(tmp_path)) == 4  # two that are read, and two that come next
    images = data.sets.splits["train"]
    coming = {int(images.index.shard[index]) for index in epoch(images)[8:15]}
    assert {int(path.name[6:12]) for path in cached(tmp_path)} >= coming


def finish_downloads() -> None:
    for thread in threading.enumerate():
        if "_download" in thread.name:
            thread.join()


def test_a_resumed_epoch_downloads_no_shard_of_the_batches_before(server, shards, tmp_path):
    order = epoch(module(shards, window=2).sets.splits["train"])
    data = module(server.url, window=2, shard_cache_gb=0.01, cache_dir=str(tmp_path))
    batches, images = data.train_dataloader(), data.sets.splits["train"]
    batches.position = lambda: (0, 4)
    assert len(list(batches)) == 1
    finish_downloads()
    last = {f"train-{images.index.shard[index]:06d}.tar" for index in order[32:]}
    assert {name for name in server.asked if name.startswith("train")} == last


def test_the_smallest_cache_has_room_for_the_next_window_and_downloads_no_shard_twice(
    server, shards, tmp_path, monkeypatch
):
    """Shards that preflight has read make room; those that are about to be read stay."""
    monkeypatch.setattr("imago.data.shard_ahead.PAUSE", 0.0)
    order = epoch(module(shards, window=2).sets.splits["train"])
    data = module(server.url, window=2, shard_cache_gb=81_920 / 10**9, cache_dir=str(tmp_path))
    images = data.sets.splits["train"]
    data.some_images("train", 39, torch.device("cpu"))
    server.asked.clear()
    for number, batch in enumerate(TrainBatchSampler(images, 4, seed=42)):
        finish_downloads()
        if number == 1:
            coming = {int(images.index.shard[index]) for index in order[8:15]}
            assert {int(path.name[6:12]) for path in cached(tmp_path)} >= coming
        for _, index in batch:
            images.read(index)
    assert max(server.asked.values()) == 1, server.asked
