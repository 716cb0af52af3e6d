"""A run of one node offers nothing to the network: torch unpickles what its stores hold, for whoever reaches them."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.support import tiny_job
from trainer.supervise import rendezvous

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def sockets_of(root: psutil.Process) -> dict[str, set[str]]:
    """What the process and all below it listen on, and whom they talk with: addresses without their ports."""
    found: dict[str, set[str]] = {"listening": set(), "connected": set()}
    for process in [root, *root.children(recursive=True)]:
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found["listening"].add(connection.laddr.ip)
                elif connection.raddr:
                    found["connected"].add(connection.raddr.ip)
        except psutil.Error:
            continue
    return found


def test_a_stranger_finds_no_port_of_a_run_to_send_a_pickle_to(tmp_path: Path) -> None:
    run = tiny_job.write_job(tmp_path, "closed", nproc=2, train={"max_steps": 30, "global_batch": 4, "micro_batch": 2})
    supervisor = tiny_job.start(run, TMPDIR=str(tmp_path))
    listening: set[str] = set()
    connected: set[str] = set()
    folders: dict[str, int] = {}
    while supervisor.poll() is None:
        seen = sockets_of(psutil.Process(supervisor.pid))
        listening |= seen["listening"]
        connected |= seen["connected"]
        folders |= {path.name: path.stat().st_mode for path in tmp_path.glob("dolphin-rendezvous-*")}
        time.sleep(0.1)
    assert supervisor.returncode == 0, run.log.read_text()[-2000:]
    assert connected, "the ranks were never seen to talk: the test looks at nothing"
    assert {ip for ip in listening | connected if ip not in LOOPBACK} == set()
    assert folders, "the rendezvous was not in the private folder"
    assert {stat.S_IMODE(mode) for mode in folders.values()} == {0o700}
    assert list(tmp_path.glob("dolphin-rendezvous-*")) == []


def test_the_ranks_of_several_nodes_talk_on_the_network_of_their_first_node() -> None:
    """Else gloo and NCCL take the first interface that they find, which may be the public one."""
    assert rendezvous.interface_towards("127.0.0.1") in ("lo", "lo0")
    assert rendezvous.interface_towards("no.such.host.invalid") is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs a POSIX system: looks at the mode of a folder")
def test_the_folder_of_a_rendezvous_is_its_users_own() -> None:
    with rendezvous.private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.getuid()
        assert folder.parent == Path(tempfile.gettempdir())
    assert not folder.exists()
