"""Runs whose processes are started by torchrun, or by Slurm's srun.

Of torchrun are its agents, each with the processes that it starts. For srun two forked processes stand in, with the
variables that Slurm sets: they start in no time, and rank 0 serves the store itself.
"""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import REPO, SMALL, Run, rows, same, type_command, type_in_subprocess
from torch.distributed.run import get_args_parser

import imago
from imago.cli.processes import free_port
from imago.config.launcher import current_launch

FIRST, SECOND, CABLE = "10.231.7.1", "10.231.7.2", "cable"
UNWELL = ("+callbacks.unwell._target_=snapshots.Unwell", "+callbacks.unwell.rank=1")


def srun(*words, processes=2, code="", nodes=1):
    """Types `srun --ntasks=2 python src/train.py <words>`; what the processes leave, by rank."""
    port = free_port()

    def task(rank):
        variables = {"SLURM_PROCID": rank, "SLURM_NTASKS": processes, "SLURM_LOCALID": rank // nodes}
        variables |= {
            "SLURM_NODEID": rank % nodes,
            "SLURM_NNODES": nodes,
            "SLURM_JOB_ID": 4711,
            "SLURM_JOB_NODELIST": "localhost",
            "MASTER_PORT": port,
        }
        setting = f"import os\nos.environ.update({ {name: str(value) for name, value in variables.items()} })\n"
        return type_in_subprocess(*words, code=setting + code)

    with ThreadPoolExecutor(processes) as threads:
        return list(threads.map(task, range(processes)))


def torchrun(words, *options, nodes=1, hosts=()):
    """Types `torchrun <options> src/train.py <words>` on each node; exit statuses and outputs of the agents."""
    address = [f"--nnodes={nodes}", f"--master_addr={FIRST if hosts else '127.0.0.1'}", f"--master_port={free_port()}"]
    environment = os.environ | {"PYTHONPATH": f"{REPO}/src:{REPO}/tests", "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(
            [
                *(hosts[node] if hosts else ()),
                sys.executable,
                "-m",
                "torch.distributed.run",
                *address,
                f"--node_rank={node}",
                *options,
                "src/train.py",
            ]
            + [str(word) for word in words],
            cwd=REPO,
            env=environment | {"PYTHONWARNINGS": "ignore"} | ({"GLOO_SOCKET_IFNAME": CABLE} if hosts else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(nodes)
    ]
    outputs = [agent.communicate(timeout=600)[0] for agent in agents]
    return [agent.returncode for agent in agents], outputs


@pytest.fixture(scope="module")
def settings(colours):
    """A training of two epochs, five steps each."""
    return [f"data.data_dir={colours}", *SMALL, "preflight=false", "report.pictures=false"]


@pytest.fixture(scope="module")
def own(settings, tmp_path_factory):
    """The run whose processes Imago itself has started."""
    folder = tmp_path_factory.mktemp("own")
    run = type_command("train", [*settings, "trainer=ddp_sim", f"paths.log_dir={folder}/logs"], folder / "run")
    assert run.exit_code == 0, run.output
    return run


def status_of(folder):
    return json.loads((folder / "status.json").read_text())


def weights_of(folder):
    return Run(folder, 0, "").weights()


def folders_below(path):
    return sorted(file.parent for file in Path(path).rglob("status.json"))


def test_two_nodes_make_the_run_of_two_processes(settings, own, tmp_path):
    """The weights to the bit, one folder with the same files; the config shows what was started."""
    words = [*settings, "trainer=cpu", f"paths.log_dir={tmp_path}/logs"]
    statuses, (first, second) = torchrun(words, "--nproc_per_node=1", nodes=2)
    assert statuses == [0, 0], first + second
    (folder,) = folders_below(tmp_path / "logs")
    assert same(weights_of(folder), own.weights())
    assert (folder / "metrics.jsonl").read_text() == own.text("metrics.jsonl")
    names = [{path.relative_to(run).as_posix() for path in run.rglob("*")} for run in (folder, own.dir)]
    assert names[0] == names[1]
    config = (folder / "config.yaml").read_text()
    assert "  devices: 1\n" in config
    assert "  num_nodes: 2\n" in config
    assert "  strategy: ddp\n" in config
    assert status_of(folder)["card"]["device"].startswith("2 x cpu")
    assert "epoch" in first
    assert "epoch" not in second


@pytest.fixture
def hosts():
    """Beginnings of commands for two hosts with different clocks: network namespaces that a cable connects."""
    names = [f"imago_{os.getpid()}_{end}" for end in "ab"]
    steps = [f"netns add {name}" for name in names]
    steps.append(f"link add {CABLE} netns {names[0]} type veth peer name {CABLE} netns {names[1]}")
    for name, address in zip(names, (FIRST, SECOND), strict=True):
        steps += [f"-n {name} address add {address}/30 dev {CABLE}", f"-n {name} link set {CABLE} up"]
        steps.append(f"-n {name} link set lo up")
    try:
        for step in steps:
            subprocess.run(["ip", *step.split()], check=True, capture_output=True, text=True)
        yield [["ip", "netns", "exec", name, "env", f"TZ=UTC{hours}"] for name, hours in zip(names, "08", strict=True)]
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces: {getattr(error, 'stderr', error)}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_two_hosts_make_the_run_of_two_processes(settings, own, tmp_path, hosts):
    words = [*settings, "trainer=cpu", "test=false", f"paths.log_dir={tmp_path}/logs"]
    statuses, (first, second) = torchrun(words, "--nproc_per_node=1", nodes=2, hosts=hosts)
    assert statuses == [0, 0], first + second
    (folder,) = folders_below(tmp_path / "logs")
    assert same(weights_of(folder), own.weights())


A_DISK_OF_ITS_OWN = """
import ctypes
if os.environ["SLURM_PROCID"] == "1":
    import imago.cli.orders
    imago.cli.orders.SECONDS_TO_SEE = 1
    libc = ctypes.CDLL(None)
    assert not libc.unshare(0x20000) and not libc.mount(b"none", b"/", None, 0x44000, None)
    assert not libc.mount(b"none", b"{folder}", b"tmpfs", 0, None)
    os.mkdir("{folder}/run")
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
    reason="no mount namespaces",
)
def test_a_folder_of_that_name_on_another_node_is_not_the_run_folder(settings, tmp_path):
    code = A_DISK_OF_ITS_OWN.replace("{folder}", str(tmp_path))
    first, second = srun(*settings, "trainer=cpu", f"hydra.run.dir={tmp_path}/run", code=code, nodes=2)
    assert (first.returncode, second.returncode) == (1, 1), first.stdout
    error = status_of(tmp_path / "run")["error"]
    assert re.match(
        rf"In process 1 of 2 \(\S+\): \S+ has another run folder {tmp_path}/run\. Type paths\.log_dir=", error
    )
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_data_that_differ_between_nodes_are_refused(settings, colours, own_colours, tmp_path):
    (own_colours / "train" / "red" / "000.png").unlink()
    code = f"os.environ['COPY'] = '{colours}' if os.environ['SLURM_PROCID'] == '0' else '{own_colours}'\n"
    words = ["trainer=cpu", "data.data_dir=${oc.env:COPY}", f"hydra.run.dir={tmp_path}/run"]
    first, second = srun(*settings, *words, code=code, nodes=2)
    assert (first.returncode, second.returncode) == (1, 1), first.stdout
    message = (
        r"Process 1 \(\S+\) has other images in \S+ than process 0: 12 of red in train, not 13\. Each node must have"
    )
    assert re.match(message, status_of(tmp_path / "run")["error"])


A_CLOCK_THAT_STANDS = """
import datetime, hydra.core.utils
class Still(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, 3, 4, 5)
hydra.core.utils.datetime = Still
"""


def test_two_launches_in_one_second_make_two_folders(settings, tmp_path):
    words = [*settings, "trainer=cpu", "preflight=only", f"paths.log_dir={tmp_path}/logs"]
    with ThreadPoolExecutor(2) as threads:
        launches = list(threads.map(lambda _: srun(*words, code=A_CLOCK_THAT_STANDS), range(2)))
    assert [process.returncode for launch in launches for process in launch] == [0] * 4, launches
    folders = folders_below(tmp_path / "logs")
    assert [status_of(folder)["status"] for folder in folders] == ["checked"] * 2
    assert [folder.name[:19] for folder in folders] == ["2026-01-02_03-04-05"] * 2


def test_eight_processes_score_as_one(settings, own, tmp_path):
    """To the bit, also a part of a split: limits count the batches of all processes together."""
    words = [*settings, "trainer=cpu", "train=false", f"ckpt_path={own.dir}/checkpoints/best.ckpt"]
    words += ["report.splits=[train,test]", "trainer.limit_predict_batches=0.5", f"paths.log_dir={tmp_path}/logs"]
    one = type_command("train", words, tmp_path / "one")
    first, *_ = srun(*words, f"hydra.run.dir={tmp_path}/eight", processes=8)
    assert first.returncode == 0, first.stdout
    eight = Run(tmp_path / "eight", 0, "")
    for split, images in (("train", 16), ("test", 15)):
        assert len(rows(eight, split)) == images
        assert rows(eight, split) == rows(one, split)
        assert eight.json(f"reports/metrics_{split}.json") == one.json(f"reports/metrics_{split}.json")


def test_torchrun_restarts_a_run_that_resumes_by_itself(settings, own, tmp_path):
    """A process is killed within the second epoch; nothing of the result shows it."""
    again = ["auto_resume=true", f"hydra.run.dir={tmp_path}/run", "callbacks.resume.every_n_train_steps=1"]
    again.append("test=false")
    killed = [*UNWELL, "+callbacks.unwell.batch=7", f"+callbacks.unwell.number={int(signal.SIGKILL)}"]
    statuses, (output,) = torchrun([*settings, *again, *killed], "--nproc_per_node=2", "--max-restarts=1")
    assert statuses == [0], output
    assert "Resumed at epoch 2 of 2, batch" in output
    assert re.search("ERROR +(Another process is gone without a message|Terminated by a signal)", output)
    status = status_of(tmp_path / "run")
    assert (status["status"], status["times_resumed"]) == ("completed", 1)
    assert same(weights_of(tmp_path / "run"), own.weights())


def test_what_goes_wrong_in_another_process_is_the_last_line_of_the_first(settings, tmp_path):
    words = [*settings, "trainer=cpu", *UNWELL, "+callbacks.unwell.batch=2", f"hydra.run.dir={tmp_path}/run"]
    first, second = srun(*words)
    assert (first.returncode, second.returncode) == (1, 1)
    error = "In process 1 of 2: ValueError: rank 1 is unwell\n(tests/snapshots.py, line "
    assert status_of(tmp_path / "run")["error"].startswith(error)
    assert first.stdout.strip().endswith(status_of(tmp_path / "run")["error"])
    assert "[rank 1] the disk of rank 1 is slow" in first.stdout
    assert "[rank 1] the disk of rank 1 is slow" in (tmp_path / "run" / "train.log").read_text()
    assert "Traceback" not in first.stdout + first.stderr
    assert second.stdout + second.stderr == ""


def test_a_process_that_is_killed_before_the_first_batch_ends_the_run(settings, tmp_path):
    """Rank 0 waits for it where the processes meet, and sees that it is gone."""
    killed = "import imago.training.build\nif os.environ['SLURM_PROCID'] == '1':\n"
    killed += "    imago.training.build.make_data = lambda *_: os.kill(os.getpid(), 9)\n"
    first, second = srun(*settings, "trainer=cpu", f"hydra.run.dir={tmp_path}/run", code=killed)
    assert (first.returncode, second.returncode) == (1, -signal.SIGKILL)
    assert status_of(tmp_path / "run")["error"].startswith("Process 1 of 2 has ended without a message: it was killed")


def test_a_typo_is_said_once(settings, tmp_path):
    first, second = srun(*settings, "data.batchsize=8", f"hydra.run.dir={tmp_path}/run")
    assert (first.returncode, second.returncode) == (1, 1)
    assert "Did you mean data.batch_size=8?" in first.stderr
    assert first.stdout + second.stdout + second.stderr == ""
    assert not (tmp_path / "run").exists()


def test_a_sweep_is_one_run_after_the_other(settings, tmp_path):
    words = ["-m", "seed=1,2", *settings, "trainer=cpu", "trainer.max_epochs=1", "test=false"]
    words += [*UNWELL, "+callbacks.unwell.batch=2", f"+callbacks.unwell.number={int(signal.SIGCONT)}"]
    first, second = srun(*words, f"hydra.sweep.dir={tmp_path}/sweep")
    assert (first.returncode, second.returncode) == (0, 0), first.stdout + first.stderr
    assert second.stdout + second.stderr == ""
    jobs = folders_below(tmp_path / "sweep")
    assert [status_of(job)["status"] for job in jobs] == ["completed"] * 2
    assert not same(*map(weights_of, jobs))
    assert all("[rank 1] the disk of rank 1 is slow" in (job / "train.log").read_text() for job in jobs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.devices=4"], "trainer.devices=4: srun started 2 processes. Remove the setting, which is 2 then"),
        (
            ["+trainer.num_nodes=3"],
            "trainer.num_nodes=3: srun started 2 processes. Remove the setting, which is 1 then",
        ),
    ],
)
def test_settings_that_contradict_the_launcher_are_refused(settings, tmp_path, words, message):
    first, second = srun(*settings, *words, f"hydra.run.dir={tmp_path}/run")
    assert (first.returncode, second.returncode) == (1, 1)
    assert message in first.stderr
    assert second.stdout + second.stderr == ""


OF_TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu05"}
OF_TORCHRUN |= {"MASTER_PORT": "29500"}
OF_SLURM = {"SLURM_NTASKS": "7", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NNODES": "2"}
OF_SLURM |= {"SLURM_JOB_ID": "124711", "SLURM_JOB_NODELIST": "gpu[05-06,9],cpu1", "SLURM_TASKS_PER_NODE": "4,3"}


@pytest.mark.quick
def test_what_launchers_say_of_a_process(monkeypatch):
    for name, value in (OF_TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    assert current_launch() == ("torchrun", 3, 4, 1, 2, 1, 2, "gpu05", 29500, True)
    for name in OF_TORCHRUN:
        monkeypatch.delenv(name)
    for name, value in OF_SLURM.items():
        monkeypatch.setenv(name, value)
    assert current_launch() == ("srun", 5, 7, 1, 3, 1, 2, "gpu05", 19711, False)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert current_launch() is None


def launch_with(monkeypatch, variables: dict[str, str]) -> None:
    """This process as a launcher starts it that sets these variables, and no place to meet but in them."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):  # of a run of several processes, in this one
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("launched", "said"),
    [
        (
            {"LOCAL_RANK": "0"},
            "LOCAL_RANK=0: torchrun, or another launcher, started this process, but did not set RANK",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "did not set LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS=2: the job has 2 tasks, and this process was started without srun"),
    ],
)
def test_a_process_that_cannot_find_the_others_is_refused(train, monkeypatch, launched, said):
    launch_with(monkeypatch, launched)
    first = train()
    assert said in first.error
    assert not first.dir.exists()
    for name in {"RANK", "LOCAL_RANK"} & launched.keys():
        monkeypatch.setenv(name, "1")
        second = train()  # the first has said it
        assert (second.exit_code, second.output, second.dir.exists()) == (1, "", False)


@pytest.mark.parametrize(
    ("launched", "said"),
    [
        ({"RANK": "1"}, "RANK=1: torchrun, or another launcher, started this process, but did not set LOCAL_RANK, "),
        (OF_TORCHRUN | {"RANK": "4"}, "RANK=4: torchrun started 4 processes on 2 nodes, 2 on this one, whose ranks"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2: mpirun, or another launcher of MPI, started several"),
    ],
)
def test_what_no_launcher_of_ours_has_started_is_refused(train, monkeypatch, launched, said):
    launch_with(monkeypatch, launched)
    run = train()
    assert said in run.error
    assert not run.dir.exists()


def test_commands_of_one_process_are_refused(command, monkeypatch, colours):
    for name, value in (OF_TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    run = command("doctor", f"data.data_dir={colours}")
    assert run.exit_code != 0
    assert "torchrun started 4 processes on 2 nodes, 2 on this one, and ml-doctor is a single one. Type it without" in (
        run.error
    )
    monkeypatch.setenv("RANK", "1")
    assert command("doctor", f"data.data_dir={colours}").output == ""


@pytest.mark.quick
def test_the_page_has_commands_that_torchrun_and_imago_take():
    page = (REPO / "docs" / "devices.md").read_text()
    lines = re.findall(r"\| `torchrun ([^`]*)` \|", page)
    assert len(lines) >= 8
    settings = {}
    for line in lines:
        typed = get_args_parser().parse_args(line.split())
        assert typed.training_script in ("src/train.py", "src/eval.py", "ml-train")
        words = [word for word in typed.training_script_args if word not in ("-m", "seed=1,2,3")]
        settings |= {word.partition("=")[0]: word for word in words if typed.training_script != "src/eval.py"}
    assert imago.load_config(*settings.values()).auto_resume
