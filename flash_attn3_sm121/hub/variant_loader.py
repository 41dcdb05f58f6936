"""FlashAttention-3 of flash_attn3_sm121, loaded out of a kernel repository's variant folder.

This file becomes the variant's `__init__.py`, so it needs nothing but Python. It picks the payload of this machine,
imports the package from there (once per process: its operators can be registered only once) and exports its functions.
With FLASH_ATTN3_TRUSTED_KEYS set, the folder must be signed by one of those keys, every file included.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "flash_attn3_sm121"
INFO_FILE = "flash_attn3_variant.json"
SIGNED_FILE = "SIGNED.json"
SIGNATURE_FILE = "SIGNED.sig"
TRUSTED_ENV = "FLASH_ATTN3_TRUSTED_KEYS"
DOMAIN = b"flash_attn3_sm121 hub 1\n"
PUBLIC = re.compile(r"ed25519:([A-Za-z0-9+/]{43}=)")


def trusted_keys(text: str) -> dict[str, bytes]:
    """Public keys by their id; words that are not keys are files that hold some."""
    found = PUBLIC.findall(text)
    for word in re.split(r"[,:\s]+", PUBLIC.sub(" ", text)):
        found += PUBLIC.findall(Path(word).read_text(encoding="utf-8")) if word else []
    raw_keys = [base64.b64decode(item) for item in found]
    return {hashlib.sha256(raw).hexdigest()[:16]: raw for raw in raw_keys}


def folder_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file in the variant, byte code that Python wrote itself left out."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).as_posix()
        if path.is_file() and "__pycache__" not in inner and inner not in (SIGNED_FILE, SIGNATURE_FILE):
            hashes[inner] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def check_signature(folder: Path, keys: dict[str, bytes]) -> None:
    """Raise ImportError unless the folder is exactly what one of the keys signed."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise ImportError(f"{TRUSTED_ENV} is set, but checking signatures needs `pip install cryptography`") from error
    if not (folder / SIGNED_FILE).is_file() or not (folder / SIGNATURE_FILE).is_file():
        raise ImportError(f"{folder} is not signed, and {TRUSTED_ENV} is set")
    statement = (folder / SIGNED_FILE).read_bytes()
    said = json.loads((folder / SIGNATURE_FILE).read_bytes())
    if said["key"] not in keys:
        raise ImportError(f"{folder} is signed by the key {said['key']}, which is not among {sorted(keys)}")
    try:
        key = Ed25519PublicKey.from_public_bytes(keys[said["key"]])
        key.verify(base64.b64decode(said["signature"]), DOMAIN + statement)
    except InvalidSignature as error:
        raise ImportError(f"{folder}: the signature does not match the content") from error
    listed, found = json.loads(statement)["files"], folder_hashes(folder)
    if listed != found:
        odd = sorted(path for path in {*listed, *found} if listed.get(path) != found.get(path))
        raise ImportError(f"{folder}: {len(odd)} files are not what was signed, first {odd[0]}")


def payload_folder(folder: Path, system: str, machine: str) -> Path:
    """The package's folder for this machine, else the Python-only one."""
    for name in (f"{system.lower()}_{machine}", "any"):
        package = folder / "payload" / name / PACKAGE
        if (package / "__init__.py").is_file():
            return package
    raise ImportError(f"{folder} holds no payload for {system} {machine}", path=str(folder))


def load_package(folder: Path, version: str) -> ModuleType:
    """The package out of this folder, unless one is loaded already: then that one, and a word where it differs."""
    loaded = sys.modules.get(PACKAGE)
    if loaded is not None:
        here = str(loaded.__file__).startswith(str(folder))
        if not here and loaded.__version__.partition("+")[0] != version:
            print(
                f"flash-attn3: {PACKAGE} {loaded.__version__} is loaded already ({loaded.__file__}); "
                f"it is used instead of {version} in {folder}",
                file=sys.stderr,
            )
        return loaded
    package = payload_folder(folder, platform.system(), platform.machine())
    spec = importlib.util.spec_from_file_location(
        PACKAGE, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {package}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[PACKAGE]
        raise
    return module


def load(folder: Path, namespace: dict[str, Any]) -> None:
    """Verify, load, export."""
    info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    trusted = os.environ.get(TRUSTED_ENV, "")
    if trusted.strip():
        check_signature(folder, trusted_keys(trusted))
    load_package(folder, info["version"])
    importlib.import_module(f"{PACKAGE}.hub.kernel_module").export(namespace, info["flavour"])


if (Path(__file__).parent / INFO_FILE).is_file():
    load(Path(__file__).parent, globals())
