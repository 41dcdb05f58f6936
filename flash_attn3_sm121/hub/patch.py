"""`kernels.get_kernel`, `load_kernel` and `has_kernel` for chosen repositories: patched before a client binds them.

A finder in front of `sys.meta_path` lets the real `kernels` package load and then wraps these functions wherever
the package keeps them (`kernels`, `kernels.utils` to 0.16, `kernels.load` from 0.17). Works for kernels 0.9 and up.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from flash_attn3_sm121.errors import OverrideError
from flash_attn3_sm121.hub.layout import KNOWN_REPOS

KERNELS = "kernels"
NAMES = ("get_kernel", "load_kernel", "has_kernel")
# The order of the first three is the same in every version; whatever follows changes nothing for us.
POSITIONAL = ("repo_id", "revision", "version", "backend", "user_agent", "trust_remote_code", "check_arch")


@dataclass(frozen=True, kw_only=True)
class OverrideConfig:
    """Which repositories are overridden, and with what. Travels to child processes as JSON."""

    repos: Mapping[str, str] = field(default_factory=lambda: dict(KNOWN_REPOS))  # repository -> flavour
    hub: str | None = None  # a hub folder to serve from; None serves the installed package
    quiet: bool = False
    stand_in: bool = False  # offer a small `kernels` where none is installed

    def to_json(self) -> str:
        return json.dumps(vars(self) | {"repos": dict(self.repos)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> OverrideConfig:
        try:
            value = json.loads(text)
            return cls(**value) if value else cls()
        except (ValueError, TypeError) as error:
            raise OverrideError(f"not an override's configuration: {text!r} ({error})") from error


@dataclass(kw_only=True)
class _State:
    config: OverrideConfig | None = None
    finder: KernelsFinder | None = None
    originals: list[tuple[ModuleType, str, Any]] = field(default_factory=list)
    said: set[str] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)


_STATE = _State()


def say(key: str, text: str) -> None:
    """Print a line on stderr, once in a process for each key, unless the override is quiet."""
    config = _STATE.config
    if key not in _STATE.said and config is not None and not config.quiet:
        _STATE.said.add(key)
        print(f"flash-attn3: {text}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """The part of a get_kernel or has_kernel call that matters here, whatever the version's signature."""

    repo: str
    revision: str | None

    @classmethod
    def parse(cls, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> KernelCall:
        unknown = sorted(set(kwargs) - set(POSITIONAL))
        if unknown or len(args) > len(POSITIONAL):
            raise TypeError(f"{name}() got unexpected arguments: {unknown or args[len(POSITIONAL) :]}")
        values = dict(zip(POSITIONAL, args, strict=False)) | dict(kwargs)
        return cls(repo=values["repo_id"], revision=values.get("revision"))


def _asked_repo(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    repo = args[0] if args else kwargs.get("repo_id")
    config = _STATE.config
    return repo if config is not None and isinstance(repo, str) and repo in config.repos else None


def serve(call: KernelCall) -> ModuleType:
    """The module for an overridden repository: out of the configured hub folder, else the installed package."""
    config = _STATE.config
    assert config is not None, "serve() is only reached while an override is active"
    if config.hub is not None:
        from flash_attn3_sm121.hub.checkout import load_from_hub

        module, origin = load_from_hub(Path(config.hub), call.repo, call.revision)
    else:
        from flash_attn3_sm121._version import __version__
        from flash_attn3_sm121.hub.kernel_module import kernel

        module, origin = kernel(config.repos[call.repo]), f"flash_attn3_sm121 {__version__}"
    say(f"get {call.repo}", f"get_kernel({call.repo!r}) is served by {origin}, not by the Hugging Face hub")
    return module


def _wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        repo = _asked_repo(args, kwargs)
        if repo is None:
            return original(*args, **kwargs)
        if name == "load_kernel":  # its revision stands in a lock file, and is one of the hub's own builds
            return serve(KernelCall(repo=repo, revision=None))
        call = KernelCall.parse(name, args, kwargs)
        return serve(call) if name == "get_kernel" else True

    wrapper.__flash_attn3_original__ = original  # type: ignore[attr-defined]
    return wrapper


def patch_loaded() -> int:
    """Wrap the functions in every loaded module of the `kernels` package; says how many places were patched."""
    wrapped: dict[int, Callable[..., Any]] = {}
    count = 0
    with _STATE.lock:
        for module_name, module in list(sys.modules.items()):
            if module_name != KERNELS and not module_name.startswith(f"{KERNELS}."):
                continue
            for name in NAMES:
                original = vars(module).get(name)
                if not callable(original) or hasattr(original, "__flash_attn3_original__"):
                    continue
                if id(original) not in wrapped:
                    wrapped[id(original)] = _wrap(name, original)
                setattr(module, name, wrapped[id(original)])
                _STATE.originals.append((module, name, original))
                count += 1
    return count


def _really_importing() -> bool:
    """Whether an import statement asks, rather than importlib.util.find_spec.

    A library that only looks whether `kernels` is there must go on seeing that it is not: it would rely on all of it.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "_find_spec":
        frame = frame.f_back
    caller = frame.f_back if frame is not None else None
    return caller is not None and caller.f_code.co_name == "_find_and_load_unlocked"


class KernelsFinder(importlib.abc.MetaPathFinder):
    """Has the other finders find `kernels`, and patches the module when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != KERNELS:
            return None
        spec: importlib.machinery.ModuleSpec | None = None
        for finder in list(sys.meta_path):
            if finder is self or (find := getattr(finder, "find_spec", None)) is None:
                continue
            if (spec := find(fullname, path, target)) is not None:
                break
        if spec is None:
            return self._stand_in()
        if spec.loader is not None and hasattr(spec.loader, "exec_module"):
            self._patch_after(spec.loader)
        return spec

    @staticmethod
    def _patch_after(loader: Any) -> None:
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            patch_loaded()

        loader.exec_module = exec_module

    @staticmethod
    def _stand_in() -> importlib.machinery.ModuleSpec | None:
        config = _STATE.config
        if config is None or not config.stand_in:
            return None
        if not _really_importing():
            return None
        return importlib.machinery.ModuleSpec(KERNELS, StandInLoader(), origin="flash_attn3_sm121 stand-in")


class StandInLoader(importlib.abc.Loader):
    """A `kernels` module of three functions, for a client in an environment that has no such package."""

    def exec_module(self, module: ModuleType) -> None:
        def missing(*args: Any, **kwargs: Any) -> Any:
            raise ImportError(
                f"get_kernel{args}: the kernels package is not installed here, only the repositories that "
                "`flash-attn3 run` overrides can be had; pip install kernels"
            )

        def absent(*args: Any, **kwargs: Any) -> bool:
            return False

        vars(module).update(get_kernel=missing, load_kernel=missing, has_kernel=absent, __version__="0.0.0")
        say("stand-in", "the kernels package is not installed: a stand-in gives the overridden repositories only")
        patch_loaded()


def activate(config: OverrideConfig) -> None:
    """Override in `kernels` if it is loaded, or as soon as it is. A second call changes the configuration."""
    with _STATE.lock:
        _STATE.config = config
        if _STATE.finder is None:
            _STATE.finder = KernelsFinder()
            sys.meta_path.insert(0, _STATE.finder)
        if KERNELS in sys.modules:
            patch_loaded()


def deactivate() -> None:
    """End the override: restore the original functions and remove the finder."""
    with _STATE.lock:
        for module, name, original in reversed(_STATE.originals):
            setattr(module, name, original)
        _STATE.originals.clear()
        _STATE.said.clear()
        if _STATE.finder is not None:
            sys.meta_path.remove(_STATE.finder)
        _STATE.finder = _STATE.config = None


def active() -> OverrideConfig | None:
    """The configuration in force in this process."""
    return _STATE.config


def find_spec_through_finder(
    path: Sequence[str] | None, target: ModuleType | None
) -> importlib.machinery.ModuleSpec | None:
    """What the override's own finder finds for `kernels`; the start-up hook was asked first and returns it."""
    assert _STATE.finder is not None, "activate() comes first"
    return _STATE.finder.find_spec(KERNELS, path, target)
