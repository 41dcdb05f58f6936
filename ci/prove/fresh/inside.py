"""Commands in the root: a mount and process namespace of their own, so that nothing can stay mounted or running.

Mounts are made in a namespace that ends with its first process. This machine's own table of mounts never has them:
there is nothing to undo after a failure, Ctrl-C or kill -9, and removing the root can never follow one.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

# --kill-child and the parent-death signal: if this program is killed, so is everything in there.
NAMESPACE = (
    "setpriv",
    "--pdeathsig",
    "KILL",
    "--",
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "--pid",
    "--fork",
    "--kill-child",
    "--",
)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One mount below the root; `target` is a path as seen from inside."""

    kind: str  # proc, tmpfs, devpts or bind
    target: str
    source: str = ""  # of a bind
    options: str = ""
    file: bool = False  # the bind is of a file
    read_only: bool = False

    def commands(self, root: Path) -> list[str]:
        """Shell lines that make it, mount point included."""
        at = shlex.quote(f"{root}{self.target}")
        lines = [f"touch {at}" if self.file else f"mkdir -p {at}"]
        if self.kind == "bind":
            lines.append(f"mount --bind {shlex.quote(self.source)} {at}")
            if self.read_only:
                lines.append(f"mount -o remount,bind,ro {at}")
        else:
            lines.append(f"mount -t {self.kind} {f'-o {self.options} ' if self.options else ''}{self.kind} {at}")
        return lines


def mounts(*, folders: Sequence[Path] = (), cache: Path | None = None, cache_at: str = "") -> tuple[Mount, ...]:
    """/proc and a small /dev, this machine's package folders read-only, and the build cache where one is given."""
    plan = [
        Mount(kind="proc", target="/proc"),
        Mount(kind="tmpfs", target="/dev", options="mode=755"),
        Mount(kind="tmpfs", target="/dev/shm", options="mode=1777"),
        Mount(kind="devpts", target="/dev/pts", options="newinstance,ptmxmode=0666,mode=620"),
    ]
    plan += [Mount(kind="bind", source=f"/dev/{name}", target=f"/dev/{name}", file=True) for name in DEVICES]
    plan += [Mount(kind="bind", source=str(path), target=str(path), read_only=True) for path in folders]
    if cache is not None:
        plan.append(Mount(kind="bind", source=str(cache), target=cache_at))
    return tuple(plan)


def script(
    root: Path, plan: Sequence[Mount], command: str, *, user: int, folder: str, environ: Mapping[str, str]
) -> str:
    """The shell text of the namespace's first process: mount, then run `command` in the root as `user`."""
    lines = ["set -eu", *(line for mount in plan for line in mount.commands(root))]
    dev = shlex.quote(f"{root}/dev")
    lines += [f"ln -s pts/ptmx {dev}/ptmx", f"ln -s /proc/self/fd {dev}/fd"]
    lines += [f"ln -s /proc/self/fd/{number} {dev}/{name}" for number, name in enumerate(("stdin", "stdout", "stderr"))]
    words = ["chroot", f"--userspec={user}:{user}", str(root), "/usr/bin/env", "-i"]
    words += [f"{name}={value}" for name, value in environ.items()]
    words += ["/bin/bash", "-c", f"cd {shlex.quote(folder)}\n{command}"]
    # Not `exec`: this shell stays the first process and buries what its children leave behind.
    return "\n".join([*lines, "code=0", f"{shlex.join(words)} || code=$?", "exit $code", ""])


def enclosed(text: str) -> list[str]:
    """The host command that runs a script in namespaces of its own."""
    return [*NAMESPACE, "/bin/sh", "-c", text]
