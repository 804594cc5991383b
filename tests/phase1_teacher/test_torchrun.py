"""Two workers under torchrun; one is killed, torchrun starts both again, and the work gets done."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from storage.maintenance.status import cache_status
from storage.maintenance.verify import verify_cache


def workers(agent: int) -> dict[str, int]:
    """Process ids of torchrun's workers by rank."""
    found = {}
    for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found |= {variable[5:].decode(): int(pid) for variable in variables if variable.startswith(b"RANK=")}
    return found


def committed(manifests: Path) -> dict[str, int]:
    """Manifests and their inodes: a manifest that is written again gets another one."""
    return {path.name: path.stat().st_ino for path in manifests.glob("*-*") if not path.name.startswith(".")}


def test_a_killed_worker_is_started_again(workshop):
    config = workshop.recipe(workshop.rows(300, questions=3))
    location = workshop.directory / "cache.zarr"
    programs = Path(sys.executable).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["--no-python", str(programs / "fs-teacher"), "dump", "--config", str(config), "--no-progress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (workshop.directory / "torchrun.log").open("w+") as log:
        agent = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        manifests = location / "manifests"
        end = time.monotonic() + 120
        log_file = Path(log.name)
        while len(committed(manifests)) < 3 or "worker 1/2" not in log_file.read_text():
            assert agent.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        before = committed(manifests)
        os.kill(workers(agent.pid)["1"], signal.SIGKILL)
        code = agent.wait(180)
        log.seek(0)
        output = log.read()
    assert code == 0, output
    assert output.count("worker 1/2") == 2, output  # started, and started again
    assert "worker 0/2" in output
    status = cache_status(location)
    assert status.pending == []
    assert status.samples == 300
    assert verify_cache(location).ok(partial=False)
    assert before.items() <= committed(manifests).items()
