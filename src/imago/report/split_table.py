"""Table of the classes of a split file, for the terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text


def split_table(counts: Mapping[str, Counter[str]], class_names: Sequence[str]) -> Table:
    """Table with a row per class and a column per split; `counts` maps splits to classes to numbers of images."""
    table = Table(title="Images per split")
    for column in ("class", *counts, "all"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name in class_names:
        numbers = [own[name] for own in counts.values()]
        table.add_row(Text(name), *map(str, numbers), str(sum(numbers)))
    table.add_section()
    sizes = [own.total() for own in counts.values()]
    table.add_row("all", *map(str, sizes), str(sum(sizes)))
    table.add_row("fraction", *(f"{size / sum(sizes):.1%}" for size in sizes), "")
    return table
