"""The tables of a comparison: tests of two trainings, each two of several, and the runs; and the files of all that."""

import csv
import io
from typing import Any

from imago.cli.run_rows import as_markdown as markdown_table
from imago.cli.run_rows import markdown_text
from imago.cli.versus import Result, Versus
from imago.cli.versus_notes import notes_of
from imago.comparison.paired import LEVEL
from imago.comparison.repeated import DRAWS, MOST_EXACT
from imago.comparison.results import PairResult, RepeatedResult
from imago.comparison.sentences import p_number, p_text
from imago.files import strict


def table_of_tests(versus: Versus) -> dict[str, Any]:
    """The tests of two trainings, each with its result: `title`, `heads`, `numbers` and `rows`."""
    (result,) = versus.results.values()
    a, b = versus.sides
    rows = (
        _pair_rows(result, a.name, b.name, versus.seed)
        if isinstance(result, PairResult)
        else _repeated_rows(result, b.name)
    )
    return {"title": "Tests", "heads": ["test", "result"], "numbers": [False, False], "rows": rows}


def _pair_rows(result: PairResult, a: str, b: str, seed: int) -> list[list[str]]:
    counts = result.counts
    rows = [
        [
            "images",
            f"both right {counts.both}, only {a} {counts.only_a}, only {b} {counts.only_b}, neither {counts.neither}",
        ],
        ["exact McNemar", p_text(result.p)],
        [f"95% interval of {b} - {a}", _interval(result.low, result.high, counts.n)],
    ]
    if result.bootstrap is not None:
        name = f"paired bootstrap (seed {seed}; decides nothing)"
        rows.append([name, _interval(*result.bootstrap, counts.n)])
    return [*rows, *_equivalence_rows(result)]


def _repeated_rows(result: RepeatedResult, b: str) -> list[list[str]]:
    wins, low, high = result.wins
    if result.overlap:
        tests = [["corrected resampled t", p_text(result.p)]]
    elif len(result.pairs) <= MOST_EXACT:
        least = f", the least possible is {result.least_p:.2g}" if result.least_p > LEVEL else ""
        tests = [["exact sign-flip permutation", f"{p_text(result.p)}{least}"]]
    else:
        tests = [[f"sign-flip permutation ({DRAWS:,} drawn signs)", p_text(result.p)]]
    interval = "95% interval (t)" if result.is_normal else "95% interval (sign-flip)"
    return [
        ["mean difference", f"{100 * result.mean:+.2f}%"],
        *tests,
        [interval, f"{100 * result.low:+.2f}% to {100 * result.high:+.2f}%"],
        [f"probability that {b} wins a pair", f"{wins:.2f} (95%: {low:.2f} to {high:.2f})"],
        *_equivalence_rows(result),
    ]


def _equivalence_rows(result: Result) -> list[list[str]]:
    if result.margin is None or result.equivalence is None:
        return []
    return [[f"equivalence within {100 * result.margin:g}% (TOST)", p_text(result.equivalence)]]


def _interval(low: float, high: float, n: int) -> str:
    return f"{100 * low:+.2f}% to {100 * high:+.2f}% ({n * low:+.1f} to {n * high:+.1f} images)"


def table_of_pairs(versus: Versus) -> dict[str, Any]:
    """Each two of several trainings, by their p after Holm's correction."""
    rows = []
    for (i, j), result in sorted(versus.results.items(), key=lambda entry: versus.adjusted[entry[0]]):
        mean = result.counts.gain / result.counts.n if isinstance(result, PairResult) else result.mean
        interval = f"{100 * result.low:+.2f}% to {100 * result.high:+.2f}%"
        names = f"{versus.sides[j].name} - {versus.sides[i].name}"
        numbers = [f"{100 * mean:+.2f}%", interval, p_number(result.p), p_number(versus.adjusted[i, j])]
        said = "differ" if versus.adjusted[i, j] <= LEVEL else "cannot be told apart"
        rows.append([names, *numbers, said, "" if result.equivalence is None else p_number(result.equivalence)])
    is_normal = any(isinstance(result, RepeatedResult) and result.is_normal for result in versus.results.values())
    interval = f"95% (of this pair{', if normally distributed' if is_normal else ''})"
    heads = ["pair", "difference", interval, "p", "p (Holm)", "", "p of equivalence (TOST, of this pair)"]
    columns = len(heads) - (versus.margin is None)
    aligned = [False, True, True, True, True, False, True]
    cut = [row[:columns] for row in rows]
    return {"title": "Each two", "heads": heads[:columns], "numbers": aligned[:columns], "rows": cut}


def table_of_runs(versus: Versus) -> dict[str, Any] | None:
    """Accuracy in each pair of runs; None for single runs."""
    if not versus.is_repeated or len(versus.sides) != 2:
        return None
    (result,) = versus.results.values()
    assert isinstance(result, RepeatedResult)
    rows = [
        [name, f"{a:.4f}", f"{b:.4f}", f"{100 * (b - a):+.2f}%"]
        for name, a, b in zip(result.pairs, result.a, result.b, strict=True)
    ]
    heads = ["pair", *(side.name for side in versus.sides), "difference"]
    return {"title": "Runs", "heads": heads, "numbers": [False, True, True, True], "rows": rows}


def tables(versus: Versus) -> list[dict[str, Any]]:
    """All tables, in their order."""
    if len(versus.sides) > 2:
        return [table_of_pairs(versus)]
    runs = table_of_runs(versus)
    return [table_of_tests(versus), *([runs] if runs is not None else [])]


def sides_of(versus: Versus) -> list[dict[str, str]]:
    """Name, run and accuracy of each training."""
    rows = []
    for side, accuracy, run in zip(versus.sides, versus.accuracies, versus.first_runs, strict=True):
        answers = versus.answers(run)
        of_all = f"mean of {len(versus.matched)} runs" if versus.is_repeated else f"{answers.right} of {len(answers)}"
        rows.append({"name": side.name, "what": side.what, "accuracy": f"{accuracy:.4f} ({of_all})"})
    return rows


def as_json(versus: Versus) -> dict[str, Any]:
    """Everything in plain types, for JSON."""
    content: dict[str, Any] = {"sentence": versus.sentence(), "split": versus.scored}
    content["trainings"] = [
        {
            "name": side.name,
            "what": side.what,
            "folders": [str(run.folder) for run in side.runs],
            "accuracy": accuracy,
        }
        for side, accuracy in zip(versus.sides, versus.accuracies, strict=True)
    ]
    content["comparisons"] = [
        {"a": versus.sides[i].name, "b": versus.sides[j].name, "holm_p": versus.adjusted[i, j], **result.to_plain()}
        for (i, j), result in versus.results.items()
    ]
    if versus.has_flips:
        a, b = versus.sides
        content["flips"] = {f"only_{a.name}": versus.flips(a, b), f"only_{b.name}": versus.flips(b, a)}
    return strict(content | {"notes": notes_of(versus)})


def as_csv(versus: Versus) -> str:
    """The images on which two runs differ; of several trainings, each two of them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if versus.has_flips:
        a, b = versus.sides
        writer.writerow(["path", "label", "right", "wrong", "answer", "probability"])
        for right, wrong in ((a, b), (b, a)):
            for entry in versus.flips(right, wrong):
                writer.writerow(
                    [entry["path"], entry["label"], right.name, wrong.name, entry["wrong"], entry["probability"]]
                )
        return text.getvalue()
    content = tables(versus)[-1]
    writer.writerow(content["heads"])
    writer.writerows(content["rows"])
    return text.getvalue()


def as_markdown(versus: Versus) -> str:
    """The sentence, the tables and the notes."""
    sides = markdown_table(
        ["", "run", f"accuracy on {versus.scored}"],
        [[side["name"], side["what"], side["accuracy"]] for side in sides_of(versus)],
        [False, False, True],
    )
    parts = [f"{markdown_text(versus.sentence())}\n", sides]
    parts += [markdown_table(content["heads"], content["rows"], content["numbers"]) for content in tables(versus)]
    return "\n".join([*parts, *(f"{markdown_text(note)}\n" for note in notes_of(versus))])
