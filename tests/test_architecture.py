"""The rooms of the package: their size, who may import whom, what they load, and what they reach into."""

import ast
import inspect
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import omegaconf.base
import pytest
import torch
from helpers import REPO
from hydra.core.config_store import ConfigStore
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, Timer
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from imago import lightning_internals as internals
from imago.cli import hydra_internals
from imago.config.invocation import Invocation
from imago.config.resolvers import register

PACKAGE = REPO / "src" / "imago"
COMMANDS = (
    "train",
    "eval",
    "inference",
    "export",
    "serve",
    "visualise",
    "doctor",
    "split",
    "shard",
    "status",
    "compare",
    "cv",
    "api",
)
FLOORS = (  # each room may import from those before it
    ("primitives",),
    ("config",),
    ("run",),
    ("checkpoint", "comparison"),
    ("model", "ai"),
    ("data",),
    ("report", "dp"),
    ("callbacks", "inspection"),
    ("cli",),
    ("evaluation",),
    ("training",),
    ("exporting",),
    ("search", "serving"),
    ("commands",),
    ("tuning",),  # commands that train
)
KNOW_HYDRA = {
    *("config/resolvers.py", "config/invocation.py", "config/signatures.py"),
    *(f"cli/{name}.py" for name in ("entry", "compose", "start_from", "hydra_errors", "hydra_internals", "sweep")),
    *(f"search/{name}.py" for name in ("results", "space", "study")),
    *("evaluation/from_config.py", "training/build.py", "training/trainer.py", "visualise.py", "doctor.py"),
}
PRIVATE = {  # whose inside is reached into elsewhere, and why it is said there
    *("rich._console", "sys._getframe", "os._exit", "torch._utils", "func._schema", "input._version"),
    *("inputs._version", "module._compiled_call_impl", "layer._compiled_call_impl", "metric._update_count"),
    *("scheduler._get_closed_form_lr", "distributed_c10d._abort_process_group", "state._metadata"),
    *("_C._VariableFunctions",),
    *("batchnorm._BatchNorm", "dropout._DropoutNd", "torchvision.models._api", "torch.utils._python_dispatch"),
    *("frozen._trial_id", "torch._C", "dataset._fingerprint", "metric._reductions", "metric._defaults"),
}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(("imago", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in FILES
}


def room_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
        return parts[1]
    return "commands" if len(parts) == 1 or parts[1] in COMMANDS else "primitives"


def imports_of(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports: at the top, inside functions, and for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            known = name if name in MODULES else name.rpartition(".")[0]
            if known in MODULES:
                yield known


ARROWS = {module: {target for target in imports_of(path) if target != module} for module, path in MODULES.items()}


def test_files_are_neither_fragments_nor_tomes():
    top = [path.name for path in FILES if path.parent == PACKAGE]
    assert len(top) <= 24, f"{len(top)} files at the top of the package: put new ones into a room"
    for path in FILES:
        lines = len(path.read_text().splitlines())
        assert lines <= 320, f"{path.relative_to(PACKAGE)} has {lines} lines: divide it"


@pytest.mark.parametrize("room", [path.name for path in sorted(PACKAGE.iterdir()) if (path / "__init__.py").is_file()])
def test_each_room_has_a_face(room):
    face = __import__(f"imago.{room}", fromlist=["__all__"])
    assert face.__doc__
    for name in face.__all__:
        thing = getattr(face, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__module__.startswith(f"imago.{room}.")


@pytest.mark.quick
def test_rooms_import_from_the_floors_below():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for module, targets in ARROWS.items():
        for target in targets:
            here, there = room_of(module), room_of(target)
            assert here == there or floor[there] < floor[here], f"{module} imports {target}: {there} is no floor below"


def test_no_file_imports_itself_by_a_detour():
    colour: dict[str, str] = defaultdict(lambda: "white")

    def visit(module: str, path: tuple[str, ...]) -> None:
        colour[module] = "grey"
        for target in ARROWS[module]:
            assert colour[target] != "grey", f"a circle: {' -> '.join([*path, module, target])}"
            if colour[target] == "white":
                visit(target, (*path, module))
        colour[module] = "black"

    for module in MODULES:
        if colour[module] == "white":
            visit(module, ())


def test_only_the_edge_knows_hydra():
    knows = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "hydra")
        or (isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == "hydra" for alias in node.names))
    }
    assert knows == KNOW_HYDRA


def test_rooms_work_without_hydra():
    rooms = (
        "data",
        "model",
        "dp",
        "evaluation",
        "checkpoint",
        "run",
        "report",
        "callbacks",
        "inspection",
        "comparison",
    )
    code = (
        "import importlib, sys\n"
        f"for room in {rooms!r}:\n"
        "    face = importlib.import_module(f'imago.{room}')\n"
        "    for name in face.__all__:\n"
        "        getattr(face, name)\n"
        "        assert 'hydra' not in sys.modules, f'imago.{room}.{name} imports hydra'\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_private_names_of_others_stand_in_one_place():
    for path in FILES:
        if path.name == "lightning_internals.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
                continue
            owner = ast.unparse(node.value)
            if owner in ("self", "cls", "super()") or node.attr in ("_target_", "_replace", "_pending", "_starts"):
                continue
            assert f"{owner.rpartition('.')[2]}.{node.attr}" in PRIVATE, (
                f"{path.relative_to(PACKAGE)}, line {node.lineno} reaches into {owner}.{node.attr}: if it is "
                "Lightning's, lightning_internals.py is the place"
            )


def test_importing_changes_nothing_in_the_process():
    code = (
        "import logging, signal, sys, warnings\n"
        "def state():\n"
        "    root = logging.getLogger()\n"
        "    signals = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]\n"
        "    return root.handlers[:], root.level, signals, warnings.formatwarning, sys.path[:], sys.meta_path[:]\n"
        "import torch, lightning.pytorch, torchvision, torchmetrics, hydra.core.config_store, matplotlib, opacus\n"
        "before, store = state(), vars(hydra.core.config_store.ConfigStore).copy()\n"
        "own = logging.getLogger('lightning').handlers[:]\n"
        "import importlib\n"
        f"for name in {sorted(set(MODULES) - {'imago.config.signatures'})!r}: importlib.import_module(name)\n"
        "assert state() == before\n"
        "assert dict(vars(hydra.core.config_store.ConfigStore)) == dict(store)\n"
        "assert logging.getLogger('lightning').handlers == own\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr


def test_hydra_is_as_we_know_it(tmp_path):
    changed = "Hydra has changed: read cli/hydra_internals.py again"
    made: list[object] = []

    def job(_: DictConfig) -> None:
        invocation = Invocation.from_hydra()
        with hydra_internals.singletons_kept():  # as in the first line of another process
            hydra_internals.restore_hydra(invocation.hydra)
            made.append(OmegaConf.select(OmegaConf.create({"to": "${hydra:runtime.output_dir}"}), "to"))
        made.extend([invocation, hydra_internals.composed_again("train", ["data=digits", "seed=5"])])

    register()
    words = ["seed=3", f"hydra.run.dir={tmp_path}"]
    with hydra_internals.singletons_kept(), hydra_internals.composed_fast():
        hydra_internals.run_job("train", words, job)
        cfg = OmegaConf.create({"a": 1, "b": "${a} and ${best_mode:val/${c}}", "c": "loss"})
        texts = [cfg.b]
        cfg.a, cfg.c = 2, "acc"
        parses = omegaconf.base.parse.cache_info().misses
        texts.append(cfg.b)
        assert omegaconf.base.parse.cache_info().misses == parses, changed
    assert texts == ["1 and min", "2 and max"], changed  # parsed once, and read each time
    where, invocation, again = made
    assert where == invocation.output_dir == str(tmp_path), changed
    assert (invocation.config_name, invocation.overrides, invocation.choices["model"]) == (
        *("train", ("seed=3",)),
        "auto",
    ), changed
    assert Invocation.from_plain(json.loads(json.dumps(invocation.to_plain()))) == invocation, changed
    assert again.seed == 5, changed
    assert "__deepcopy__" not in vars(ConfigStore), changed


class Probe(internals.LightModule):
    """Asks each function of lightning_internals.py while Lightning trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.seen: list[tuple] = []
        self.validated = 0

    def training_step(self, batch, batch_idx):
        trainer = self.trainer
        self.seen.append(
            (
                internals.position(trainer),
                internals.is_within_epoch(trainer),
                internals.batches_so_far(trainer),
                internals.is_accumulating(trainer),
            )
        )
        return self.layer(batch).sum()

    def on_train_batch_end(self, *_):
        self.seen[-1] += (internals.is_last_batch(self.trainer), internals.validation_is_due(self.trainer))

    def on_train_start(self):
        internals.validate_now(self.trainer)
        self.validated_first = (self.validated, self.trainer.training, self.trainer.global_step)
        internals.restart_averages(self.trainer, self)

    def validation_step(self, batch, batch_idx):
        self.validated += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_is_as_we_know_it(tmp_path):
    loader = DataLoader(torch.zeros(4, 2), batch_size=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    timer, averaging = Timer(duration="00:01:00:00"), EMAWeightAveraging()
    assert internals.average_of(averaging) is None
    trainer = Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        callbacks=[timer, averaging],
        default_root_dir=tmp_path,
        devices=1,
        **quiet,
    )
    probe = Probe()
    internals.leave_signals_alone(trainer)
    trainer.fit(probe, loader, loader)
    changed = "Lightning has changed: read lightning_internals.py again"
    assert probe.validated_first == (6, True, 0), changed  # 2 of them for sanity
    assert probe.validated == 14, changed
    assert vars(EMAWeightAveraging())["_average_model"] is None, changed
    assert [each[0] for each in probe.seen] == [(e, b) for e in (0, 1) for b in (1, 2, 3, 4)], changed
    assert all(each[1] for each in probe.seen), changed
    assert [each[2] for each in probe.seen] == list(range(8)), changed
    assert [each[3] for each in probe.seen] == [True, False, True, False] * 2, changed
    assert [each[4:] for each in probe.seen] == [(False, False)] * 3 + [(True, True)] + [(False, False)] * 3 + [
        (True, True)
    ], changed
    assert internals.callbacks_of(trainer, Timer) == [timer], changed
    assert internals.average_of(averaging).n_averaged == 4, changed
    assert internals.option_of(trainer, "overfit_batches") == 0.0, changed
    assert internals.option_of(trainer, "log_every_n_steps") == 50, changed
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    loops = torch.load(tmp_path / "end.ckpt", weights_only=True)["loops"]["fit_loop"]
    internals.rewind_to_epoch_start(loops, validating=False)
    assert loops["epoch_loop.batch_progress"]["current"]["ready"] == 0, changed
    counts = loops["epoch_progress"]["current"]
    assert counts["completed"] == counts["processed"] == 2, changed
    internals.forget_restart(trainer)
    internals.train_no_epoch(trainer)
    assert trainer.fit_loop.epoch_loop._restarting is False, changed
    assert trainer.max_epochs == 0, changed
