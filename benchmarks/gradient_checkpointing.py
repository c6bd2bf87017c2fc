"""Memory and time of train steps with model.gradient_checkpointing=true, as ratios to those without.

python benchmarks/gradient_checkpointing.py [--batch 8] [--side 224] [NETWORK ...]

On a CPU the memory is that of the tensors that the forward pass keeps, on a GPU the peak of all.
"""

import argparse
import copy
import time

import torch
from torch import nn

from imago.model.recompute import checkpoint_gradients
from imago.model.torchvision import torchvision_net

NETWORKS = ("resnet50", "efficientnet_b0", "convnext_tiny", "vit_b_16")


def measure(net: nn.Module, images: torch.Tensor, steps: int) -> tuple[float, float]:
    """GiB that are kept, and seconds of the median step."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    on_gpu, labels = images.is_cuda, torch.arange(len(images), device=images.device) % 10
    own = sum(parameter.nbytes for parameter in net.parameters())
    seconds, memory = [], 0.0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for step in range(steps):
        began = time.perf_counter() if on_gpu else time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() if on_gpu else time.process_time()) - began)
        net.zero_grad()
        if not step:
            memory = max(0, sum(kept.values()) - own)
    if on_gpu:
        memory = torch.cuda.max_memory_allocated()
    return memory / 2**30, sorted(seconds[1:])[len(seconds[1:]) // 2]


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(options.batch, 3, options.side, options.side, device=device)
    for name in options.networks:
        plain = torchvision_net(name=name, weights=None, num_classes=10).to(device).train()
        cheap = copy.deepcopy(plain)
        checkpoint_gradients(cheap)
        (much, fast), (little, slow) = (measure(net, images, options.steps) for net in (plain, cheap))
        ratios = f"memory {little / much:.2f} ({much:.2f} -> {little:.2f} GiB), time {slow / fast:.2f}"
        print(f"{name}, {options.batch} images of {options.side} pixels on {device}: {ratios}", flush=True)


if __name__ == "__main__":
    main()
