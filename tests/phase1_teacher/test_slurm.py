"""The examples in examples/slurm on a real Slurm (Debian's slurm-wlm), one node on this machine."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage.maintenance.status import cache_status
from storage.maintenance.verify import verify_cache
from storage.reader import open_cache

EXAMPLES = Path(__file__).parents[2] / "examples" / "slurm"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MailProg=/bin/true
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A controller and a node daemon."""

    def __init__(self, directory: Path) -> None:
        for name in ("state", "spool"):
            (directory / name).mkdir()
        self.directory = directory
        host = socket.gethostname().split(".")[0]
        file = directory / "slurm.conf"
        control, daemon = free_ports(2)
        file.write_text(
            CONFIGURATION.format(host=host, control=control, daemon=daemon, user=getpass.getuser(), directory=directory)
        )
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "SLURM_CONF": str(file), "PATH": path, "OMP_NUM_THREADS": "1"}
        self.processes = [self.start("slurmctld", "-D"), self.start("slurmd", "-D", "-N", host)]
        self.until(lambda: "idle" in self.ask("sinfo", "--noheader", check=False), 60)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{command[0]}.out").open("w") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def ask(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, cwd=self.directory)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *arguments: str) -> str:
        # this node has no GPU and two CPUs
        return self.ask("sbatch", "--parsable", "--gres=none", "--cpus-per-task=1", *arguments).strip()

    def until(self, done, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.story()
            time.sleep(0.1)

    def ended(self, job: str) -> bool:
        return not self.ask("squeue", "--noheader", "--jobs", job, check=False).strip()

    def restarts(self, job: str) -> int:
        text = self.ask("scontrol", "show", "job", job)
        return max(int(field.split("=")[1]) for field in text.split() if field.startswith("Restarts="))

    def story(self) -> str:
        logs = sorted([*self.directory.glob("*.log"), *self.directory.glob("*.out")])
        return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in logs)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(30)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def slurm(tmp_path):
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        reason = f"no {', '.join(missing)}: install Debian's slurm-wlm"
        assert os.environ.get("FIRSTSIGHT_CI") != "1", reason
        pytest.skip(reason)
    directory = tmp_path / "slurm"
    directory.mkdir()
    cluster = Slurm(directory)
    yield cluster
    cluster.close()


def test_a_signalled_task_is_requeued_and_the_work_gets_done(workshop, slurm):
    rows = workshop.rows(300, questions=3)
    output = str(workshop.directory / "runs")
    recipe = workshop.recipe(
        rows, training={"output_dir": output, "max_steps": 20, "per_device_train_batch_size": 4, "use_cpu": True}
    )
    location = str(workshop.directory / "cache.zarr")
    job = slurm.submit("--array=0-1", str(EXAMPLES / "dump.sbatch"), str(recipe))
    manifests = Path(location) / "manifests"
    slurm.until(lambda: manifests.is_dir() and len(list(manifests.glob("*-*.json"))) > 2, 120)
    slurm.ask("scancel", "--batch", "--signal=USR1", f"{job}_0")
    slurm.until(lambda: slurm.ended(job), 120)
    assert slurm.restarts(f"{job}_0") == 1, slurm.story()
    log = (slurm.directory / f"dump-{job}_0.log").read_text()
    assert "stopped by SIGUSR1; committed units stay" in log
    status = cache_status(location)
    assert status.pending == []
    assert status.samples == 300
    assert verify_cache(location).ok(partial=False)
    assert len(open_cache(location)) == 300

    job = slurm.submit(str(EXAMPLES / "train.sbatch"), str(recipe))
    log = slurm.directory / f"train-{job}.log"
    slurm.until(lambda: log.exists() and "Student" in log.read_text(), 120)
    slurm.ask("scancel", "--batch", "--signal=USR1", job)
    slurm.until(lambda: slurm.ended(job), 180)
    assert slurm.restarts(job) == 1, slurm.story()
    assert (workshop.directory / "runs" / "final" / "model.safetensors").is_file(), slurm.story()
