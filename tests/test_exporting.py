"""ONNX, torch.export and bundles of ml-export: what is in the files, and the proof that they answer as they should."""

import io
import json
import os
import re
import runpy
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import REPO, Run, photograph, type_command
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchvision.models import squeezenet1_1

import imago
from imago.config.invocation import Invocation
from imago.config.missing_data import forget_missing_data, lacks_images
from imago.data.crops import CenterBox, RandomResizedBox, WholeBox
from imago.data.decode import read_image
from imago.data.formats import FORMATS
from imago.data.transforms import ImageTransform, Normalize
from imago.errors import UserError
from imago.exporting import Case, Proof, ProvenExport, Terms, compare
from imago.exporting.front import check_box, front_model
from imago.exporting.network import network_model
from imago.exporting.odd_images import odd_images
from imago.exporting.onnx_file import onnx_model
from imago.exporting.runners import CheckpointRunner, OnnxRunner
from imago.model.losses import CriterionsComposition
from imago.model.module import DictModule
from imago.wiring import ComposeTransform, WrapTransform

pytestmark = pytest.mark.filterwarnings("ignore")  # exporters warn their own developers
SHAPES = ((1, 1), (1, 7), (3, 2), (16, 16), (37, 500), (333, 91), (128, 130))


@pytest.fixture(scope="module")
def calibrated(trained, tmp_path_factory) -> Path:
    """A checkpoint with a temperature of 0.5."""
    folder = tmp_path_factory.mktemp("calibrated") / "checkpoints"
    folder.mkdir()
    shutil.copy(trained.dir / "checkpoints/best.ckpt", folder)
    shutil.copy(trained.dir / "model_card.md", folder.parent)
    run = type_command("eval", [f"ckpt_path={folder}/best.ckpt", "calibrate=true", "split=val"], folder / "eval")
    assert run.exit_code == 0, run.output
    file = folder / "best.calibration.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.5, "threshold": 0.75}))
    return folder / "best.ckpt"


@pytest.fixture(scope="module")
def bundle(calibrated) -> Run:
    """The export with everything in it."""
    words = [f"ckpt_path={calibrated}", "format=bundle", "proof_images=5"]
    run = type_command("export", words, calibrated.parent / "bundle")
    assert run.exit_code == 0, run.output
    with zipfile.ZipFile(run.dir / "model.zip") as archive:
        archive.extractall(run.dir / "model")
    return run


@pytest.mark.quick
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("box", "size", "fit"),
    [
        (CenterBox(0.875), 20, "crop"),
        (WholeBox(), [9, 24], "crop"),
        (CenterBox(), [24, 9], "squash"),
        (CenterBox(), 16, "pad"),
    ],
)
def test_the_graph_crops_and_resizes_to_the_bit(box, size, fit, interpolation):
    transform = ImageTransform(box).completed(size, fit=fit, fill=(200, 3, 77), interpolation=interpolation)
    model = front_model(transform.box, size, interpolation, 3, opset=20, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for number, (height, width) in enumerate(SHAPES):
        image = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
        expected = transform.image(torch.from_numpy(image).permute(2, 0, 1), size).numpy()
        assert np.array_equal(session.run(None, {"image": image})[0][0], expected), (height, width)


def test_one_file_goes_from_the_image_to_calibrated_probabilities(bundle, calibrated, tmp_path):
    file = bundle.dir / "model" / "model.onnx"
    session = onnxruntime.InferenceSession(str(file))
    facts = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["class_names"] == ["blue", "green", "red"]
    assert (facts["temperature"], facts["threshold"], facts["acceptance"]) == (0.5, 0.75, "estimated")
    assert (facts["target_accuracy"], facts["confidence"], facts["calibrated"]) == (0.99, None, True)
    assert facts["versions"]["torch"] == torch.__version__
    checkpoint = torch.load(calibrated, weights_only=True)["imago"]
    assert facts["data_fingerprint"] == checkpoint["data"]["fingerprint"]
    expected = imago.load_classifier(calibrated, calibrated=True).predict(photograph(7, 50))
    (probabilities,) = session.run(["probabilities"], {"image": np.asarray(photograph(7, 50))})
    assert probabilities[0].tolist() == pytest.approx(list(expected.probabilities.values()), abs=1e-6)
    onnx.utils.extract_model(file, tmp_path / "network.onnx", ["pixels"], ["probabilities"], infer_shapes=False)
    network = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"))
    assert network.run(None, {"pixels": np.zeros((7, 3, 16, 16), np.uint8)})[0].shape == (7, 3)


def test_the_proof_is_printed_and_kept(bundle):
    assert re.search(
        r"on 5 images of val and 30 odd images, in batches of 1 and 17: 0 flips, .* 0\.00% of", bundle.output
    )
    assert "network, batch of 17" in bundle.output
    record = bundle.json("export.json")
    assert record == json.loads((bundle.dir / "model" / "export.json").read_text())
    card = (bundle.dir / "model" / "model_card.md").read_text()
    assert re.search(r"## Export\n\nCompared with its checkpoint on 5 images of val .*: 0 flips", card)
    assert (record["flips"], record["pixels"], record["problems"]) == ([], {"off": 0.0, "levels": 0}, [])
    assert record["images"] == {"test": 5, "odd": 30}
    assert max(record["greatest_difference"].values()) < 1e-5
    assert record["accuracy"]["before"] == record["accuracy"]["after"]


@pytest.fixture(scope="module")
def parts(calibrated):
    """A classifier, its network in ONNX, and the images of a proof."""
    classifier = imago.load_classifier(calibrated)
    cases = [
        Case(name, read_image(io.BytesIO(content)).permute(1, 2, 0).numpy(), is_odd=True)
        for name, content in odd_images()
        if "8000" not in name
    ]
    return classifier, network_model(classifier), cases


def _spoiled(parts, tmp_path, change) -> Proof:
    classifier, network, cases = parts
    copied = onnx.ModelProto()
    copied.CopyFrom(network)
    model = onnx_model(classifier, copied)
    model = change(model) or model
    onnx.save(model, tmp_path / "spoiled.onnx")
    return compare(CheckpointRunner(classifier), OnnxRunner(tmp_path / "spoiled.onnx"), cases, classifier.class_names)


def _add_to_weights(model, by: float, shape) -> None:
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and shape(values.shape):
            tensor.CopyFrom(onnx.numpy_helper.from_array(values + np.float32(by), tensor.name))
            return
    raise AssertionError("no such tensor")


def test_spoiled_graphs_fail_the_proof(parts, tmp_path):
    classifier, network, _ = parts
    whole = _spoiled(parts, tmp_path, lambda model: None)
    whole.check(0, 1e-4)
    assert whole.greatest < 1e-5
    for shape in (lambda shape: len(shape) == 4, lambda shape: shape == (3, 1, 1)):  # a weight, and the mean
        proof = _spoiled(parts, tmp_path, lambda model, shape=shape: _add_to_weights(model, 1e-2, shape))
        with pytest.raises(UserError, match="a probability differs by .*, and tolerance is 0.0001"):
            proof.check(0, 1e-4)

    spoiled, first = OnnxRunner(tmp_path / "spoiled.onnx"), parts[2][0]
    sure = [runner.whole(first.pixels).max() for runner in (CheckpointRunner(classifier), spoiled)]
    near = compare(CheckpointRunner(classifier), spoiled, [first], classifier.class_names, threshold=float(max(sure)))
    assert {(flip.before.split(" ", 1)[1], flip.after.split(" ", 1)[1]) for flip in near.flips} == {
        ("accepted", "flagged for review")[:: 1 if sure[0] > sure[1] else -1]
    }

    def other_resize(_):
        front = front_model(classifier.transform.box, 16, "bicubic", 3, opset=20, ir_version=10)
        front.opset_import[0].version = network.opset_import[0].version
        front.ir_version = network.ir_version
        return onnx.compose.merge_models(front, network, io_map=[("pixels", "pixels")])

    with pytest.raises(UserError, match="of the values behind crop and resize differ, by up to"):
        _spoiled(parts, tmp_path, other_resize).check(100, 1.0)

    def other_classes(model):
        (output,) = model.graph.output
        last = next(node for node in model.graph.node if output.name in node.output)
        last.output[0] = "turned"
        order = onnx.numpy_helper.from_array(np.array([2, 0, 1]), "order")
        model.graph.initializer.append(order)
        model.graph.node.append(onnx.helper.make_node("Gather", ["turned", "order"], [output.name], axis=1))

    proof = _spoiled(parts, tmp_path, other_classes)
    assert len(proof.flips) == 2 * proof.odd
    with pytest.raises(UserError, match=r"predictions flipped:\n  1 x 1 \(batch of 1\): \w+ -> \w+, margin 0\.\d+"):
        proof.check(0, 2.0)
    proof.check(len(proof.flips), 2.0)
    with pytest.raises(UserError, match="a probability is not a number"):
        Proof(differences={1: float("inf")}).check(0, None)


def test_smaller_numbers_and_torch_export(command, calibrated):
    sizes = {}
    for kind, limit in (("onnx_fp16", 1e-2), ("onnx_int8", 0.2), ("torch_export", 1e-5)):
        run = command("export", f"ckpt_path={calibrated}", f"format={kind}", "proof_images=5", "allow_flips=20")
        assert run.exit_code == 0, run.output
        record = run.json("export.json")
        sizes[kind] = record["bytes"]
        assert max(record["greatest_difference"].values()) < limit
        assert "Accuracy on these 5 images:" in run.output
        assert ("has no threshold in its metadata" in run.output) == (kind != "torch_export")
        assert record["tolerance"] == (1e-4 if kind == "torch_export" else None)
    program = torch.export.load(run.dir / "model.pt2").module()
    probabilities = program(torch.zeros(3, 3, 16, 16, dtype=torch.uint8))
    assert torch.allclose(probabilities.sum(1), torch.ones(3))


def test_a_bundle_needs_only_its_requirements(bundle, calibrated, tmp_path):
    """Its script runs with links to the packages that it names, and no others."""
    (tmp_path / "packages").mkdir()
    for name in ("numpy", "numpy.libs", "onnxruntime", "PIL", "pillow.libs"):
        origin = Path(np.__file__).parents[1] / name
        if origin.is_dir():
            (tmp_path / "packages" / name).symlink_to(origin)
    photograph(7, 50).save(tmp_path / "photo.png")
    words = [sys.executable, "-S", str(bundle.dir / "model" / "predict.py"), "photo.png"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "packages")}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = imago.load_classifier(calibrated, calibrated=True).predict(photograph(7, 50))
    assert done.stdout.startswith(f"photo.png: {expected.class_name} {expected.probability:.4f}")
    assert ("look at it" in done.stdout) == (not expected.accepted)
    script = runpy.run_path(str(bundle.dir / "model" / "predict.py"))
    decode = script["decode"]
    assert script["FORMATS"] == FORMATS
    for name, content in chain(odd_images(), _odd_pngs()):
        pixels = read_image(io.BytesIO(content)).permute(1, 2, 0).numpy()
        assert np.array_equal(decode(io.BytesIO(content)), pixels), name


@pytest.mark.parametrize(("threshold", "accepts"), [("null", False), ("0.0", True), ("0.999999", False)])
def test_the_script_of_a_bundle_accepts_what_imago_accepts(bundle, tmp_path, monkeypatch, capsys, threshold, accepts):
    """A calibrated file without a threshold accepts nothing: its promise could not be made."""
    shutil.copy(bundle.dir / "model" / "predict.py", tmp_path)
    model = onnx.load(bundle.dir / "model" / "model.onnx")
    next(entry for entry in model.metadata_props if entry.key == "threshold").value = threshold
    onnx.save(model, tmp_path / "model.onnx")
    photograph(7, 50).save(tmp_path / "photo.png")
    monkeypatch.setattr(sys, "argv", ["predict.py", str(tmp_path / "photo.png")])
    runpy.run_path(str(tmp_path / "predict.py"), run_name="__main__")
    assert ("look at it" not in capsys.readouterr().out) == accepts


def _odd_pngs() -> Iterator[tuple[str, bytes]]:
    """PNGs with a transparent value, a profile that cannot be used, and a long text."""

    def png(bits: int, *chunks: tuple[bytes, bytes]) -> bytes:
        size = struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)
        rows = zlib.compress(bytes(value for row in range(8) for value in (0, *range(row, row + bits))))
        parts = [(b"IHDR", size), *chunks, (b"IDAT", rows), (b"IEND", b"")]
        whole = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
        return b"\x89PNG\r\n\x1a\n" + b"".join(whole)

    for bits in (2, 4, 8, 16):
        yield f"transparent grey of {bits} bits", png(bits, (b"tRNS", struct.pack(">H", min(1027, 2**bits - 2))))
    yield "no profile", png(8, (b"iCCP", b"x\0\0" + zlib.compress(b"garbage")))
    yield "long text", png(8, (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21))))


class Branching(nn.Module):
    """Depends on pixel values."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.mean() > 0:
            image = -image
        return self.head(image.mean((2, 3)))


class Fourier(Branching):
    """Has an operator that ONNX lacks."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.special.bessel_j0(image).mean((2, 3)))


def _classifier(net, pixels=None, channels: int = 3, size: int = 16, forward_fn=None) -> imago.Classifier:
    normalise = Normalize([0.5] * channels, [0.25] * channels)
    transform = ImageTransform(CenterBox(), pixels, {"normalize": normalise}).completed(size)
    losses = CriterionsComposition({"ce": nn.CrossEntropyLoss()})
    module = DictModule(["a", "b"], net, losses, optimizer=None, forward_fn=forward_fn)
    return imago.Classifier(module, transform, size, {})


def test_what_cannot_be_exported_is_named(command, trained, monkeypatch):
    with pytest.raises(UserError, match=r"no form of the operator prims\.bessel_j0.* or type format=torch"):
        network_model(_classifier(Fourier))
    with pytest.raises(UserError, match="Often that is a branch or a loop that depends on pixel values, or type"):
        network_model(_classifier(Branching))
    with pytest.raises(UserError, match=r"pixels\.noise draws random numbers, which an exported file cannot repeat"):
        network_model(_classifier(Branching, {"noise": lambda image: image ^ torch.randint_like(image, 9)}))
    noise = {"noise": lambda batch: batch | {"image": torch.rand(2, 3, 16, 16)}}
    drawing = imago.Classifier(
        _classifier(Branching).model, ImageTransform(CenterBox(), None, noise).completed(16), 16, {}
    )
    with pytest.raises(UserError, match=r"batch\.noise draws random numbers"):
        network_model(drawing)
    with pytest.raises(
        UserError, match=r"box is RandomResizedBox, and an ONNX file can contain imago\.data\.CenterBox"
    ):
        check_box(RandomResizedBox())
    for words, message in (
        (
            ["format=onxx"],
            "format must be safetensors, onnx, onnx_fp16, onnx_int8, torch_export, bundle or soup, got onxx",
        ),
        (["format=onnx", "output=x.pt2"], "ends in .onnx, got x.pt2. For such a file type format=torch_export"),
        (["allow_flips=3"], "allow_flips=3 is for exports that are compared with the checkpoint: type format=onnx"),
        (["format=onnx", "tolerance=-1"], "tolerance must be 0 or more, got -1"),
    ):
        run = command("export", f"ckpt_path={trained.dir}", *words)
        assert (run.exit_code, message in run.output) == (1, True), run.output
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    run = command("export", f"ckpt_path={trained.dir}", "format=bundle")
    assert "format=bundle needs onnxscript, not installed here: pip install 'imago[onnx]'" in run.error


class Heads(nn.Module):
    """Classes, places, and what is no row per image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classes, self.places = nn.Linear(3, num_classes), nn.Linear(3, 4)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        means = image.mean((2, 3))
        return {"logits": self.classes(means), "means": means, "places": self.places(means), "norm": means.norm()}


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_further_heads_are_outputs_of_the_file(kind, tmp_path, caplog):
    best = WrapTransform(partial(torch.argmax, dim=1), {"logits": "input"}, "prediction")
    squares = WrapTransform(torch.square, {"means": "input"}, "probabilities")
    wired = ComposeTransform(heads=WrapTransform("net", {"image": "image"}), prediction=best, squares=squares)
    classifier = _classifier(Heads, forward_fn=wired)
    classifier.checkpoint["timestamp"] = "today"
    export = ProvenExport(classifier, kind, {}, None)
    export.write(tmp_path / "model", Terms(0, 0, 1e-4), tmp_path / "export.json")
    assert "The file does not contain norm: no tensor with a row per image" in caplog.text
    record = json.loads((tmp_path / "export.json").read_text())
    assert {*record["outputs"]} == {"forward_fn.probabilities", "places"}
    assert max(record["outputs"].values()) < 1e-6
    with pytest.raises(UserError, match=r"the output places differs by 0\.1, and tolerance is 0\.0001"):
        Proof(outputs={"places": 0.1}).check(0, 1e-4)
    if kind == "onnx":
        session = onnxruntime.InferenceSession(str(tmp_path / "model"))
        image = np.asarray(photograph(3, 40))
        values = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": image}), strict=True))
        before = CheckpointRunner(classifier, {"places": "places"})
        assert values["places"] == pytest.approx(before.further(before.seen(image))["places"], abs=1e-6)
        assert (values["probabilities"].shape, values["forward_fn.probabilities"].shape) == ((1, 2), (1, 3))
    best.transform = partial(torch.argmin, dim=1)
    with pytest.raises(UserError, match="predicts another class than the most likely one"):
        export.write(tmp_path / "other", Terms(0, 0, 1e-4), tmp_path / "export.json")
    assert not (tmp_path / "other").exists()


def test_grey_networks_take_grey_images():
    class Grey(nn.Sequential):
        def __init__(self, num_classes: int) -> None:
            super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, num_classes))

    classifier = _classifier(Grey, channels=1)
    model = onnx_model(classifier, network_model(classifier))
    image = np.asarray(photograph(3, 40).convert("L"))[..., None]
    (probabilities,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["probabilities"], {"image": image})
    assert probabilities == pytest.approx(CheckpointRunner(classifier).whole(image), abs=1e-6)


def test_an_export_that_fails_its_proof_is_not_there(command, calibrated):
    run = command("export", f"ckpt_path={calibrated}", "format=onnx", "tolerance=0", "proof_images=0")
    assert run.exit_code == 1
    assert "The export does not answer as its checkpoint does: a probability differs by" in run.error
    assert not list(run.dir.rglob("*.onnx*"))
    assert run.json("export.json")["problems"]


def test_images_that_are_gone_are_not_needed(tmp_path):
    def of_checkpoint(*typed: str, **paths: str) -> DictConfig:
        cfg = OmegaConf.create({"data": {"_target_": "imago.data.ImageFolderDataModule", "data_dir": None, **paths}})
        forget_missing_data(cfg, Invocation("export", overrides=typed))
        return cfg

    assert lacks_images(of_checkpoint(data_dir="/nowhere", relabel=str(tmp_path)).data)
    assert lacks_images(of_checkpoint(data_dir=str(tmp_path), exclude="/nowhere").data)
    assert not lacks_images(of_checkpoint(data_dir=str(tmp_path), exclude=str(tmp_path)).data)
    assert of_checkpoint("data.data_dir=/nowhere", data_dir="/nowhere").data.data_dir == "/nowhere"  # and is refused


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_networks_of_libraries_are_exported(library):
    """benchmarks/export_families.py tries all of them."""
    if library == "timm":
        timm = pytest.importorskip("timm")
        classifier = _classifier(partial(timm.create_model, "test_vit", img_size=16))
    else:
        classifier = _classifier(squeezenet1_1, size=32)
    model = onnx_model(classifier, network_model(classifier))
    image = np.asarray(photograph(3, 40))
    (probabilities,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["probabilities"], {"image": image})
    assert probabilities == pytest.approx(CheckpointRunner(classifier).whole(image), abs=1e-5)


def test_the_table_of_families_is_that_of_the_script():
    pytest.importorskip("timm")
    from export_families import TIMM, TORCHVISION

    known = {("torchvision", *row) for row in TORCHVISION} | {("timm", *row) for row in TIMM}
    page = (REPO / "docs" / "export.md").read_text()
    rows = re.findall(r"^\| (torchvision|timm) \| (\w+) \| (\d+) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert f"So far {len(rows)} have been run" in page
    assert {(library, name, int(size)) for library, name, size, *_ in rows} <= known
    assert all(float(gap) < 1e-5 for *_, onnx_gap, torch_gap in rows for gap in (onnx_gap, torch_gap))
