"""Write the weights of a checkpoint in a format that others read.

ml-export ckpt_path=RUN
ml-export ckpt_path=latest output=ants.safetensors
"""

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from imago.carried_config import starts_from_checkpoint
from imago.checks import check_from_checkpoint
from imago.command import run_command, type_as_usual
from imago.config import CONFIG_DIR
from imago.run_folder import RunFolder


@type_as_usual
@starts_from_checkpoint
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="export")
def main(cfg: DictConfig) -> float | None:
    """The command line of exports."""
    return run_command(export_from_config, cfg, check_export, one_process=True)


def check_export(cfg: DictConfig, typed: list[str]) -> None:
    """Raises ValueError for settings that cannot work, before anything is made."""
    check_from_checkpoint(cfg, typed, needs_data=False)
    if cfg.format != "safetensors":
        raise ValueError(f"format={cfg.format}: give safetensors.")
    if cfg.output is not None and Path(cfg.output).suffix != ".safetensors":
        raise ValueError(f"output={cfg.output}: give a file that ends in .safetensors.")


def export_from_config(cfg: DictConfig, run: RunFolder) -> None:
    """Writes the network's own tensors, under its own names, with what is needed to use them as metadata."""
    from safetensors.torch import save_file

    from imago.checkpoints import read_checkpoint
    from imago.classifier import Classifier, check_own_code, seen_images
    from imago.results import show_written
    from imago.writing import replacing

    checkpoint = read_checkpoint(cfg.ckpt_path)
    classifier = Classifier.from_config(cfg, checkpoint, cfg.ckpt_path, check_own_code(checkpoint))
    metadata: dict[str, Any] = {
        "class_names": classifier.class_names,
        **seen_images(cfg.data, classifier.transform),
        "versions": classifier.checkpoint["versions"],
    }
    metadata["network"] = {key: value for key, value in cfg.model.net.items() if isinstance(value, str | int | float)}
    path = Path(cfg.output) if cfg.output is not None else run.path / "model_only.safetensors"
    tensors = {name: tensor.contiguous().clone() for name, tensor in classifier.model.net.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {name: json.dumps(value) for name, value in metadata.items()})
    show_written(path)


if __name__ == "__main__":
    main()
