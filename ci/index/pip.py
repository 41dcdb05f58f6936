"""pip as a program: its merged settings, and pinned wheels downloaded by it, for this machine or another."""

from __future__ import annotations

import ast
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

from ci.index import Wanted
from ci.process import execute
from ci.settings import Settings
from flash_attn3_sm121.errors import DiskError, FetchError, FlashAttn3Error

# Sections of pip's configuration that hold for a download; a later one overrides an earlier one.
SECTIONS = ("global", "download", ":env:")
TRUE_WORDS = frozenset({"1", "true", "yes", "on", "y", "t"})
NETWORK_HINT = (
    "check the network and pip's configuration (`pip config list`), or put the file into a folder and set "
    "PIP_FIND_LINKS to it"
)
HINTS = {
    "DO NOT MATCH THE HASHES": "this index serves another file than the pinned one: set PIP_INDEX_URL to another index",
    "No space left on device": "the content cache needs some gigabytes: FA3_CACHE=DIR puts it on another disk, and "
    "TMPDIR=DIR what pip is downloading",
    "No module named pip": "pip must be installed beside the harness: python -m ensurepip",
}


def pip_settings() -> dict[str, str]:
    """pip's settings by their long names: its files and environment variables, merged by pip itself.

    Raises:
        FetchError: pip is missing, or its configuration cannot be read.
    """
    done = execute([sys.executable, "-m", "pip", "config", "list"])
    if done.returncode:
        raise _failure("pip's configuration cannot be read", done.stderr)
    sections: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        if section in sections:
            sections[section][name.replace("_", "-")] = str(ast.literal_eval(value))
    return {name: value for section in sections.values() for name, value in section.items() if value}


def folders(values: Mapping[str, str]) -> list[Path]:
    """The folders of this machine among pip's find-links."""
    paths = [local_path(place) for place in values.get("find-links", "").split()]
    return [path for path in paths if path is not None]


def local_path(place: str) -> Path | None:
    """The path that a place on this machine names; None for an address on a network."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if parts.scheme else Path(place).expanduser()


def download(wheels: Sequence[Wanted], into: Path, settings: Settings) -> None:
    """Download wheels with one call of pip, which checks every hash; those that are there already stay.

    Args:
        wheels: files of one platform, which may be another one than this machine's.
        into: the folder that gets them.
        settings: pip's own output, progress included, goes to stderr; `offline` is only from folders of find-links.

    Raises:
        FetchError, DiskError: with pip's words.
    """
    into.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    tags: list[Tag] = []
    for wheel in wheels:
        _, version, _, every = parse_wheel_filename(wheel.filename)
        lines.append(f"{wheel.project}=={version} --hash=sha256:{wheel.sha256}\n")
        tags += sorted(every, key=str)
    words = [word for platform in dict.fromkeys(tag.platform for tag in tags) for word in ("--platform", platform)]
    if special := [tag for tag in tags if tag.interpreter != "py3"]:  # for one Python, and that need not be this one
        interpreter, abi = special[0].interpreter, special[0].abi
        words += ["--implementation", interpreter[:2], "--python-version", interpreter[2:], "--abi", abi]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", prefix="pinned-wheels-") as requirements:
        requirements.write("".join(lines))
        requirements.flush()
        command = [sys.executable, "-m", "pip", "download", *(["--quiet"] if settings.narrate.quiet else [])]
        command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir", *words]
        command += ["--dest", str(into), "--requirement", requirements.name]
        done = execute(command, narrate=settings.narrate, env=_environment(settings.offline), shown=True)
    if done.returncode:
        names = ", ".join(wheel.filename for wheel in wheels)
        raise _failure(f"pip did not get {names}", done.stderr)


def _environment(offline: bool) -> dict[str, str]:
    # Constraints are for what a user installs; these versions are pinned.
    env = {**os.environ, "PIP_CONSTRAINT": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    if offline:
        env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
        env["PIP_FIND_LINKS"] = " ".join(path.absolute().as_uri() for path in folders(pip_settings()))
    return env


def _failure(what: str, stderr: str) -> FlashAttn3Error:
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    hint = next((hint for word, hint in HINTS.items() if word in stderr), NETWORK_HINT)
    kind = DiskError if "No space left on device" in stderr else FetchError
    return kind("\n  ".join([f"{what}:", *lines[-12:]]), hint=hint)
