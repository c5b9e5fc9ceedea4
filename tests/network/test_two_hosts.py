"""Two hosts with a cable between them: the same bits as on one, whatever the cable; and what happens when it is cut."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.two_hosts import ROOT, TwoHosts, two_hosts, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(REASON), reason=f"cannot make network namespaces here: {REASON}"),
]

JOB = "tests/network/job.py"
LAYOUTS = ("DDP", "DDP, passes", "sketch, lag=1", "DDP, two levels", "FSDP2")
TIMEOUT = 15
"""Of the process groups, in seconds."""


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as made:
        yield made


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def _digests(lines: list[dict[str, Any]]) -> dict[str, str]:
    """By layout; the same on all four ranks."""
    found: dict[str, set[str]] = {}
    for line in lines:
        if "digest" in line:
            found.setdefault(line["layout"], set()).add(line["digest"])
    assert sorted(line["rank"] for line in lines if "digest" in line) == sorted([0, 1, 2, 3] * len(found))
    assert all(len(digests) == 1 for digests in found.values()), found
    return {layout: digests.pop() for layout, digests in found.items()}


@pytest.fixture(scope="module")
def of_one_host() -> dict[str, str]:
    """Digests of the layouts, by four ranks on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", JOB, *LAYOUTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert {line["gramians"] for line in _lines(done.stdout) if "gramians" in line} == {
        "Gramians: exact (auto: 4 ranks on 1 node)"
    }
    digests = _digests(_lines(done.stdout))
    assert digests.keys() == {*LAYOUTS}
    return digests


def _train(hosts: TwoHosts) -> list[dict[str, Any]]:
    started = [hosts.torchrun(host, 2, JOB, *LAYOUTS) for host in (0, 1)]
    outputs = [process.communicate(timeout=280) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    return [line for output, _ in outputs for line in _lines(output)]


def test_the_same_bits_as_on_one_host(hosts: TwoHosts, of_one_host: dict[str, str]) -> None:
    lines = _train(hosts)
    assert _digests(lines) == of_one_host
    # gramian="auto" knows that there are two.
    said = {line["gramians"] for line in lines if "gramians" in line}
    assert [text.split("(")[0] for text in said] == ["Gramians: Sketch"]
    assert "4 ranks on 2 nodes" in said.pop()


def test_a_slow_cable_that_loses_packets(hosts: TwoHosts, of_one_host: dict[str, str]) -> None:
    hosts.slow_down()
    assert _digests(_train(hosts)) == of_one_host
    assert hosts.lost_packets() > 0


def _start(hosts: TwoHosts, layout: str) -> list[subprocess.Popen[str]]:
    """Ranks 0 and 1 on host 0, 2 and 3 on host 1, without a launcher, which would end them; all are training."""
    ranks = []
    for rank in range(4):
        environment = {"RANK": rank, "WORLD_SIZE": 4, "MASTER_ADDR": hosts.address(0), "MASTER_PORT": 29401}
        command = [sys.executable, JOB, layout, "--steps", "1000000", "--timeout", str(TIMEOUT)]
        ranks.append(hosts.start(rank // 2, command, **{name: str(value) for name, value in environment.items()}))
    for process in ranks:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert '"trains": true' in line, (line, process.communicate(timeout=60))
    return ranks


def _errors(ranks: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """What each of these raised; they end by themselves, with status 1."""
    outputs = [rank.communicate(timeout=TIMEOUT + 100) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1] * len(ranks), outputs
    return [_lines(output)[-1] for output, _ in outputs]


def _check_names(errors: list[dict[str, Any]], began: float) -> None:
    """Ranks raised in time, and name one of the other host's, or one of their own that had raised too."""
    beyond = 0
    for rank, error in enumerate(errors):
        assert error["raised"] == "DistBackendError"
        assert error["time"] - began < TIMEOUT + 20
        words = rf"bucket_moo_ext: [\w-]+ on rank {rank} of 4: (?:receiving from|sending to) rank (\d) failed: "
        found = re.match(words, error["message"])
        assert found, error
        peer = int(found[1])
        beyond += peer // 2 != rank // 2
        assert peer // 2 != rank // 2 or "raised" in errors[peer]
    assert beyond > 0


@pytest.mark.parametrize("layout", ["DDP", "sketch, lag=1"])
def test_a_cable_that_is_cut(hosts: TwoHosts, layout: str) -> None:
    ranks = _start(hosts, layout)
    began = time.monotonic()
    hosts.cut()
    _check_names(_errors(ranks), began)


def test_a_host_that_is_gone(hosts: TwoHosts) -> None:
    ranks = _start(hosts, "DDP")
    began = time.monotonic()
    hosts.kill(1)
    _check_names(_errors(ranks[:2]), began)
