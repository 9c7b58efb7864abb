"""Machines for tests: network namespaces with an address of their own on one bridge, and links that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

BRIDGE = "wwbridge"
INTERFACE = "net0"
SUBNET = "10.98.77"


def missing() -> str:
    """Why there can be no networks here; nothing where there can."""
    if shutil.which("ip") is None:
        return "no ip command here: apt-get install iproute2"
    return "" if os.getuid() == 0 else "network namespaces need root"


class Machines:
    """`count` machines with the addresses 10.98.77.1 and on."""

    def __init__(self, count: int) -> None:
        self.addresses = [f"{SUBNET}.{number}" for number in range(1, count + 1)]

    def start(self) -> None:
        """Make bridge, namespaces and links."""
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("link", "set", BRIDGE, "up")
        for number, address in enumerate(self.addresses, 1):
            name = f"ww{number}"
            _ip("netns", "add", name)
            _ip("link", "add", f"ww-link{number}", "type", "veth", "peer", "name", INTERFACE, "netns", name)
            _ip("link", "set", f"ww-link{number}", "master", BRIDGE, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            _ip("-n", name, "link", "set", INTERFACE, "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def stop(self) -> None:
        """Remove all of it, also what an interrupted start has left."""
        for number in range(1, len(self.addresses) + 1):
            subprocess.run(["ip", "netns", "del", f"ww{number}"], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", f"ww-link{number}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)

    def set_link(self, number: int, state: str) -> None:
        """Cut the link of machine `number` (from 1) by `down`, mend it by `up`."""
        _ip("link", "set", f"ww-link{number}", state)

    def shell(self, folder: Path) -> Path:
        """A program that runs a command on a machine as `ssh ADDRESS COMMAND` does."""
        path = folder / "shell"
        path.write_text(
            f'#!/bin/sh\nnumber=${{1#{SUBNET}.}}\nshift\nexec ip netns exec "ww$number" sh -c "$*"\n'
        )
        path.chmod(0o755)
        return path


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
