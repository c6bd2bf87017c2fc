"""The launcher that started this process as one of several: torchrun, or Slurm's srun."""

import os
import re
import sys
from collections.abc import Mapping
from typing import NamedTuple

from imago.errors import UserError

TORCHRUN, SRUN = "torchrun", "srun"
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NNODES", "SLURM_JOB_ID")
OF_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
OF_SEVERAL = {"WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS", *OF_MPI}
"""Variables of a process that is not the only one."""


class Launch(NamedTuple):
    """Place of this process among those that a launcher started for one command.

    `address` and `port` are those at which the processes meet, on the node of rank 0; `has_store` if the launcher
    itself serves a store there.
    """

    launcher: str
    rank: int
    processes: int
    local_rank: int
    local_processes: int
    node: int
    nodes: int
    address: str
    port: int
    has_store: bool

    @property
    def where(self) -> str:
        """Words for what was started."""
        nodes = f" on {self.nodes} nodes, {self.local_processes} on this one" if self.nodes > 1 else ""
        return f"{self.launcher} started {self.processes} process{'es' if self.processes > 1 else ''}{nodes}"

    @property
    def device(self) -> int:
        """Number of the device of this process among those that it sees: only its own, where Slurm binds tasks to GPUs
        (--gpus-per-task), or with torchrun --virtual-local-rank."""
        return 0 if self.has_own_device else self.local_rank

    @property
    def has_own_device(self) -> bool:
        """Whether this process sees a single GPU, of several processes of its node."""
        visible = os.environ.get("HIP_VISIBLE_DEVICES") or os.environ.get("CUDA_VISIBLE_DEVICES", "")
        is_first = self.launcher == SRUN or self.local_rank == 0  # --virtual-local-rank makes each the first
        return is_first and self.local_processes > 1 and visible != "" and "," not in visible

    def typed(self, program: str) -> str:
        """The program as it is typed with the launcher: `torchrun --nproc_per_node=2 src/train.py`."""
        if self.launcher == SRUN:
            return f"srun {program}"
        script = program.removeprefix("python ") if program.startswith("python ") else f"--no-python {program}"
        nodes = f"--nnodes={self.nodes} " if self.nodes > 1 else ""
        return f"torchrun {nodes}--nproc_per_node={self.local_processes} {script}"


def current_launch() -> Launch | None:
    """The launch to which this process belongs; None if it was started alone.

    Raises:
        UserError: A launcher started it, and left out what a process must know.
    """
    env = os.environ
    is_one_of_several = env.get("WORLD_SIZE") not in (None, "0", "1") or env.get("RANK", "0") != "0"
    if is_one_of_several or env.keys() & {"TORCHELASTIC_RUN_ID", "LOCAL_RANK"}:
        return _of_torchrun(env)
    if "SLURM_PROCID" not in env and (sizes := [name for name in OF_MPI if env.get(name, "1") != "1"]):
        raise UserError(
            f"{sizes[0]}={env[sizes[0]]}: mpirun, or another launcher of MPI, started several processes, each of which "
            "would make a run of its own. Start the command with torchrun or srun (docs/devices.md)."
        )
    is_interactive = "SLURM_PROCID" not in env and env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if env.get("SLURM_NTASKS", "1") == "1" or is_interactive:
        return None  # a job of one task: Imago starts the processes of its GPUs
    return _of_srun(env)


def processes_here(processes: int) -> int:
    """How many of the `processes` of a run share the cores of this node."""
    launch = current_launch() if processes > 1 else None
    return processes if launch is None else launch.local_processes


def launch_of(command: str, one_process: bool = False) -> Launch | None:
    """The launch of this process, as `current_launch`; a command of one process may not have several.

    Raises:
        UserError: It has, or the launcher has left something out. This is the first process, which speaks.
        SystemExit: One of these, in another process.
    """
    try:
        launch = current_launch()
        if one_process and launch is not None and launch.processes > 1:
            raise UserError(f"{launch.where}, and {command} is a single one. Type it without {launch.launcher}.")
    except UserError:
        is_other = any(os.environ.get(name, "0") != "0" for name in RANKS)
        if is_other and OF_SEVERAL & os.environ.keys():  # there is a first one
            sys.exit(1)
        raise
    if launch is not None and launch.rank >= launch.processes:
        raise UserError(f"RANK={launch.rank}: {launch.where}, whose ranks are 0 to {launch.processes - 1}.")
    return launch


def _of_torchrun(env: Mapping[str, str]) -> Launch:
    known = [name for name in (*OF_TORCHRUN, "TORCHELASTIC_RUN_ID") if name in env]
    local = env.get("LOCAL_WORLD_SIZE", env.get("WORLD_SIZE") if env.get("GROUP_WORLD_SIZE", "1") == "1" else None)
    values = {name: env.get(name) for name in OF_TORCHRUN} | {"LOCAL_WORLD_SIZE": local}
    if missing := [name for name, value in values.items() if not value]:
        raise UserError(
            f"{known[0]}={env[known[0]]}: torchrun, or another launcher, started this process, but did not set "
            f"{', '.join(missing)}. Start it with torchrun. Without a launcher, type unset {' '.join(known)}."
        )
    rank, local_rank, processes, local_processes = (_number(name, values[name]) for name in OF_TORCHRUN[:4])
    return Launch(
        TORCHRUN,
        rank,
        processes,
        local_rank,
        local_processes,
        _number("GROUP_RANK", env.get("GROUP_RANK", str(rank // local_processes))),
        _number("GROUP_WORLD_SIZE", env.get("GROUP_WORLD_SIZE", str(-(-processes // local_processes)))),
        str(values["MASTER_ADDR"]),
        _number("MASTER_PORT", values["MASTER_PORT"]),
        env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _of_srun(env: Mapping[str, str]) -> Launch:
    tasks = env["SLURM_NTASKS"]
    if "SLURM_PROCID" not in env or ("SLURM_TASK_PID" in env and "SLURM_STEP_ID" not in env):  # of a job's own shell
        raise UserError(
            f"SLURM_NTASKS={tasks}: the job has {tasks} tasks, and this process was started without srun. Type srun "
            "before the command, or ask for one task (#SBATCH --ntasks=1), which starts those of its GPUs itself with "
            "trainer=ddp."
        )
    if missing := [name for name in OF_SRUN if not env.get(name)]:
        raise UserError(f"SLURM_NTASKS={tasks}: srun did not set {', '.join(missing)}.")
    rank, local_rank, node, nodes, job = (_number(name, env[name].partition("_")[0]) for name in OF_SRUN)
    counts = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", ""))
    hosts = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", env.get("SLURM_NODELIST", "127.0.0.1")))
    step = env.get("SLURM_STEP_ID", "0")
    port = 15_000 + (job + 101 * (int(step) if step.isdigit() else 0)) % 10_000  # each process finds the same one
    return Launch(
        SRUN,
        rank,
        _number("SLURM_NTASKS", tasks),
        local_rank,
        _tasks_per_node(counts, node) or -(-_number("SLURM_NTASKS", tasks) // nodes),
        node,
        nodes,
        env.get("MASTER_ADDR") or _first_host(hosts),
        _number("MASTER_PORT", env.get("MASTER_PORT", str(port))),
        has_store=False,
    )


def _tasks_per_node(counts: str, node: int) -> int | None:
    """The number of tasks of a node, in Slurm's shorthand: `4(x2),3` is 4, 4, 3."""
    numbers: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        numbers += [int(count)] * int(times or 1)
    return numbers[node] if node < len(numbers) else None


def _first_host(hosts: str) -> str:
    """The first of Slurm's `gpu[05-07,9],cpu1`: `gpu05`. Lightning's SLURMEnvironment reads it likewise."""
    first = re.sub(r"\[([^],-]*)[^]]*\]", r"\1", hosts)
    return re.split(r"[ ,]", first)[0]


def _number(name: str, value: str | None) -> int:
    if value is None or not value.isdigit():
        raise UserError(f"{name}={value}: the launcher must set a whole number.")
    return int(value)
