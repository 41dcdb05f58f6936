"""`python -m ci fresh`: README's two commands on a bare Debian, as a new user. stdout gets the result as JSON.

Everything runs in mount and process namespaces that end with this program: nothing stays mounted or running, whatever
happens, and this machine's own table of mounts never has what is mounted in there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ci import ROOT
from ci.cache.folders import cache_root, locked
from ci.index.pip import local_path, pip_settings
from ci.process import execute, failure_text, output_of
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import ToolchainError, UsageError, VerifyError

EPILOG = """\
debootstrap makes a Debian with python3, python3-venv, g++, git and make; a new user gets a clone of this repository's
HEAD and types the two commands of README.md, the first with PROFILE=smoke; its wheel is installed and its command run.
Of this machine there is nothing in it but where packages come from: pip's settings, proxies, certificates.
It wants root, half an hour to an hour, and 6 GB. `make fresh` runs all of it."""
PACKAGES = ("python3", "python3-venv", "g++", "git", "make", "ca-certificates")  # what README.md asks for
TOOLS = ("debootstrap", "unshare", "setpriv", "chroot", "git")
HOME, UID = "/home/newcomer", 1000
CLONE = f"{HOME}/flash_attn3_sm121"
CARRIED = (
    *("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy"),
    *("timeout", "default-timeout", "retries", "constraint", "cert", "client-cert"),
)
FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
# --kill-child and the parent-death signal: if this program is killed, so is everything in there.
NAMESPACE = shlex.split(
    "setpriv --pdeathsig KILL -- unshare --mount --propagation private --pid --fork --kill-child --"
)
MOUNTS = """\
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
mount -t tmpfs -o mode=1777 tmpfs {root}/dev/shm
"""
CLOSING = re.compile(r"=+ (\d+ .* in [0-9.]+s.*?) =+$")  # pytest's last line


def configure_fresh(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--only", choices=("wheel", "test"), help="only `make wheel` and its use, or only `make test`")
    parser.add_argument("--ignore-changes", action="store_true", help="run HEAD although there is uncommitted work")


def do_fresh(args: argparse.Namespace) -> int:
    date = datetime.now(timezone.utc)
    require(user=os.geteuid())
    commit = committed(ignore_changes=args.ignore_changes)
    suite = running_suite(Path("/etc/os-release").read_text(encoding="utf-8"))
    done: list[dict[str, Any]] = []
    with new_folder(cache_root()) as root:
        mounts = furnish(root, suite)
        commands = two_commands((root / CLONE.lstrip("/") / "README.md").read_text(encoding="utf-8"))
        for about, command, environ in steps(commands, only=args.only):
            how = typed(command, environ, root=root, mounts=mounts)
            done.append({"about": about, "command": command, "environ": environ, **how})
            if done[-1]["code"]:
                break
    print(json.dumps(document(f"{date:%Y-%m-%d %H:%M} UTC", commit, suite, done), indent=1))
    if done[-1]["code"]:
        raise VerifyError(f"on a fresh {suite}, {done[-1]['command']!r} failed: {done[-1]['closing']}")
    return 0


def require(*, user: int, path: str | None = None) -> None:
    """Say what is missing, before anything is made."""
    if user != 0:
        raise ToolchainError(
            "a fresh root wants root: debootstrap, chroot and mounts", hint="run it as root: .ci/as-root make fresh"
        )
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=path) is None]:
        raise ToolchainError(
            f"a fresh root needs {', '.join(missing)}, not found on PATH",
            hint="apt-get install debootstrap debian-archive-keyring util-linux git",
        )


def running_suite(os_release: str) -> str:
    """The suite of the running Debian, from the text of /etc/os-release; bookworm elsewhere."""
    facts = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    return facts.get("VERSION_CODENAME", "bookworm") if facts.get("ID") == "debian" else "bookworm"


@contextmanager
def new_folder(cache: Path) -> Iterator[Path]:
    """A folder for one run, removed afterwards. What a killed run left is removed first."""
    scratch = cache / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with locked(cache, "fresh", waiting=lambda: Narrator().note("another fresh run is under way: waiting")):
        for left in scratch.glob("fresh.*"):
            remove(left)
        root = Path(tempfile.mkdtemp(prefix="fresh.", dir=scratch))
        root.chmod(0o755)
        try:
            yield root
        finally:
            remove(root)


def committed(repository: Path = ROOT, *, ignore_changes: bool) -> str:
    """The commit that a new user gets; refuses a tree with other work in it, unless that is to be left out."""
    git = ["git", "-C", str(repository)]
    changes = output_of([*git, "status", "--porcelain"])
    if changes and not ignore_changes:
        raise UsageError(
            f"a new user gets what is committed, and this is not:\n{changes.rstrip()}",
            hint="commit it, or leave it out with --ignore-changes",
        )
    return output_of([*git, "rev-parse", "HEAD"]).strip()


def two_commands(readme: str) -> tuple[str, str]:
    """The two command lines under README's heading, comments off; refuses a README that says anything else."""
    block = re.search(r"\n## The two commands\n\s*```sh\n(.*?)```", readme, re.DOTALL)
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in (block[1] if block else "").splitlines()]
    commands = [line for line in lines if line]
    if [command.split()[:2] for command in commands] != [["make", "wheel"], ["make", "test"]]:
        raise UsageError(f"README.md: expected `make wheel` and `make test` as the two commands, found {commands}")
    return commands[0], commands[1]


def steps(commands: tuple[str, str], *, only: str | None) -> list[tuple[str, str, dict[str, str]]]:
    """(why, command, its environment): README's commands, and after the first one the use of its wheel."""
    new = "a new environment (torch is left out: gigabytes that prove nothing here)"
    install = "python3 -m venv ~/try && ~/try/bin/pip install --quiet --no-deps wheels/flash_attn3_sm121-*.whl"
    wheel = [
        ("README's first command, smoke profile", commands[0], {"PROFILE": "smoke"}),
        ("the wheel is there, once", "test $(ls wheels/*.whl | wc -l) = 1 && sha256sum wheels/*.whl", {}),
        (f"it installs in {new}", install, {}),
        ("its command answers", "cd / && ~/try/bin/flash-attn3 --version", {}),
    ]
    test = [("README's second command", commands[1], dict[str, str]())]
    return {"wheel": wheel, "test": test}.get(only or "", [*wheel, *test])


def carried(values: Mapping[str, str], environ: Mapping[str, str]) -> tuple[str, list[Path], list[Path]]:
    """(pip.conf, folders to mount, files to copy) of pip's settings and an environment."""
    kept = {name: " ".join(values[name].split()) for name in CARRIED if name in values}
    conf = "[global]\n" + "".join(f"{name} = {value}\n" for name, value in kept.items())
    indexes = [local_path(word) for name in ("index-url", "extra-index-url") for word in kept.get(name, "").split()]
    # A mirror keeps its files beside its pages: the folder above them.
    folders = [path.parent for path in indexes if path is not None and len(path.parts) > 2]
    folders += [path for word in kept.get("find-links", "").split() if (path := local_path(word)) is not None]
    files = [*(kept.get(name) for name in ("constraint", "cert", "client-cert")), *map(environ.get, FILES)]
    return conf, [path for path in folders if path.is_dir()], [Path(file) for file in files if file]


def furnish(root: Path, suite: str) -> str:
    """Make the Debian, its user and the clone; returns the shell lines that mount what it sees of this machine."""
    words = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, str(root)]
    commands = [
        enclosed(f"{shlex.join(words)}; exit $?"),  # debootstrap mounts /proc in what is removed later
        ["chroot", str(root), "useradd", "--create-home", "--uid", str(UID), "--shell", "/bin/bash", "newcomer"],
        ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), f"{root}{CLONE}"],
        ["git", "-C", f"{root}{CLONE}", "remote", "remove", "origin"],
        ["chown", "--recursive", "--no-dereference", f"{UID}:{UID}", f"{root}{HOME}"],
    ]
    for command in commands:
        done = execute(command, narrate=Narrator(), shown=True)
        if done.returncode:
            raise VerifyError(failure_text(command, done.returncode, done.stderr))
    conf, folders, files = carried(pip_settings(), os.environ)
    for file in (Path("/etc/resolv.conf"), Path("/etc/hosts"), *files):
        target = root / file.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy(file, target)
        target.chmod(0o644)
    (root / "etc/pip.conf").write_text(conf, encoding="utf-8")
    lines = MOUNTS.format(root=shlex.quote(str(root)))
    return lines + "".join(bind(root, folder) for folder in dict.fromkeys(folders))


def bind(root: Path, folder: Path) -> str:
    """Shell lines that mount a folder of this machine, read-only, at its own path in the root."""
    source, target = shlex.quote(str(folder)), shlex.quote(f"{root}{folder}")
    return f"mkdir -p {target}\nmount --bind {source} {target}\nmount -o remount,bind,ro {target}\n"


def enclosed(text: str) -> list[str]:
    """The command that runs a shell script in namespaces of its own. The script must not end with `exec`."""
    return [*NAMESPACE, "/bin/sh", "-c", text]


def typed(command: str, environ: Mapping[str, str], *, root: Path, mounts: str) -> dict[str, Any]:
    """Run a command as the new user, in the clone; its output goes to stderr. How it ended, for the document."""
    words = {"HOME": HOME, "USER": "newcomer", "LOGNAME": "newcomer", "SHELL": "/bin/bash", "LANG": "C.UTF-8"}
    words |= {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    words |= {name: os.environ[name] for name in (*FILES, *VARIABLES) if name in os.environ}
    env = shlex.join(f"{name}={value}" for name, value in {**words, **environ}.items())
    inside = shlex.quote(f"cd {CLONE} && {command}")
    chroot = f"chroot --userspec={UID}:{UID} {shlex.quote(str(root))} /usr/bin/env -i {env} /bin/bash -c {inside}"
    Narrator().note(" ".join(["newcomer$", *(f"{name}={value}" for name, value in environ.items()), command]))
    begun, lines = time.monotonic(), []
    with subprocess.Popen(
        enclosed(f"set -e\n{mounts}\n{chroot} || exit $?\n"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        try:
            for line in child.stdout or ():
                sys.stderr.write(line)
                lines.append(line.rstrip())
        except BaseException:
            child.kill()
            raise
    return ended(child.returncode, round(time.monotonic() - begun, 1), lines)


def ended(code: int, seconds: float, lines: Sequence[str]) -> dict[str, Any]:
    """How a command ended: its last line (pytest's own where it was pytest), and what pytest skipped and failed."""
    summaries = [match[1] for line in lines if (match := CLOSING.match(line))]
    return {
        "code": code,
        "seconds": seconds,
        "closing": ["", *filter(None, lines), *summaries][-1],
        "skipped": [line for line in lines if line.startswith("SKIPPED [")],
        "failed": [line.partition(" - ")[0] for line in lines if re.match(r"(FAILED|ERROR) tests/", line)],
    }


def document(date: str, commit: str, suite: str, done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The result; no path and no name of this machine is in it."""
    sums = [step["closing"].split() for step in done if "sha256sum" in step["command"] and step["code"] == 0]
    return {
        "date": date,
        "commit": commit,
        "suite": suite,
        "machine": platform.machine(),
        "passed": all(step["code"] == 0 for step in done),
        "wheel": {"name": Path(sums[0][1]).name, "sha256": sums[0][0]} if sums else None,
        "commands": list(done),
    }


def remove(folder: Path) -> None:
    """Remove a root, and nothing on another file system: what is mounted there (nothing should be) stays."""
    output_of(["rm", "-rf", "--one-file-system", "--", str(folder)])
