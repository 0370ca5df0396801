"""Merges on a real Slurm of one node: whatever is killed, requeued or cancelled, the files are those of one process."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deltaweights import apply_delta
from tests.support.hub_client import Machine
from tests.support.hub_server import HubServer
from tests.support.limits import PATIENCE
from tests.unit.cluster import SIZE, Pair, files_of

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[3] / "scripts" / "slurm"
SUBMIT, TEST_CLUSTER = str(SCRIPTS / "submit"), str(SCRIPTS / "test-cluster")

FOUR_AT_ONCE = ("--sbatch-option", "--cpus-per-task=1")
"""On two processors, which is what the node has at least where these tests run."""

SOON = PATIENCE
"""Seconds after which what a test waits for is not coming any more."""

ENDS = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}

Environment = dict[str, str]

PROGRAM = """
import importlib, os, signal, threading
from pathlib import Path
from deltaweights.cli import main
from deltaweights.staging.staged_shards import StagedShards

order = Path(ORDERS) / os.environ.get("SLURM_ARRAY_TASK_ID", "none")
told, adopt = threading.Event(), StagedShards.adopt
signals = importlib.import_module("deltaweights.util.interruption")
record = signals._record


def hear(number, frame):
    told.set()
    record(number, frame)


def keep_and_obey(self, folder, fragment):
    adopt(self, folder, fragment)
    if order.exists():
        said = order.read_text()
        order.unlink()
        if said == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        order.with_suffix(".waits").touch()
        told.wait(400)


signals._record, StagedShards.adopt = hear, keep_and_obey
main()
"""
"""``deltaweights``, of which a task of an array, once it has finished a shard, dies or waits for a signal, as ordered."""


@dataclass
class Cluster:
    """The running Slurm, for one test: jobs start in ``folder``, and use the program that obeys ``orders``."""

    folder: Path
    environment: Environment = field(repr=False)

    @property
    def target(self) -> Path:
        """Where the merged checkpoint is to be."""
        return self.folder / "out put"

    def run(self, *command: str | Path, code: int = 0, more: Environment | None = None) -> str:
        """Run a command, which ends with ``code``, and return what it prints; it has ``more`` in its environment."""
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            timeout=SOON,
            check=False,
            cwd=self.folder,
            env=self.environment | (more or {}),
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, pair: Pair, *more: str, size: int | None = SIZE) -> dict[str, str]:
        """Run scripts/slurm/submit for a pair; return what it says, ids of jobs by name."""
        arguments = [
            "--target",
            str(self.target),
            *FOUR_AT_ONCE,
            "--base",
            str(pair[0]),
            "--delta",
            str(pair[1]),
            *more,
        ]
        sized = ["--max-shard-size", f"{size}B"] if size else []
        out = self.run(SUBMIT, *arguments, "--", "--workers", "1", *sized)
        return dict(line.split(" ", 1) for line in out.splitlines())

    def finish_by_hand(self, code: int = 0) -> str:
        """Run ``deltaweights finish``."""
        return self.run(self.environment["DELTAWEIGHTS"], "finish", "--target", self.target, code=code)

    def order(self, task: int, what: str) -> Path:
        """Tell the task with an id to "die" or to "wait", once; return what exists as soon as it waits."""
        orders = self.folder / "orders"
        orders.mkdir(exist_ok=True)
        (orders / str(task)).write_text(what)
        return orders / f"{task}.waits"

    def states(self, job: str) -> set[str]:
        """Return the states that the tasks of a job are in."""
        return set(re.findall(r"JobState=(\w+)", self.run("scontrol", "--oneliner", "show", "job", job)))

    def wait_for(self, *wanted: str, job: str) -> None:
        """Wait until all tasks of a job are in one of the ``wanted`` states; fail when one has ended in another."""

        def are_there() -> bool:
            states = self.states(job)
            assert not states & ENDS - {*wanted}, self.run("scontrol", "show", "job", job) + self.logs()
            return states <= {*wanted}

        wait_until(
            are_there, lambda: self.run("scontrol", "show", "job", job) + self.run("sinfo", "--long") + self.logs()
        )

    def logs(self) -> str:
        """Return what all jobs have printed."""
        return "\n".join(path.read_text() for path in sorted(Path(f"{self.target}.slurm").glob("*.log")))

    def log(self, job: str, task: int) -> str:
        """Return what a task has printed."""
        return Path(f"{self.target}.slurm", f"part-{job}_{task}.log").read_text()

    def assert_like(self, whole: Path) -> None:
        """Assert that the target has the files of ``whole``, byte for byte, and that no staging is left."""
        assert files_of(self.target) == files_of(whole)
        assert not self.target.with_name(f".{self.target.name}.deltaweights").exists()


def wait_until(holds: Callable[[], bool], tell: Callable[[], str] = str) -> None:
    """Wait until a condition holds; fail with what there is to ``tell`` when it does not."""
    end = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < end, tell()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def whole(tiny: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merge the pair in one process."""
    target = tmp_path_factory.mktemp("whole") / "out"
    apply_delta(*tiny, target, max_shard_size=SIZE)
    assert len([*target.glob("*.safetensors")]) > 10
    return target


@pytest.fixture(scope="module")
def slurm() -> Iterator[Environment]:
    """Start a Slurm; return the environment that finds it. Skip where it cannot be installed or started, unless it must be."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="deltaweights-slurm-"))
    folder.chmod(0o755)  # munge wants its socket where everybody can reach it
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    plain |= {"TEST_CLUSTER_DIR": str(folder), "TEST_CLUSTER_PORT": str(port)}
    try:
        started = subprocess.run([TEST_CLUSTER, "start"], capture_output=True, text=True, check=False, env=plain)
        if started.returncode:
            reason = f"no Slurm here: {started.stderr.strip()}"
            assert "DELTAWEIGHTS_NEEDS_SLURM" not in os.environ, reason
            pytest.skip(reason.splitlines()[0])
        (found,) = shlex.split(started.stdout)[1:]
        yield plain | dict([found.split("=", 1)])
    finally:
        subprocess.run([TEST_CLUSTER, "stop"], timeout=PATIENCE, check=True, env=plain)
        shutil.rmtree(folder)


@pytest.fixture
def cluster(slurm: Environment, tmp_path: Path) -> Cluster:
    """Return the Slurm, for one test."""
    program = tmp_path / "deltaweights"
    program.write_text(f"#!{sys.executable}\nORDERS = {str(tmp_path / 'orders')!r}\n{PROGRAM}")
    program.chmod(0o755)
    return Cluster(tmp_path, slurm | {"DELTAWEIGHTS": str(program), "COLUMNS": "200"})


def test_an_array_of_four(tiny: Pair, whole: Path, cluster: Cluster) -> None:
    """Four tasks, each with work, and the job that publishes write what one process writes; sent again, all end with 0."""
    job = cluster.submit(tiny)
    assert [*job] == ["parts", "finish", "logs"]
    cluster.wait_for("COMPLETED", job=job["finish"])
    for task in range(1, 5):
        assert re.search(rf"^part +{task}/4: finished, [1-9]\d* shards? made", cluster.log(job["parts"], task), re.M)
    cluster.assert_like(whole)
    again = cluster.submit(tiny)
    cluster.wait_for("COMPLETED", job=again["finish"])
    assert all("already complete" in cluster.log(again["parts"], task) for task in range(1, 5))
    cluster.assert_like(whole)


def test_the_size_of_shards_gives_every_part_work(tiny: Pair, cluster: Cluster, tmp_path: Path) -> None:
    """Without --max-shard-size one is chosen with which each of 5 tasks makes shards, and kept for those who go on."""
    job = cluster.submit(tiny, "--parts", "5", size=None)
    cluster.wait_for("COMPLETED", job=job["finish"])
    made = [
        int(re.findall(r"finished, (\d+) shards? made", cluster.log(job["parts"], task))[0]) for task in range(1, 6)
    ]
    assert min(made) > 0
    assert len([*cluster.target.glob("*.safetensors")]) == sum(made)
    size = int((Path(job["logs"]) / "max-shard-size").read_text())
    apply_delta(*tiny, tmp_path / "one", max_shard_size=size)
    cluster.assert_like(tmp_path / "one")
    more = cluster.submit(tiny, "--parts", "2", size=None)
    cluster.wait_for("COMPLETED", job=more["finish"])


def test_a_killed_task_is_requeued(tiny: Pair, whole: Path, cluster: Cluster) -> None:
    """When a task's process is killed, the publishing job never runs, and finish by hand ends with 6; requeued, it goes on."""
    cluster.order(2, "die")
    job = cluster.submit(tiny)
    cluster.wait_for("CANCELLED", job=job["finish"])
    cluster.wait_for("COMPLETED", "FAILED", job=job["parts"])
    assert cluster.states(f"{job['parts']}_2") == {"FAILED"}
    assert not cluster.target.exists()
    assert "not all shards are finished" in cluster.finish_by_hand(code=6)
    cluster.run("scontrol", "requeue", f"{job['parts']}_2")
    cluster.wait_for("COMPLETED", job=job["parts"])
    log = cluster.log(job["parts"], 2)
    assert log.count("tensors: ") == 2, "what the first attempt printed is still there"
    cluster.finish_by_hand()
    cluster.assert_like(whole)


def test_a_running_task_is_requeued(tiny: Pair, whole: Path, cluster: Cluster) -> None:
    """A task that is requeued while it runs, as for a preemption, ends in order and goes on later; the publishing job waits."""
    waits = cluster.order(3, "wait")
    job = cluster.submit(tiny)
    wait_until(waits.exists, cluster.logs)
    cluster.run("scontrol", "requeue", f"{job['parts']}_3")
    cluster.wait_for("COMPLETED", job=job["finish"])
    log = cluster.log(job["parts"], 3)
    assert log.count("tensors: ") == 2
    assert "deltaweights: error: terminated" in log, "SIGTERM reached Python"
    cluster.assert_like(whole)


def test_a_cancelled_task_is_made_up_for(tiny: Pair, whole: Path, cluster: Cluster) -> None:
    """When a task is cancelled, SIGTERM reaches Python and the publishing job never runs; sent again, only what lacks is made."""
    waits = cluster.order(4, "wait")
    job = cluster.submit(tiny)
    wait_until(waits.exists, cluster.logs)
    assert "another run is writing to this folder" in cluster.finish_by_hand(code=7)
    cluster.run("scancel", f"{job['parts']}_4")
    cluster.wait_for("CANCELLED", job=job["finish"])
    cluster.wait_for("COMPLETED", "CANCELLED", job=job["parts"])
    assert "deltaweights: error: terminated" in cluster.log(job["parts"], 4)
    assert not cluster.target.exists()
    again = cluster.submit(tiny)
    cluster.wait_for("COMPLETED", job=again["finish"])
    assert all(": finished, 0 shards made" in cluster.log(again["parts"], task) for task in (1, 2, 3))
    assert re.search("4/4: finished, [1-9]", cluster.log(again["parts"], 4))
    cluster.assert_like(whole)


def test_ids_that_are_not_contiguous(tiny: Pair, whole: Path, cluster: Cluster) -> None:
    """Uneven ids need their list, also in jobs that inherit the marks of a step of srun; without it every task ends with 2."""
    inherited = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    script, log = SCRIPTS / "apply-array.sbatch", cluster.folder / "log-%a"
    command = ["sbatch", "--parsable", "--wait", "--array=1,4,9", "--cpus-per-task=1", f"--output={log}", str(script)]
    command += ["--base", str(tiny[0]), "--delta", str(tiny[1]), "--target", str(cluster.target)]
    command += ["--max-shard-size", f"{SIZE}B"]
    cluster.run(*command, code=2, more=inherited)
    assert {(cluster.folder / f"log-{task}").read_text().count("not evenly spaced") for task in (1, 4, 9)} == {1}
    cluster.run(*command, "--part", "slurm:1,4,9", more=inherited)
    for part, task in enumerate((1, 4, 9), 1):
        assert f"{part}/3: finished" in (cluster.folder / f"log-{task}").read_text()
    cluster.finish_by_hand()
    cluster.assert_like(whole)


def test_two_tasks_of_srun(tiny: Pair, whole: Path, cluster: Cluster) -> None:
    """Two tasks of one srun are parts 1 and 2 of 2."""
    command = ["srun", "--ntasks=2", "--overcommit", cluster.environment["DELTAWEIGHTS"], "apply", "--part", "slurm"]
    command += ["--base", str(tiny[0]), "--delta", str(tiny[1]), "--target", str(cluster.target)]
    said = cluster.run(*command, "--max-shard-size", f"{SIZE}B")
    assert {*re.findall(r"^part +(\d/\d): finished", said, re.M)} == {"1/2", "2/2"}
    cluster.finish_by_hand()
    cluster.assert_like(whole)


def test_what_comes_from_the_hub_is_fetched_once(
    tiny: Pair, whole: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of models of the Hub each is fetched by a job of its own before the parts begin, which read the cache."""
    with HubServer({"acme/base": tiny[0], "acme/delta": tiny[1]}) as hub:
        Machine(monkeypatch, tmp_path, hub)
        cluster.environment |= {k: v for k, v in os.environ.items() if k.startswith("HF_")}
        job = cluster.submit((Path("acme/base"), Path("acme/delta")))
        cluster.wait_for("COMPLETED", job=job["finish"])
        assert len([*Path(job["logs"]).glob("download-*.log")]) == 2
        sent = {name: count for name, count in hub.sent.items() if name.endswith(".bin")}
    inputs = {f"acme/{path.relative_to(tiny[0].parent)}": path for folder in tiny for path in folder.glob("*.bin")}
    assert sent.keys() == inputs.keys()
    assert all(sent[name] < 2 * path.stat().st_size for name, path in inputs.items())
    for path in whole.glob("*.safetensors"):
        assert (cluster.target / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--parts", "4"], "--target is missing (see --help)", id="no-target"),
        pytest.param(["--target", "T", "--parts", "0"], "--parts is not a number of tasks: 0", id="no-parts"),
        pytest.param(
            ["--target", "T", "--strict"],
            "no such option: --strict (options of apply stand after --; see --help)",
            id="before-the-dashes",
        ),
        pytest.param(["--target"], "--target needs a value", id="no-value"),
        pytest.param(["--target=T", "--", "--part", "1/2"], "--part is not for a merge in parts", id="its-own-part"),
    ],
)
def test_a_wrong_command_line_is_told_of(arguments: list[str], message: str) -> None:
    """The script refuses in one line what it cannot send, with 2."""
    done = subprocess.run([SUBMIT, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (2, f"submit: {message}\n")
