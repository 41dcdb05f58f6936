"""A helper process: publishes in forked children that die by SIGKILL at a chosen file operation, or at a chosen time.

Run as a script, so that the imports are paid once and nothing of the test process is forked. Reads lines of JSON
`{"hub", "wheel", "event" | "delay"}`; answers each with `{"events", "killed"}`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from flash_attn3_sm121.hub.publish import ALIASES, judge, publish
from flash_attn3_sm121.hub.store import Hub

WRITES = frozenset(
    {
        "open",
        "os.rename",
        "os.chmod",
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.utime",
        "os.link",
        "os.symlink",
        "fcntl.flock",
    }
)


def child(hub: str, wheel: str, die_at: int | None, report: int) -> None:
    """Publish; every write to the hub is an event, and the one numbered `die_at` never happens."""
    count = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if event in WRITES and (event == "fcntl.flock" or hub in str(args[:2])):
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    wheels = judge([Path(wheel)])
    sys.addaudithook(hook)
    # A kill loses nothing of what the kernel has, so the order of operations is the same without the disk.
    publish(Hub.create(Path(hub), durable=False), wheels)
    os.write(report, str(count).encode())
    os._exit(0)


def one_name() -> None:
    """Have a publish make one of the well-known repositories: the steps for the others are the same ones again."""
    for name in list(ALIASES)[1:]:
        del ALIASES[name]


def main() -> None:
    one_name()
    warm = False
    for line in sys.stdin:
        order = json.loads(line)
        if not warm:  # imports and page templates, once for all children
            with tempfile.TemporaryDirectory() as name:
                publish(Hub.create(Path(name), durable=False), judge([Path(order["wheel"])]))
            warm = True
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            child(order["hub"], order["wheel"], order.get("event"), writer)
        os.close(writer)
        if "delay" in order:
            time.sleep(order["delay"])
            os.kill(pid, signal.SIGKILL)
        with os.fdopen(reader, "rb") as stream:
            events = stream.read()
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"events": int(events or b"0"), "killed": code == -signal.SIGKILL, "code": code}), flush=True)


if __name__ == "__main__":
    main()
