"""Checks of the settings of what a run writes besides checkpoints: reports and figures."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

FORMATS = ("png", "svg", "pdf")


def output_problems(cfg: DictConfig) -> Iterator[str]:
    """Problems with `report` and `plots`."""
    if not isinstance((cfg.report or {}).get("pictures", True), bool):
        yield f"report.pictures must be true or false, got {cfg.report.pictures}."
    yield from _plot_problems(cfg.plots)


def _plot_problems(plots: Any) -> Iterator[str]:
    if not isinstance(plots, DictConfig):
        yield f"plots holds several settings, got {plots}. Type plots.format=png for example."
        return
    formats = plots.get("format")
    known = list(formats) if OmegaConf.is_list(formats) else [formats]
    if any(form not in FORMATS for form in known):
        names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        yield (
            f"plots.format must be {names}, or a list of them such as 'plots.format=[pdf,svg]' (plots.format=[] draws "
            f"none); got {formats}."
        )
    if not isinstance(plots.get("title", True), bool):
        yield f"plots.title must be true or false, got {plots.title}."
