"""Two machines: network namespaces with host names of their own, joined by a cable."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.comparing import assert_same_state, mathematics
from tests.support.killing import wait_until_nothing_is_left
from tests.support.launch import endings, start, wait_until
from utils.run.checkpoint import read_checkpoint

MACHINES = {"mfm-one": "10.77.0.1", "mfm-two": "10.77.0.2"}


def ip(*words: str) -> None:
    ended = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.skip(f"needs network namespaces: ip {' '.join(words)}: {ended.stderr.strip()}")


@pytest.fixture
def machines():
    """Names of two network namespaces, joined by a veth pair called `cable` on both sides."""
    names = [f"{name}-{os.getpid()}" for name in MACHINES]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, MACHINES.values(), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def start_agents(machines: list[str], *words: str) -> list[subprocess.Popen]:
    """One torchrun on each machine, with one rank each."""
    agents, cores = [], sorted(os.sched_getaffinity(0))
    for number, (machine, name) in enumerate(zip(machines, MACHINES, strict=True)):
        rendezvous = [f"--node_rank={number}", "--nnodes=2", "--master_addr=10.77.0.1", "--master_port=29500"]
        command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "--nproc_per_node=1", *words]
        one_core = ["taskset", "--cpu-list", str(cores[number % len(cores)])]  # one thread, as two ranks had
        namespace = ["ip", "netns", "exec", machine, "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
        agents.append(start([*one_core, *namespace, *command], GLOO_SOCKET_IFNAME="cable"))
    return agents


@pytest.mark.skipif(not shutil.which("ip") or os.getuid() != 0, reason="needs network namespaces: root and iproute2")
def test_a_machine_that_dies_is_named_and_both_together_finish_the_run(machines, uninterrupted, tmp_path):
    output = tmp_path / "out"
    newest = output / "checkpoints/last.pt"
    job = uninterrupted.job_in(output)
    agents = start_agents(machines, *job)
    wait_until(newest.exists, agents)
    agents[1].kill()
    (code, printed), _ = endings(agents)
    assert code != 0 and re.search(r"\[rank 0 on mfm-one\] error: rank 1 on mfm-two did not answer", printed), printed
    wait_until_nothing_is_left(output)
    assert read_checkpoint(newest)["step"] < uninterrupted.steps

    for code, printed in endings(start_agents(machines, *job)):
        assert code == 0, printed
    assert_same_state(uninterrupted.output / "checkpoints/last.pt", newest)
    assert mathematics(output) == mathematics(uninterrupted.output)
