"""Which families of networks can be exported: a member of each of torchvision's and timm's, with random weights.

Each is exported to ONNX and with torch.export, and answers two batches of noise, of 1 and 3 images, as PyTorch does.
Prints a row per network: the greatest difference of a probability, or why it cannot be exported.

    python benchmarks/export_families.py --out FILE     # which keeps the rows that are in FILE already
    python benchmarks/export_families.py --only convnext
"""

import argparse
import io
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from imago.data.crops import WholeBox
from imago.data.transforms import ImageTransform, Normalize
from imago.errors import UserError
from imago.evaluation.classifier import Classifier
from imago.exporting.network import PROBABILITIES, exported_program, network_model
from imago.exporting.runners import CheckpointRunner
from imago.model.losses import CriterionsComposition
from imago.model.module import DictModule

TORCHVISION = (  # the smallest of each family -> the side of its images
    *(("alexnet", 64), ("convnext_tiny", 64), ("densenet121", 64), ("efficientnet_b0", 64), ("efficientnet_v2_s", 64)),
    *(("googlenet", 64), ("inception_v3", 128), ("maxvit_t", 224), ("mnasnet0_5", 64), ("mobilenet_v2", 64)),
    *(("mobilenet_v3_small", 64), ("regnet_y_400mf", 64), ("resnet18", 64), ("resnext50_32x4d", 64)),
    *(("shufflenet_v2_x0_5", 64), ("squeezenet1_1", 64), ("swin_t", 64), ("swin_v2_t", 64), ("vgg11", 64)),
    *(("vit_b_32", 64), ("wide_resnet50_2", 64)),
)
TIMM = (
    *(("resnet18", 64), ("tf_efficientnet_lite0", 64), ("convnextv2_atto", 64), ("vit_tiny_patch16_224", 224)),
    *(("deit_tiny_patch16_224", 224), ("swin_tiny_patch4_window7_224", 224), ("mobilenetv4_conv_small", 64)),
    *(("efficientvit_b0", 64), ("levit_128s", 224), ("mobilevit_xxs", 64), ("poolformer_s12", 64)),
    *(("regnetz_005", 64), ("fastvit_t8", 64), ("edgenext_xx_small", 64), ("coat_lite_tiny", 224)),
    *(("hrnet_w18_small", 64), ("mixer_s32_224", 224), ("beit_base_patch16_224", 224), ("nfnet_l0", 64)),
    *(("ghostnetv2_100", 64), ("repvit_m0_9", 64), ("tiny_vit_5m_224", 224), ("maxvit_nano_rw_256", 256)),
)


def classifier_of(library: str, name: str, size: int) -> Classifier:
    torch.manual_seed(0)
    if library == "timm":
        net = timm.create_model(name, num_classes=7)
    else:
        options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
        options |= {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        net = torchvision.models.get_model(name, num_classes=7, **options)
    transform = ImageTransform(WholeBox(), None, {"normalize": Normalize([0.5] * 3, [0.25] * 3)}).completed(size)
    losses = CriterionsComposition({"ce": nn.CrossEntropyLoss()})
    names = [str(number) for number in range(7)]
    return Classifier(DictModule(names, lambda num_classes: net, losses, optimizer=None), transform, size, {})


def difference(run: Any, before: CheckpointRunner, size: int) -> float:
    gaps = []
    for count in (1, 3):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 3, size, size)).astype(np.uint8)
        gaps.append(np.abs(before.network(pixels) - run(pixels)).max())
    return float(max(gaps))


def outcome(kind: str, classifier: Classifier, size: int) -> str:
    before = CheckpointRunner(classifier)
    try:
        if kind == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(network_model(classifier).SerializeToString())
            return f"{difference(lambda x: session.run([PROBABILITIES], {'pixels': x})[0], before, size):.0e}"
        content = io.BytesIO()
        torch.export.save(exported_program(classifier), content)
        program = torch.export.load(io.BytesIO(content.getvalue())).module()
        with torch.inference_mode():
            return f"{difference(lambda x: program(torch.from_numpy(x)).numpy(), before, size):.0e}"
    except UserError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"


def row_of(library: str, name: str, size: int) -> str:
    began = time.process_time()
    try:
        classifier = classifier_of(library, name, size)
    except Exception as error:
        return f"| {library} | {name} | {size} | cannot be made: {error} | | |"
    results = [outcome(kind, classifier, size) for kind in ("onnx", "torch_export")]
    return f"| {library} | {name} | {size} | {' | '.join(results)} | {time.process_time() - began:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    head = f"| library | network | pixels | onnx | torch_export | seconds of CPU |\n{'| --- ' * 6}|"
    kept = options.out.read_text() if options.out is not None and options.out.exists() else ""
    networks = [("torchvision", *network) for network in TORCHVISION] + [("timm", *network) for network in TIMM]
    print(kept.rstrip() or head, flush=True)
    for library, name, size in networks:
        if options.only not in name or f"| {library} | {name} |" in kept:
            continue
        row = row_of(library, name, size)
        print(row, flush=True)
        if options.out is not None:
            kept = f"{kept.rstrip() or head}\n{row}\n"
            options.out.write_text(kept)


if __name__ == "__main__":
    main()
