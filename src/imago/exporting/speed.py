"""Latency and throughput of an export, beside the checkpoint in PyTorch, measured in turns."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.table import Table

from imago.exporting.proof import BATCHES
from imago.exporting.runners import Bytes, Runner
from imago.terminal import counted

SECONDS, FEWEST, MOST = 0.6, 3, 200
"""Time for a measurement, and bounds on its repetitions."""


def measured(before: Runner, after: Runner, image: Bytes) -> dict[str, Any]:
    """Measure the medians of both in milliseconds: a whole image, and the network alone for each of BATCHES."""
    pixels = before.seen(image)
    rows = []
    height, width = image.shape[:2]
    tasks = [(f"image of {width} x {height}", 1, [partial(runner.whole, image) for runner in (before, after)])]
    for count in BATCHES:
        batch = pixels.repeat(count, axis=0)
        calls = [partial(runner.network, batch) for runner in (before, after)]
        tasks.append((f"network, batch of {count}", count, calls))
    for what, count, calls in tasks:
        times = _times(*calls)
        rows.append({"what": what, "images": count, "pytorch_ms": times[0], "export_ms": times[1]})
    return {"threads": torch.get_num_threads(), "rows": rows}


def _times(*calls: Callable[[], object]) -> list[float]:
    """Median milliseconds of each call. They take turns, so that a busy moment slows down all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.monotonic() + SECONDS
    while len(times[0]) < FEWEST or (time.monotonic() < end and len(times[0]) < MOST):
        for call, taken in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            taken.append((time.perf_counter() - began) * 1000)
    return [statistics.median(taken) for taken in times]


def speed_table(speed: dict[str, Any], name: str) -> Table:
    """Table of what was measured; `name` is that of the export."""
    threads = counted(speed["threads"], "CPU thread")
    table = Table(title=f"Median time on {threads}")
    for column in ("", "PyTorch", name, "times as fast"):
        table.add_column(column, justify="right" if column else "left")
    for row in speed["rows"]:
        times = row["pytorch_ms"], row["export_ms"]
        both = (f"{ms:.2f} ms, {row['images'] * 1000 / ms:.0f}/s" for ms in times)
        table.add_row(row["what"], *both, f"{times[0] / times[1]:.2f}")
    return table
