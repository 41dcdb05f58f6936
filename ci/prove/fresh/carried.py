"""What a new user's machine has of this one: where packages come from, the way to the network, whom to trust.

Indexes that are folders of this machine are mounted read-only at their own paths; certificates and constraints are
copied; pip's settings become the root's /etc/pip.conf, so that a command behaves there as it would here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

# pip's settings that say where packages come from; all others (caches, targets, users) are this machine's business.
SETTINGS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "proxy",
    "timeout",
    "default-timeout",
    "retries",
    "constraint",
    "cert",
    "client-cert",
)
CERTIFICATES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
OTHERS = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
FOLDERS_OF = ("index-url", "extra-index-url", "find-links")
FILES_OF = ("constraint", "cert", "client-cert")
NETWORK_FILES = (Path("/etc/resolv.conf"), Path("/etc/hosts"))


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What goes into the root."""

    pip_conf: str
    environ: Mapping[str, str]
    folders: tuple[Path, ...]  # mounted read-only
    files: tuple[Path, ...]  # copied


def carried(
    settings: Mapping[str, str],
    environ: Mapping[str, str],
    *,
    is_folder: Callable[[Path], bool] = Path.is_dir,
    is_file: Callable[[Path], bool] = Path.is_file,
) -> Carried:
    """Plan it from pip's merged settings and this process's environment."""
    kept = {name: settings[name] for name in SETTINGS if settings.get(name)}
    conf = "[global]\n" + "".join(f"{name} = {' '.join(value.split())}\n" for name, value in kept.items())
    names = [*CERTIFICATES, *OTHERS, *PROXIES, *(name.upper() for name in PROXIES)]
    passed = {name: environ[name] for name in names if environ.get(name)}

    words = [(name in FOLDERS_OF[:2], word) for name in FOLDERS_OF for word in kept.get(name, "").split()]
    words += [(True, word.partition("=")[2] or word) for name in OTHERS for word in passed.get(name, "").split()]
    folders: set[Path] = set()
    for index, word in words:
        folder = local_path(word)
        if folder is not None and is_folder(folder):
            folders.add(around(folder) if index else folder)
    files = {Path(word) for name in FILES_OF for word in kept.get(name, "").split()}
    files |= {Path(passed[name]) for name in CERTIFICATES if name in passed}
    files |= set(NETWORK_FILES)
    return Carried(
        pip_conf=conf,
        environ=passed,
        folders=outermost(folders),
        files=tuple(sorted(file for file in files if file.is_absolute() and is_file(file))),
    )


def local_path(word: str) -> Path | None:
    """The absolute folder that an index or a find-links word names, if it names one."""
    parts = urlsplit(word)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(word) if not parts.scheme and word.startswith("/") else None


def around(index: Path) -> Path:
    """A mirror keeps its files beside its pages: the folder above, unless that is half the machine."""
    return index.parent if len(index.parent.parts) > 2 else index


def outermost(folders: set[Path]) -> tuple[Path, ...]:
    """Without those that lie in another one."""
    return tuple(sorted(path for path in folders if not any(other in path.parents for other in folders)))
