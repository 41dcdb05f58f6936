"""Runs one command, alone, and not for longer than the server that asked for it.

    python child.py LOCK COMMAND...

The server holds this process's stdin: however the server goes, the pipe closes, and the command is ended with it. The
lock is held as long as the command lives, by the command itself too, so that no second one starts beside it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading


def end_with_the_server() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    threading.Thread(target=end_with_the_server, daemon=True).start()
    with open(sys.argv[1], "a") as lock:  # noqa: PTH123 - nothing but the standard library's smallest part is imported
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, pass_fds=(lock.fileno(),))
        code = process.wait()
    if code < 0:  # ended by a signal: so does this process, for the server to see
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
