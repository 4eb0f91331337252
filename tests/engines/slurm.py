"""A Slurm cluster of several nodes on this machine, with GPUs that only Slurm believes in.

Debian's `munge` and `slurm-wlm` are enough, and root: each node is a `slurmd` of its own port and spool, its GPUs are
device files that behave like `/dev/null`. Nothing outlives the context, and nothing outside its folder is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
START_S = 30.0

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge/socket
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
KillWait={kill_wait_s}
MaxArraySize={max_array_size}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"{lacking[0]} is not installed (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "a Slurm cluster of its own needs root"


@dataclass
class SlurmCluster:
    """A running cluster.

    Attributes:
        home: Configuration, state and logs.
        environment: What a command needs to reach this cluster and no other.
        nodes: Names, `n0` first.
    """

    home: Path
    environment: Mapping[str, str]
    nodes: list[str]
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, *command: str, check: bool = True) -> str:
        """The standard output of one of Slurm's commands."""
        return subprocess.run(
            command, env=self.environment, check=check, capture_output=True, text=True, timeout=60
        ).stdout

    def start(self, name: str, *command: str) -> None:
        """Start a daemon."""
        with (self.home / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)

    def start_node(self, node: str) -> None:
        """Bring a node up."""
        self.start(node, "slurmd", "-D", "-N", node, "-f", str(self.home / "slurm.conf"))

    def kill_node(self, node: str) -> None:
        """Lose a node with everything that runs on it, as when its power fails."""
        import psutil

        daemon = self._daemons.pop(node)
        doomed = psutil.Process(daemon.pid).children(recursive=True)
        mine = (node, self.environment["SLURM_CONF"])
        for process in psutil.process_iter():  # steps are no children of the daemon
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if (environment.get("SLURMD_NODENAME"), environment.get("SLURM_CONF")) == mine:
                    doomed.append(process)
        for process in doomed:
            with contextlib.suppress(psutil.Error):
                process.kill()
        daemon.kill()
        daemon.wait()

    def wait_idle(self, timeout_s: float = START_S) -> None:
        """Wait until every node is idle."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            states = self.run("sinfo", "-h", "-p", "gpu", "-N", "-o", "%T", check=False).split()
            if len(states) == len(self.nodes) and set(states) == {"idle"}:
                return
            time.sleep(0.2)
        raise TimeoutError(f"the nodes are not idle after {timeout_s:.0f} s: {states}; logs: {self.home}")

    def stop(self) -> None:
        """End every daemon and every job."""
        self.run("scancel", "--signal=KILL", "--user=root", check=False)
        for daemon in reversed(self._daemons.values()):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextlib.contextmanager
def slurm_cluster(
    nodes: Mapping[str, str], *, cpus: int = 8, kill_wait_s: int = 5, max_array_size: int = 1001
) -> Iterator[SlurmCluster]:
    """A cluster for the duration of the context.

    Args:
        nodes: Of each node its GPUs, `{"n0": "h100:2", "n1": "a100:2"}`.
        cpus: That each node claims to have.
        kill_wait_s: Between SIGTERM and SIGKILL of a job that is ended.
        max_array_size: One more than the largest index of an array.

    Raises:
        TimeoutError: It does not start.
    """
    home = Path(tempfile.mkdtemp(prefix="slurm-"))
    home.chmod(0o755)
    for name in ("munge", "state", *(f"spool-{node}" for node in nodes)):
        (home / name).mkdir(mode=0o711)
    key = home / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(len(nodes) + 1)
    lines, gres = [], []
    for (node, gpus), port in zip(nodes.items(), ports[1:], strict=True):
        lines.append(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=1000 "
            f"Gres=gpu:{gpus}"
        )
        kind, _, count = gpus.partition(":")
        for index in range(int(count)):
            os.mknod(home / f"{node}-gpu{index}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        gres.append(f"NodeName={node} Name=gpu Type={kind} File={home}/{node}-gpu[0-{int(count) - 1}]\n")
    (home / "gres.conf").write_text("".join(gres))
    (home / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=host,
            port=ports[0],
            home=home,
            nodes="\n".join(lines),
            kill_wait_s=kill_wait_s,
            max_array_size=max_array_size,
        )
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    cluster = SlurmCluster(home, inherited | {"SLURM_CONF": str(home / "slurm.conf")}, list(nodes))
    munge = [f"--{name}={home}/munge/{name.removesuffix('-file')}" for name in ("key-file", "socket", "pid-file")]
    munge += [f"--{name}={home}/munge/{name.removesuffix('-file')}" for name in ("log-file", "seed-file")]
    try:
        cluster.start("munged", "munged", "--foreground", "--force", *munge)
        cluster.start("slurmctld", "slurmctld", "-D", "-f", str(home / "slurm.conf"))
        for node in nodes:
            cluster.start_node(node)
        cluster.wait_idle()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(home, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        taken = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in taken]
