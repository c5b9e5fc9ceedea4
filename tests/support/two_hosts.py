"""Two hosts on one machine: network namespaces with a cable (a veth pair) between them, and host names of their own."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("tbf", "rate", "20mbit", "burst", "4kb", "limit", "12kb")
"""20 Mbit/s with a queue of a few packets: what does not find room is lost, and TCP sends it again."""


def why_not() -> str:
    """Why this machine cannot make two hosts; empty: it can."""
    missing = [name for name in ("ip", "tc", "unshare") if not shutil.which(name)]
    if missing:
        return f"no {', '.join(missing)} on the PATH"
    name = f"moo-probe-{os.getpid()}"
    try:
        _run("ip", "netns", "add", name)
    except subprocess.CalledProcessError as error:
        return _said(error)
    try:
        _run("ip", "-n", name, "link", "add", "name", "probe0", "type", "veth", "peer", "name", "probe1")
        _run("ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", "probe0", "root", *SLOW)
        _run("unshare", "--uts", "--mount", "sh", "-c", "mount --bind /etc/hosts /etc/hosts && hostname probe")
    except subprocess.CalledProcessError as error:
        return _said(error)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)


def _said(error: subprocess.CalledProcessError) -> str:
    return f"{' '.join(error.cmd)}: {error.stderr.strip() or f'exit status {error.returncode}'}"


@dataclass
class TwoHosts:
    """The hosts 0 and 1.

    Attributes:
        hosts_file: What knows both names.
        names: Of the namespaces.
        processes: Started and not yet waited for.
    """

    hosts_file: Path
    names: tuple[str, str] = field(default_factory=lambda: (f"moo0-{os.getpid()}", f"moo1-{os.getpid()}"))
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def address(self, host: int) -> str:
        """On the cable."""
        return f"10.77.0.{host + 1}"

    def on(self, host: int, *command: str) -> str:
        """Runs a command of the network's in a host's namespace."""
        return subprocess.run(
            ["ip", "netns", "exec", self.names[host], *command], check=True, capture_output=True, text=True, timeout=30
        ).stdout

    def slow_down(self) -> None:
        """See SLOW."""
        for host in (0, 1):
            self.on(host, "tc", "qdisc", "replace", "dev", "cable", "root", *SLOW)

    def lost_packets(self) -> int:
        """By both ends of the cable, since slow_down()."""
        said = [self.on(host, "tc", "-s", "qdisc", "show", "dev", "cable").split() for host in (0, 1)]
        return sum(int(words[words.index("(dropped") + 1].rstrip(",")) for words in said)

    def cut(self) -> None:
        """Takes the cable out: packets are lost without a word."""
        self.on(0, "ip", "link", "set", "cable", "down")

    def start(self, host: int, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """A program on a host, whose host name is `host0` or `host1`."""
        inside = f'mount --bind "$0" /etc/hosts && hostname host{host} && exec "$@"'
        command = ["unshare", "--uts", "--mount", "sh", "-c", inside, str(self.hosts_file), *command]
        started = subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(started)
        return started

    def torchrun(self, host: int, ranks: int, *program: str, **environment: str) -> subprocess.Popen[str]:
        """The launcher on a host, with so many ranks; both hosts meet at host 0."""
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(ranks)]
        command += ["--node-rank", str(host), "--rdzv-backend", "c10d", "--rdzv-id", "two-hosts"]
        command += ["--rdzv-endpoint", f"{self.address(0)}:29400", "--local-addr", self.address(host), *program]
        return self.start(host, command, **environment)

    def kill(self, host: int) -> None:
        """All processes of a host at once."""
        pids = self.on(host, "ip", "netns", "pids", self.names[host]).split()
        subprocess.run(["kill", "-9", *pids], check=False)


@contextlib.contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Makes them, and leaves nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="two-hosts-"))
    hosts = TwoHosts(folder / "hosts")
    hosts.hosts_file.write_text("127.0.0.1 localhost\n10.77.0.1 host0\n10.77.0.2 host1\n", encoding="ascii")
    try:
        for name in hosts.names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        ends = [("name", "cable", "netns", name) for name in hosts.names]
        subprocess.run(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]], check=True)
        for host in (0, 1):
            hosts.on(host, "ip", "address", "add", f"{hosts.address(host)}/24", "dev", "cable")
            for link in ("lo", "cable"):
                hosts.on(host, "ip", "link", "set", link, "up")
        yield hosts
    finally:
        for process in hosts.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.communicate()
        for name in hosts.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            if pids:
                subprocess.run(["kill", "-9", *pids.split()], check=False)
                time.sleep(0.2)
            subprocess.run(["ip", "netns", "delete", name], check=False)
        shutil.rmtree(folder)
