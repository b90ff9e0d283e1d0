"""Runs a real Slurm of one node, Debian's, on free ports and in a folder of the test, with a munge of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.orthanc import free_ports

STARTS_WITHIN_S = 60.0
ENDS_WITHIN_S = 500.0

CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
SlurmctldPort={control}
SlurmdPort={node}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm.

    Attributes:
        folder: where it keeps everything.
        environment: the variables of its commands.
    """

    folder: Path
    environment: Mapping[str, str]

    def ask(self, *words: str, check: bool = True) -> str:
        """What one of its commands says."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: Path, *options: str, **variables: str) -> str:
        """Submits a script with further variables; returns the job's number."""
        said = ",".join(["ALL", *(f"{name}={value}" for name, value in variables.items())])
        output = f"--output={self.folder}/job-%A_%a.log"
        return self.ask("sbatch", "--parsable", output, f"--export={said}", *options, str(script)).strip()

    def ended(self, job: str) -> dict[int, str]:
        """Waits for an array's end; returns the state and exit code of each task, as in COMPLETED 0:0."""
        until = time.monotonic() + ENDS_WITHIN_S
        while self.ask("squeue", "--noheader", "--jobs", job, check=False).strip():
            assert time.monotonic() < until, self.logs()
            time.sleep(0.3)
        found = {}
        for record in self.ask("scontrol", "--oneliner", "show", "job", job).splitlines():
            said = dict(word.partition("=")[::2] for word in record.split())
            found[int(said["ArrayTaskId"])] = f"{said['JobState']} {said['ExitCode']}"
        return found

    def logs(self) -> str:
        """What its jobs wrote."""
        return "\n".join(f"{log.name}: {log.read_text()}" for log in sorted(self.folder.glob("job-*.log")))


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Starts a Slurm that keeps all in `folder`, and ends it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    control, node = free_ports(2)
    host = socket.gethostname()
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, control=control, node=node))
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    programs = []
    try:
        programs.append(_munge(folder))
        for program in ("slurmctld", "slurmd"):
            words = [_path(program), "-D", "-c"]
            programs.append(
                subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        running = Slurm(folder, environment)
        _wait_until_idle(running)
        yield running
    finally:
        for process in reversed(programs):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _munge(folder: Path) -> subprocess.Popen[bytes]:
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    words = [_path("munged"), "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}"]
    words += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + STARTS_WITHIN_S
    while not (folder / "munge.socket").exists():
        assert process.poll() is None, (folder / "munge.log").read_text()
        assert time.monotonic() < until, (folder / "munge.log").read_text()
        time.sleep(0.05)
    return process


def _wait_until_idle(running: Slurm) -> None:
    until = time.monotonic() + STARTS_WITHIN_S
    while running.ask("sinfo", "--noheader", "--format=%T", check=False).strip() != "idle":
        assert time.monotonic() < until, (running.folder / "ctld.log").read_text()
        time.sleep(0.2)


def _path(program: str) -> str:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") or program
