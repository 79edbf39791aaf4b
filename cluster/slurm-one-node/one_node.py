"""A real SLURM on one machine: slurmctld and a few nodes, in a folder, on loopback.

No systemd, no munge, no cgroups, and no root needed. For tests and for trying out job scripts::

    eval "$(python one_node.py start /tmp/slurm --nodes 2)"     # exports SLURM_CONF
    sbatch ... ; squeue
    python one_node.py stop /tmp/slurm

Authentication is off, so that another user of the machine could submit jobs: for a machine of your
own, or a throw-away one. Memory of jobs is not enforced, for that would take cgroups.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

START_SECONDS, STOP_SECONDS = 60.0, 30.0
DAEMONS = ("slurmctld", "slurmd")


def start(folder: str | Path, *, nodes: int = 2, cpus: int = 2, memory: int = 4000, gpus: int = 0) -> str:
    """Start the daemons and wait until each node is idle.

    Parameters
    ----------
    folder : path
        For configuration, state and logs.
    nodes, cpus : int
        Virtual nodes ``n1``, ``n2`` ..., and the cores that SLURM believes each has.
    memory : int
        Of a node, in megabytes.
    gpus : int
        Pretended GPUs of a node: jobs get CUDA_VISIBLE_DEVICES, and no device.

    Returns
    -------
    str
        The configuration file, for the variable SLURM_CONF.
    """
    missing = [name for name in (*DAEMONS, "sbatch") if _command(name) is None]
    if missing:
        raise SystemExit(f"SLURM needs the commands {', '.join(missing)}; install them with install.sh")
    folder = Path(folder).resolve()
    (folder / "state").mkdir(parents=True, exist_ok=True)
    conf = folder / "slurm.conf"
    conf.write_text(_configuration(folder, nodes, cpus, memory, gpus))
    if gpus:
        # SLURM only asks that these files are devices.
        (folder / "gres.conf").write_text(f"NodeName=n[1-{nodes}] Name=gpu File=/dev/tty[0-{gpus - 1}]\n")
    _spawn(folder, "slurmctld", "-D", "-f", str(conf))
    for number in range(1, nodes + 1):
        (folder / f"spool-n{number}").mkdir(exist_ok=True)
        _spawn(folder, "slurmd", "-D", "-N", f"n{number}", "-f", str(conf))
    until = time.monotonic() + START_SECONDS
    while _run(conf, "sinfo", "-h", "-N", "-o", "%T").split().count("idle") < nodes:
        if time.monotonic() > until:
            stop(folder)
            raise SystemExit(f"SLURM did not start within {START_SECONDS:.0f} s; see the logs in {folder}")
        time.sleep(0.1)
    return str(conf)


def stop(folder: str | Path) -> None:
    """Kill all jobs, and stop the daemons that `start` started."""
    folder = Path(folder).resolve()
    conf = folder / "slurm.conf"
    with contextlib.suppress(subprocess.TimeoutExpired):
        _run(conf, "scancel", "-s", "KILL", "-u", getpass.getuser())
        _run(conf, "scancel", "-u", getpass.getuser())
        until = time.monotonic() + STOP_SECONDS
        while _run(conf, "squeue", "-h").strip() and time.monotonic() < until:
            time.sleep(0.2)
    pids = [int(line) for line in (folder / "pids").read_text().split()]
    for pid in reversed(pids):  # the nodes, then the controller
        _end(pid)
    (folder / "pids").unlink()


@contextlib.contextmanager
def running(folder: str | Path, **shape: int) -> Iterator[str]:
    """Start, yield the configuration file, and stop."""
    conf = start(folder, **shape)
    try:
        yield conf
    finally:
        stop(folder)


def _configuration(folder: Path, nodes: int, cpus: int, memory: int, gpus: int) -> str:
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    port = _free_ports(nodes + 1)
    lines = [
        "ClusterName=one",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        f"SlurmctldPort={port}",
        # Nothing listens but on loopback, and nobody is asked who he is.
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
        "AuthType=auth/none",
        "CredType=cred/none",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        # Process groups hold a job's processes together; cgroups would need systemd or root.
        "ProctrackType=proctrack/pgid",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "SchedulerParameters=batch_sched_delay=0",
        # A node may claim more cores than this machine has.
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
        "SlurmdTimeout=30",
        "KillWait=5",
        *(["GresTypes=gpu"] if gpus else []),
        f"NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{port + 1}-{port + nodes}]"
        f" CPUs={cpus} RealMemory={memory}{f' Gres=gpu:{gpus}' if gpus else ''} State=UNKNOWN",
        # LLN: jobs spread over the nodes.
        "PartitionName=main Nodes=ALL Default=YES LLN=YES MaxTime=INFINITE State=UP",
    ]
    return "\n".join(lines) + "\n"


def _free_ports(count: int) -> int:
    """Return the first of ``count`` ports in a row that nobody listens on."""
    for first in range(21000, 60000, 101):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise SystemExit("SLURM needs a few free ports, and none are")


def _command(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def _spawn(folder: Path, name: str, *arguments: str) -> None:
    command = _command(name)
    assert command is not None
    with open(folder / f"{name}.out", "ab") as log:
        process = subprocess.Popen(
            [command, *arguments],
            env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    process.returncode = 0  # it outlives this object; `stop` reaps it
    with open(folder / "pids", "a") as pids:
        pids.write(f"{process.pid}\n")


def _run(conf: Path, *command: str) -> str:
    environ = {**os.environ, "SLURM_CONF": str(conf)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=STOP_SECONDS).stdout


def _end(pid: int) -> None:
    """Ask a process to end; kill it after a while."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + 10
        while _is_alive(pid) and time.monotonic() < until:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(0.1)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):  # not started by this process
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    return Path(f"/proc/{pid}").exists()


def main() -> None:
    """Start or stop."""
    parser = argparse.ArgumentParser(description="A real SLURM on one machine.")
    parser.add_argument("what", choices=("start", "stop"))
    parser.add_argument("folder")
    for name, default in (("nodes", 2), ("cpus", 2), ("memory", 4000), ("gpus", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if given.what == "stop":
        stop(given.folder)
        return
    conf = start(given.folder, nodes=given.nodes, cpus=given.cpus, memory=given.memory, gpus=given.gpus)
    sys.stdout.write(f"export SLURM_CONF={shlex.quote(conf)}\n")


if __name__ == "__main__":
    main()
