"""Which indexes, folders and certificates to use: pip's configuration and environment, uv's where pip has none."""

from __future__ import annotations

import configparser
import importlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flash_attn3_sm121.errors import FetchError

TRUE_WORDS = frozenset({"1", "true", "yes", "on", "y", "t"})

# Printed by whichever Python has pip: pip knows the address of the public index, so that it is not repeated here.
ASK_PIP = "import pip._internal.models.index as index; print(index.PyPI.simple_url)"


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Where files may come from, in the order tried: find_links, then index_urls."""

    index_urls: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    cert: Path | None = None
    client_cert: Path | None = None
    trusted_hosts: frozenset[str] = frozenset()
    timeout: float = 60.0
    offline: bool = False  # only folders and file: addresses


def read_config(
    environ: Mapping[str, str] | None = None, *, prefix: Path | None = None, offline: bool = False
) -> IndexConfig:
    """The configuration of this user, machine and virtual environment, as pip would read it."""
    env = dict(os.environ if environ is None else environ)
    settings = pip_settings(env, prefix=prefix)
    indexes = [settings["index-url"]] if settings.get("index-url") else _uv_default(env)
    if settings.get("no-index", "").lower() in TRUE_WORDS:
        indexes, extra = [], []
    else:
        indexes = indexes or [default_index()]
        extra = settings.get("extra-index-url", "").split() or _uv_extra(env)
    links = settings.get("find-links", "").split() or env.get("UV_FIND_LINKS", "").replace(",", " ").split()
    cert = settings.get("cert") or env.get("REQUESTS_CA_BUNDLE") or env.get("SSL_CERT_FILE")
    config = IndexConfig(
        index_urls=(*indexes, *extra),
        find_links=tuple(links),
        cert=Path(cert).expanduser() if cert else None,
        client_cert=Path(settings["client-cert"]).expanduser() if settings.get("client-cert") else None,
        trusted_hosts=frozenset(settings.get("trusted-host", "").split()),
        offline=offline,
    )
    timeout = settings.get("default-timeout") or settings.get("timeout")
    if timeout:
        try:
            config = replace(config, timeout=float(timeout))
        except ValueError as error:
            raise FetchError(f"pip's configuration: timeout: expected seconds, found {timeout!r}") from error
    return config


def pip_settings(environ: Mapping[str, str] | None = None, *, prefix: Path | None = None) -> dict[str, str]:
    """pip's settings by their long names, from its files and then its environment variables."""
    env = dict(os.environ if environ is None else environ)
    settings = _file_settings(env, Path(sys.prefix) if prefix is None else prefix)
    settings.update(_environment_settings(env))
    return settings


def _file_settings(env: Mapping[str, str], prefix: Path) -> dict[str, str]:
    """pip's configuration files, the later ones winning: machine, user, virtual environment, PIP_CONFIG_FILE."""
    named = env.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return {}
    home = Path(env.get("HOME") or Path.home())
    xdg = [Path(p) / "pip" / "pip.conf" for p in env.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if p]
    user = Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    files = [*xdg, Path("/etc/pip.conf"), home / ".pip" / "pip.conf", user, prefix / "pip.conf"]
    if named:
        files.append(Path(named))
    merged: dict[str, str] = {}
    for file in files:
        if not file.is_file():
            continue
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (OSError, UnicodeError, configparser.Error) as error:
            raise FetchError(f"cannot read pip's configuration {file}: {error}") from error
        for section in ("global", "download", "install"):
            if parser.has_section(section):
                merged.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    return merged


def _environment_settings(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name[len("PIP_") :].lower().replace("_", "-"): value
        for name, value in env.items()
        if name.startswith("PIP_") and value and name != "PIP_CONFIG_FILE"
    }


def _uv_default(env: Mapping[str, str]) -> list[str]:
    value = env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL")
    return [_unnamed(value)] if value else []


def _uv_extra(env: Mapping[str, str]) -> list[str]:
    return [_unnamed(word) for word in (env.get("UV_INDEX") or env.get("UV_EXTRA_INDEX_URL") or "").split()]


def _unnamed(index: str) -> str:
    """uv allows `name=address`."""
    name, equals, address = index.partition("=")
    return address if equals and name.replace("-", "").replace("_", "").isalnum() else index


def default_index() -> str:
    """The address of the public index, asked of pip: this Python's, or the copy in ensurepip.

    In another process: importing pip brings setuptools' stand-in for distutils with it, and its warnings.
    """
    tries: list[Sequence[str]] = [[sys.executable, "-I", "-c", ASK_PIP]]
    tries += [
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(w)!r}); {ASK_PIP}"] for w in _bundled()
    ]
    tries.append(["python3", "-I", "-c", ASK_PIP])
    for argv in tries:
        try:
            answer = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode == 0:
            return answer.stdout.strip()
    raise FetchError("no package index is configured and no pip is at hand to name the public one", hint=HINT)


HINT = "set PIP_INDEX_URL to the address of a package index (the folder that holds one page a project)"


def _bundled() -> list[Path]:
    """pip's wheel inside ensurepip, or where Debian keeps it."""
    try:
        folder = Path(str(importlib.import_module("ensurepip").__file__)).parent / "_bundled"
    except ImportError:
        return []
    return sorted([*folder.glob("pip-*.whl"), *Path("/usr/share/python-wheels").glob("pip-*.whl")], reverse=True)
