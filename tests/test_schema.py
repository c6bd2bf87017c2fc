"""Configs against signatures: the check before the imports, and the files for editors."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf
from referencing import Registry, Resource

from imago.config import signatures
from imago.config.root import CONFIG_DIR
from imago.config.schema import mismatch, problems, shipped
from imago.config.signatures import arguments_schema
from imago.definitions import Above, AtLeast, AtMost, Below


def example(
    number: int,
    share: Annotated[float, AtLeast(0), AtMost(1)],
    name: str | None,
    word: Literal["yes", "no"],
    between: Annotated[float, Above(0), Below(1)] | None,
    three: Literal["a", "b", "c"],
    flag: bool,
    some: Sequence[int],
    table: Mapping[str, float],
    make: Callable[[], int],
    anything: Any,
    unknown=None,
    path: Path | None = None,
) -> None:
    """Of every kind one."""


SCHEMA = arguments_schema(example)["properties"]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "good", "bad", "words"),
    [
        ("number", [1, -3], [1.5, "many", True, None, [1]], "a whole number"),
        ("share", [0, 0.5, 1], [1.1, -0.1, "half"], "a number (0 or more, at most 1)"),
        ("name", ["x", None], [3], "text or null"),
        ("word", ["yes"], ["maybe", None, True], "yes or no"),
        ("between", [0.1, 0.9, None], [0, 0.0, 1, 2], "a number (above 0, below 1) or null"),
        ("three", ["a", "c"], ["d"], "a, b or c"),
        ("flag", [True], [1, "true"], "true or false"),
        ("some", [[1, 2], []], ["12", [1, "x"]], "a list"),
        ("table", [{"a": 1}], [[1], "a"], "a group of settings"),
        ("make", [{"_target_": "x"}], ["x", 3], "a group of settings"),
        ("anything", [1, "x", None], [], ""),
        ("unknown", [1, "x", None], [], ""),
        ("path", ["/x", None], [3], "text or null"),
    ],
)
def test_values_are_checked_against_annotations(name, good, bad, words):
    assert [value for value in good if mismatch(value, SCHEMA[name]) is not None] == []
    assert {mismatch(value, SCHEMA[name]) for value in bad} <= {words}


def test_problems_name_key_and_what_is_valid():
    cfg = OmegaConf.create({"model": {"optimizer": {"_target_": "torch.optim.AdamW", "lr": "fast", "weight_deca": 1}}})
    found = [(problem.key, problem.what) for problem in problems(cfg, shipped())]
    assert found == [
        ("model.optimizer.lr", " must be a number, got fast."),
        (
            "model.optimizer.weight_deca",
            " is not an argument of torch.optim.AdamW. Did you mean model.optimizer.weight_decay=1?",
        ),
    ]


def test_arguments_with_one_answer_are_one_problem():
    cfg = OmegaConf.create({"model": {"net": {"_target_": "imago.model.SimpleCNN", "lin1_size": 8, "lin2_size": 9}}})
    (problem,) = problems(cfg, shipped())
    assert problem.key == "model.net.lin1_size"
    assert problem.what.startswith(", lin2_size are not arguments of imago.model.SimpleCNN. model=mnist lists")


def test_the_files_are_those_of_the_signatures():
    """Type `make schema` where this fails. Libraries of other versions have other signatures: ours must not differ."""
    written = {path.name: json.loads(path.read_text()) for path in Path(CONFIG_DIR, "schema").glob("*.json")}
    made = json.loads(json.dumps(signatures.all_schemas()))
    assert written.keys() == made.keys()
    ours = [name for name in made["all.json"]["$defs"] if name.startswith("imago.")]
    assert len(ours) > 20
    for name in ours:
        assert written["all.json"]["$defs"][name] == made["all.json"]["$defs"][name], name
    for name in ("root.json", "data.json", "callbacks.json"):
        assert written[name] == made[name], name


def test_the_check_option_says_whether_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(signatures, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["signatures"])
    signatures.main()
    monkeypatch.setattr(sys, "argv", ["signatures", "--check"])
    with pytest.raises(SystemExit) as stop:
        signatures.main()
    assert stop.value.code == 0
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(SystemExit, match="Not up to date: data.json. Type make schema"):
        signatures.main()


def validator(kind: str) -> Draft202012Validator:
    folder = Path(CONFIG_DIR, "schema")
    contents = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    draft = "https://json-schema.org/draft/2020-12/schema"
    resources = [(name, Resource.from_contents({"$schema": draft} | content)) for name, content in contents.items()]
    return Draft202012Validator({"$ref": f"{kind}.json"}, registry=Registry().with_resources(resources))


FILES = sorted(Path(CONFIG_DIR).rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIG_DIR)))
def test_editors_accept_every_shipped_file(path):
    parts = path.relative_to(CONFIG_DIR).parts
    own_keys = ("visualise", "eval", "inference", "export", "serve", "doctor")
    if len(parts) > 2 or path.stem in own_keys:  # model/optimizer: a node of any target
        return
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    kind = parts[0] if len(parts) == 2 else "root"
    errors = [
        f"{'.'.join(map(str, e.path))}: {e.message}"
        for e in validator(kind).iter_errors(without_interpolations(content))
    ]
    assert errors == []


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("data", {"batchsize": 3}),
        ("data", {"batch_size": "many"}),
        ("trainer", {"max_epoch": 3}),
        ("experiment", {"trainer": {"max_epochs": "many"}}),
        ("experiment", {"learning_rate": 1}),
    ],
)
def test_editors_mark_mistakes(kind, content):
    assert list(validator(kind).iter_errors(content))


def without_interpolations(content):
    """`${…}` may become anything; editors see the text, and `???`."""
    if isinstance(content, dict):
        return {key: without_interpolations(value) for key, value in content.items() if not is_open(value)}
    return content


def is_open(value) -> bool:
    return isinstance(value, str) and ("${" in value or value == "???")
