"""The bare root on disk: made once by debootstrap and cached; every run gets a copy, removed behind it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ci.cache.folders import locked, making
from ci.console import Narrator
from ci.prove.fresh.carried import Carried
from ci.prove.fresh.inside import enclosed
from ci.prove.fresh.recipe import CLONE, HOME, UID, USER, Recipe
from flash_attn3_sm121.errors import CompileError, ToolchainError, UsageError

TOOLS = ("debootstrap", "unshare", "setpriv", "chroot", "git", "cp", "rm")
PREFIX = "fresh-run."


def require(*, effective_user: int, path: str | None = None) -> None:
    """Say what is missing, before anything is made."""
    if effective_user != 0:
        raise ToolchainError(
            "a fresh root wants root: debootstrap, chroot and mounts", hint="run it as root: .ci/as-root make fresh"
        )
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if missing:
        raise ToolchainError(
            f"a fresh root needs {', '.join(missing)}, not found on PATH",
            hint="apt-get install debootstrap debian-archive-keyring util-linux git",
        )


def call(argv: Sequence[str | Path], narrate: Narrator) -> str:
    """Print and run; stdout, or a refusal that quotes command, exit code and the end of the output."""
    done = narrate.run(argv)
    if done.returncode:
        tail = (done.stdout + done.stderr)[-4000:]
        said = shlex.join(str(word) for word in argv)
        raise CompileError(f"command failed with exit code {done.returncode}: {said}\n{tail}")
    return done.stdout


def prepare(recipe: Recipe, cache: Path, narrate: Narrator) -> Path:
    """The cached bare root of a recipe, made on first use: two minutes, 700 MB. Whole or absent."""
    entry = f"fresh/{recipe.key}"
    final = cache / entry
    with locked(cache, entry, waiting=lambda: narrate.note("another process is making the bare root: waiting")):
        if not final.is_dir():
            with making(cache, entry) as building:
                words = recipe.debootstrap(building / "system")
                narrate.command(words)
                # In namespaces of its own: debootstrap mounts /proc in what a failure makes us remove.
                done = subprocess.run(
                    enclosed(shlex.join(words) + " || exit"), capture_output=True, text=True, check=False
                )
                if done.returncode:
                    tail = (done.stdout + done.stderr)[-4000:]
                    raise CompileError(f"debootstrap failed with exit code {done.returncode}:\n{tail}")
                for archive in (building / "system/var/cache/apt/archives").glob("*.deb"):
                    archive.unlink()
    return final / "system"


@contextmanager
def copy_of(bare: Path, cache: Path, narrate: Narrator, *, keep: bool) -> Iterator[Path]:
    """A copy for one run. What a killed run left is swept first; `keep` leaves this one for a look."""
    scratch = cache / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with locked(cache, "fresh-run", waiting=lambda: narrate.note("another fresh run is under way: waiting")):
        for litter in scratch.glob(f"{PREFIX}*"):
            remove(litter)
        work = Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch))
        work.chmod(0o755)
        try:
            root = work / "root"
            call(["cp", "--archive", "--reflink=auto", bare, root], narrate)
            yield root
        finally:
            if keep:
                narrate.note(f"kept until the next run: {work}")
            else:
                remove(work)


def remove(folder: Path) -> None:
    """Remove a root. The namespaces' mounts were never here; another file system would stay untouched all the same."""
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(folder)], check=True)


def furnish(root: Path, carried: Carried) -> None:
    """Put what is carried into the root."""
    for file in carried.files:
        target = root / file.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            target.unlink()
        shutil.copy(file, target)
        target.chmod(0o644)
    (root / "etc/pip.conf").write_text(carried.pip_conf, encoding="utf-8")


def move_in(root: Path, repository: Path, commit: str, narrate: Narrator) -> None:
    """The new user, and the clone of `commit` in the new home."""
    call(["chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", "--uid", str(UID), USER], narrate)
    clone = root / CLONE.lstrip("/")
    call(["git", "clone", "--quiet", "--no-hardlinks", "--no-checkout", repository, clone], narrate)
    call(["git", "-C", clone, "checkout", "--quiet", "-B", "main", commit], narrate)
    call(["git", "-C", clone, "remote", "remove", "origin"], narrate)
    call(["chown", "--recursive", "--no-dereference", f"{UID}:{UID}", root / HOME.lstrip("/")], narrate)


def head_of(repository: Path, *, ignore_changes: bool) -> str:
    """The commit that a newcomer would get. What is not in it is named, and refused unless it is to be left out."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UsageError(f"git {' '.join(words)} failed in {repository}: {done.stderr.strip()}")
        return done.stdout

    changed = [line[3:] for line in git("status", "--porcelain").splitlines()]
    if changed and not ignore_changes:
        raise UsageError(
            f"a newcomer gets what is committed, and {len(changed)} files here are not: {', '.join(changed[:8])}",
            hint="commit them, or leave them out with --ignore-changes",
        )
    return git("rev-parse", "HEAD").strip()


def cache_for_user(folder: Path) -> Path:
    """A folder outside that serves as the new user's build cache; it must be that user's own."""
    folder = folder.expanduser().absolute()
    if not folder.exists():
        folder.mkdir(parents=True)
        os.chown(folder, UID, UID)
    owner = folder.stat().st_uid
    if owner != UID:
        raise UsageError(
            f"--cache {folder}: expected a folder of user {UID}, found one of {owner}",
            hint="name a folder that does not exist yet: it is made for the new user",
        )
    return folder
