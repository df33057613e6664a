"""Commands that torchrun starts, and the check that nothing of them is left."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # seconds, for a busy machine
GONE_SECONDS = 20.0  # the promise allows 5 s on an idle machine
_MARK = "TFM_TEST_JOB"


@dataclass
class Job:
    """A running launcher, and the processes that it started."""

    launcher: subprocess.Popen[bytes]
    directory: Path
    mark: str

    def words(self) -> str:
        """Return what all processes have written to standard error."""
        return (self.directory / "err").read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        """Wait until one of the processes has written a text."""
        until = time.monotonic() + PATIENCE
        while text not in self.words():
            assert time.monotonic() < until, self.words()
            assert self.launcher.poll() is None, self.words()
            time.sleep(0.02)

    def processes(self) -> dict[int, dict[str, str]]:
        """Return the environment of each process that has the job's mark in it, by PID."""
        found = {}
        for path in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if path.name.isdigit() and self.mark.encode() in (path / "environ").read_bytes():
                    rows = (path / "environ").read_bytes().decode().split("\0")
                    found[int(path.name)] = dict(row.split("=", 1) for row in rows if "=" in row)
        return found

    def ranks(self) -> dict[int, int]:
        """Return process ids by rank."""
        found = self.processes().items()
        return {int(each["RANK"]): pid for pid, each in found if "RANK" in each}

    def shared_memory(self) -> set[Path]:
        """Return their files in `/dev/shm`, which would outlive them."""
        lines = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{pid}/maps").read_text()
                lines += [
                    line.rpartition(" ")[2] for line in maps.split("\n") if "/dev/shm" in line
                ]
        return {Path(each) for each in lines}

    def ports(self) -> set[str]:
        """Return the ports on which the processes listen."""
        sockets = set()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                for path in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        sockets.add(str(path.readlink()))
        return {port for port, inode in listening().items() if f"socket:[{inode}]" in sockets}

    def ended(self) -> int:
        """Wait for the launcher, and return its exit code; negative for a signal."""
        try:
            return self.launcher.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.words()) from None

    def left(self, shared: set[Path], ports: set[str]) -> list[str]:
        """Return what is left after the allowed time: processes, temporary files, memory and ports.

        The empty folders of the launcher for logs and of PyTorch for compiled code do not count.
        """
        until = time.monotonic() + GONE_SECONDS
        while (running := self.processes()) and time.monotonic() < until:
            time.sleep(0.05)
        temporary = [
            path.name
            for path in (self.directory / "temp").iterdir()
            if not path.name.startswith(("torchelastic_", "torchinductor_"))
        ]
        left = [f"process {pid}" for pid in running] + temporary
        left += [f"port {port}" for port in ports & listening().keys()]
        return left + [str(path) for path in shared if path.exists()]


def listening() -> dict[str, str]:
    """Return the inode of the socket of each port of this machine that is listened on."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().split("\n")[1:-1]:
            columns = line.split()
            if columns[3] == "0A":  # LISTEN
                found[str(int(columns[1].rpartition(":")[2], 16))] = columns[9]
    return found


def gone_after(pid: int, patience: float) -> bool:
    """Return True if a process, not necessarily a child, ends within some seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@contextlib.contextmanager
def start(
    directory: Path,
    command: Sequence[str],
    *,
    world_size: int = 2,
    max_restarts: int = 0,
    failpoint: str = "",
) -> Iterator[Job]:
    """Start a command by torchrun, and kill its remaining processes at the end."""
    mark = secrets.token_hex(8)
    (directory / "temp").mkdir(parents=True)
    environment = os.environ | {
        _MARK: mark,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(directory / "temp"),
        "TFM_FAILPOINT": failpoint,
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",  # until a process that ignores SIGTERM is killed
    }
    with (directory / "err").open("wb") as err:
        launcher = subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", str(world_size), "--max-restarts", str(max_restarts),
                "-m", "tfm_cli", *command,
            ],
            env=environment, stdin=subprocess.DEVNULL, stdout=err, stderr=err, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
    job = Job(launcher, directory, mark)
    try:
        yield job
    finally:
        for pid in job.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        launcher.wait()
