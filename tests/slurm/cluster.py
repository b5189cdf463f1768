"""A real Slurm of many nodes on this one machine, in a folder of its own, gone without a trace when it is taken down.

Debian's slurmd is built for several daemons on a host: each virtual node is one, with its own port and spool folder.
Needs root, and the packages slurmctld, slurmd, slurm-client and munge. Every daemon runs in the foreground as our
child, so that it can be ended by its pid; tasks and step daemons are known by the SLURM_CONF in their environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

try:  # by hand as a module of the package; in tests by path
    from tests.slurm.wires import Wires
except ImportError:
    from wires import Wires

ROOT = Path(__file__).parents[2]
SHOWN = ROOT / ".ci" / "shown"  # jobs belong to a user who may not be able to reach our Python otherwise
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb", "mariadb-install-db", "sacct")
CPUS, MEMORY_MB = 4, 4000
START_S = 30.0
_POLL_S = 0.1
_LOOPBACK = "127.0.0.1"

_CONF = """\
ClusterName=virtual
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=15
KillWait=5
InactiveLimit=0
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
GresTypes=gpu
{nodes}
PartitionName=train Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=short Nodes=ALL MaxTime=5 State=UP PriorityTier=1
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs={cpus} RealMemory={memory} Gres=gpu:2"
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge/socket
JobAcctGatherType=jobacct_gather/none
"""
_SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""
_USER = "CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm'; GRANT ALL ON slurm.* TO slurm@'127.0.0.1';"
_GRES = "NodeName={name} Name=gpu File=/dev/tty[1-2]"


def missing(*, accounting: bool = False) -> list[str]:
    """What a cluster needs and this machine has not; empty when one can be started."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    commands = COMMANDS + (ACCOUNTING if accounting else ())
    lacks = [name for name in commands if shutil.which(name, path=path) is None]
    return lacks + ([] if os.geteuid() == 0 else ["root"])


class Cluster:
    """Its nodes are node0, node1, ...; what is known of its processes lies in `processes.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self._known = folder / "processes.json"

    @property
    def env(self) -> dict[str, str]:
        """The environment in which Slurm's commands mean this cluster."""
        path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
        site = os.environ.get("OPT_LAUNCH_SITE") or str(self.site)
        return {**os.environ, "PATH": path, "SLURM_CONF": str(self.conf), "OPT_LAUNCH_SITE": site}

    @property
    def nodes(self) -> list[str]:
        return [line.split()[0].removeprefix("NodeName=") for line in self._lines() if line.startswith("NodeName=")]

    @property
    def site(self) -> Path:
        """What its users have set for all runs: a host ledger that goes with the cluster."""
        return self.folder / "site.yaml"

    @property
    def runs(self) -> Path:
        """Where its users' runs are."""
        return self.folder / "runs"

    def _lines(self) -> list[str]:
        return self.conf.read_text().splitlines()

    # ------------------------------------------------------------ up and down

    @property
    def _wires(self) -> Wires | None:
        """The network of its own, if it has one."""
        return Wires.known(self.folder / "network", self.nodes)

    def up(self, nodes: int = 8, *, accounting: bool = False, wired: bool = False) -> None:
        """Start it and wait until every node is idle. Raises TimeoutError.

        With `accounting`, sacct answers. With `wired`, each node has an address of its own, and can be cut off.
        """
        names = [f"node{index}" for index in range(nodes)]
        for part in ("", "munge", "log", "state", "spool", *(f"spool/{name}" for name in names)):
            (self.folder / part).mkdir(mode=0o755, parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # jobs are submitted by others
        self.runs.mkdir(exist_ok=True)
        self.runs.chmod(0o1777)
        self.site.write_text(f"hosts: {{ledger: {self.runs / '.hosts'}}}\n")
        wires = Wires.lay(names) if wired else None
        if wires:
            wires.note(self.folder / "network")
        ports = _free_ports(nodes + 3)
        host = socket.gethostname()
        lines = [
            _NODE.format(
                name=name,
                host=host,
                port=port,
                cpus=CPUS,
                memory=MEMORY_MB,
                address=wires.address(name) if wires else _LOOPBACK,
            )
            for name, port in zip(names, ports[3:], strict=True)
        ]
        address = wires.host if wires else _LOOPBACK
        conf = _CONF.format(host=host, address=address, port=ports[0], folder=self.folder, nodes="\n".join(lines))
        self.conf.write_text(conf + (_ACCOUNTING.format(port=ports[1], folder=self.folder) if accounting else ""))
        (self.folder / "gres.conf").write_text("\n".join(_GRES.format(name=name) for name in names) + "\n")
        self._start_munge()
        if accounting:
            self._start_accounting(ports[1], ports[2])
        self.start_controller()
        for name in names:
            self.give_back(name)
        self.wait_for_nodes(names, "idle")

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._start(
            "munged", ["munged", "--foreground", *(f"--{flag}={folder / name}" for flag, name in files.items())]
        )
        _wait((folder / "socket").exists, START_S, "munged")

    def _start_accounting(self, port: int, database_port: int) -> None:
        """slurmdbd, over a MariaDB of its own."""
        data, socket_path = self.folder / "database", self.folder / "database.socket"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
        self.call(*install, "--auth-root-authentication-method=normal")
        options = [f"--datadir={data}", f"--socket={socket_path}", f"--port={database_port}", "--user=root"]
        self._start("mariadbd", ["mariadbd", "--no-defaults", "--bind-address=127.0.0.1", *options])
        talk = ["mariadb", "--no-defaults", f"--socket={socket_path}", "--user=root", "--execute"]
        _wait(lambda: self.call(*talk, "SELECT 1", check=False).returncode == 0, START_S, "mariadbd")
        self.call(*talk, _USER)
        conf = self.folder / "slurmdbd.conf"
        about = {"folder": self.folder, "host": socket.gethostname(), "port": port, "database_port": database_port}
        conf.write_text(_SLURMDBD.format(**about))
        conf.chmod(0o600)
        self._start("slurmdbd", ["slurmdbd", "-D"])
        answers = ["sacctmgr", "-n", "-i", "add", "cluster", "virtual"]
        _wait(lambda: self.call(*answers, check=False).returncode == 0, START_S, "slurmdbd")

    def start_controller(self) -> None:
        """Start slurmctld, for the first time or again."""
        self._start("slurmctld", ["slurmctld", "-D", "-i"])
        _wait(lambda: self.call("scontrol", "ping", check=False).returncode == 0, START_S, "slurmctld")

    def end_controller(self) -> None:
        """Have slurmctld save its state and leave. One killed outright may forget jobs, and kills them when back."""
        for process in self._daemon("slurmctld"):
            process.terminate()
            process.wait(START_S)
        self._forget("slurmctld")

    def down(self) -> None:
        """End everything, by pid, and remove the folder."""
        for process in [*self._processes(), *self.tasks()]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _wait(lambda: not self._processes() and not self.tasks(), START_S, "the end of all processes")
        if wires := self._wires:
            wires.remove()
        shutil.rmtree(self.folder)

    # ------------------------------------------------------------ nodes

    def lose(self, node: str) -> None:
        """The machine is gone: its daemon, step daemons and tasks, none of which gets to report another's death.

        The youngest first: the kernel wakes stopped children whose parent dies, and srun has one that ends the step.
        """
        for process in sorted(self.silence(node), key=lambda one: one.pid, reverse=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._forget(node)

    def silence(self, node: str) -> list[psutil.Process]:
        """The machine says nothing: all of its processes are stopped, and returned."""
        stopped = self.processes_of(node)
        for process in stopped:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGSTOP)
        return stopped

    def give_back(self, node: str) -> None:
        """Start the node's daemon, for the first time or after it was lost; a silenced or cut off one goes on."""
        wires = self._wires
        if wires:
            wires.mend(node)
        for process in self.processes_of(node):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        if not list(self._daemon(node)):
            inside = wires.inside(node) if wires else []
            self._start(node, [*inside, str(SHOWN), sys.executable, "slurmd", "-D", "-N", node])

    def cut_off(self, node: str) -> None:
        """The machine works on and reaches nobody; nobody reaches it. The cluster must be wired."""
        wires = self._wires
        assert wires is not None
        wires.cut(node)

    def drain(self, node: str, reason: str) -> None:
        """Its admin wants the node back: what runs there may end, and nothing new begins."""
        self.call("scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={reason}")

    def restore(self) -> None:
        """All nodes and the controller are up, none is drained, and no job is."""
        if not list(self._daemon("slurmctld")):
            self.start_controller()
        for node in self.nodes:
            self.give_back(node)
        if drained := [node for node in self.nodes if "drain" in self.state(node)]:  # unknown for seconds once opened
            self.call("scontrol", "update", f"NodeName={','.join(drained)}", "State=UNDRAIN")
        self.wait_for_nodes(self.nodes, "idle", 60)

    def state(self, node: str) -> str:
        """Slurm's word for a node: "idle", "drained*", ..."""
        said = self.call("sinfo", "-h", "-N", "-p", "train", "-n", node, "-o", "%T", check=False)
        return said.stdout.strip()

    def wait_for_nodes(self, nodes: Sequence[str], state: str, limit_s: float = START_S) -> None:
        """Return once all these nodes are in this state ("idle", "down*", ...)."""

        def states() -> set[str]:
            said = self.call("sinfo", "-h", "-N", "-p", "train", "-n", ",".join(nodes), "-o", "%T", check=False)
            return set(said.stdout.split())

        _wait(lambda: states() == {state}, limit_s, f"{state}: {', '.join(nodes)}")

    # ------------------------------------------------------------ processes

    def processes_of(self, node: str) -> list[psutil.Process]:
        """The node's daemon, its step daemons, and its tasks with all their descendants."""
        tasks = [process for process in self.tasks() if _variable(process, "SLURMD_NODENAME") == node]
        found = {process.pid: process for process in tasks}
        for process in [*self._daemon(node), *tasks]:
            with contextlib.suppress(psutil.Error):
                found[process.pid] = process
                for parent in process.parents():
                    if parent.name().startswith("slurmstepd"):
                        found[parent.pid] = parent
                for child in process.children(recursive=True):
                    found[child.pid] = child
        return list(found.values())

    def tasks(self) -> list[psutil.Process]:
        """Everything that was started in a job of this cluster, with its step daemons."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                of_ours = _variable(process, "SLURM_CONF") == str(self.conf)
                in_a_job = _variable(process, "SLURM_JOB_ID") or process.name().startswith("slurmstepd")
                if of_ours and in_a_job and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _daemon(self, name: str) -> Iterator[psutil.Process]:
        """A daemon of ours, while it lives."""
        known = self._read().get(name)
        with contextlib.suppress(psutil.Error):
            if known is not None:
                process = psutil.Process(known[0])
                if abs(process.create_time() - known[1]) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def _processes(self) -> list[psutil.Process]:
        return [process for name in self._read() for process in self._daemon(name)]

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._write({**self._read(), name: (process.pid, psutil.Process(process.pid).create_time())})

    def _forget(self, name: str) -> None:
        self._write({key: known for key, known in self._read().items() if key != name})

    def _read(self) -> dict[str, tuple[int, float]]:
        return json.loads(self._known.read_text()) if self._known.exists() else {}

    def _write(self, known: dict[str, tuple[int, float]]) -> None:
        self._known.write_text(json.dumps(known))

    # ------------------------------------------------------------ its commands

    def call(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands, as root."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=check, timeout=60)


def _variable(process: psutil.Process, name: str) -> str:
    """Of the environment; "" also of a process that is gone.

    Read as it lies there: step daemons write their title over its beginning, and psutil ends at the first empty word.
    """
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
            key, _, value = word.partition(b"=")
            if key == name.encode():
                return value.decode(errors="replace")
    return ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(is_so: object, limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(_POLL_S)
