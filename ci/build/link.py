"""Linking a family library: static CUDA runtime, torch by name only, nothing exported, the same bytes each time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.build.children import Children
from ci.build.compile import failure
from ci.build.workdir import WorkDir
from ci.console import Narrator
from ci.plan.plan import FamilyPlan
from ci.toolchain import Toolchain

# Torch's op loader finds the ops through static constructors; no symbol of the library is for anybody else, so two
# families (and an upstream flash_attn_3 beside them) cannot take each other's.
EXPORTS = "{ local: *; };\n"

# The library's undefined aoti_torch_* and torch_* symbols live here. Empty stand-ins with these names are enough to
# record the need, so linking wants no torch.
TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so")


@dataclass(frozen=True, kw_only=True)
class Linker:
    """Links in the work folder; all names are relative to it."""

    toolchain: Toolchain
    work: WorkDir
    children: Children
    narrate: Narrator
    env: Mapping[str, str]

    def link(self, family: FamilyPlan, objects: Sequence[tuple[str, Path]]) -> Path:
        """The library of a family, from its units' objects (name, file) in the plan's order."""
        self._prepare()
        names = []
        for name, made in objects:
            shutil.copyfile(made, self.work.root / "obj" / f"{name}.o")
            names.append(f"obj/{name}.o")
        output = f"obj/{family.library}"
        self._run(link_command(self.toolchain, names, output=output), name=family.library)
        return self.work.root / output

    def _prepare(self) -> None:
        (self.work.root / "stubs" / "exports.map").write_text(EXPORTS, encoding="ascii")
        (self.work.root / "stubs" / "empty.c").write_text("", encoding="ascii")
        for soname in TORCH_LIBRARIES:
            self._run(stub_command(self.toolchain, soname), name=soname)

    def _run(self, argv: list[str], *, name: str) -> None:
        self.narrate.command(argv)
        log = self.work.root / "obj" / f"{name}.log"
        ended = self.children.run(argv, cwd=self.work.root, env=self.env, log=log)
        if ended.code != 0:
            text = log.read_text(encoding="utf-8", errors="replace")
            raise failure(argv, ended.code, text, log=log, work=self.work.root)


def stub_command(toolchain: Toolchain, soname: str) -> list[str]:
    flags = ["-x", "c", "-shared", "-nostdlib", "-fPIC", f"-Wl,-soname,{soname}", "-Wl,--build-id=none"]
    return [toolchain.cxx, *flags, "stubs/empty.c", "-o", f"stubs/{soname}"]


def link_command(toolchain: Toolchain, objects: Sequence[str], *, output: str) -> list[str]:
    """No run path, no build id, no local symbol names; everything resolved at load, so a missing symbol shows there."""
    return [
        toolchain.cxx,
        "-shared",
        "-o",
        output,
        f"-Wl,-soname,{Path(output).name}",
        "-Wl,--version-script=stubs/exports.map",
        "-Wl,--exclude-libs,ALL",
        "-Wl,--build-id=none",
        "-Wl,--hash-style=gnu",
        "-Wl,-z,now,-z,relro,-z,noexecstack",
        "-Wl,--gc-sections",
        "-s",
        *objects,
        "-Wl,--no-as-needed",
        *(f"stubs/{soname}" for soname in TORCH_LIBRARIES),
        "-Wl,--as-needed",
        f"-L{toolchain.cudart_dir}",
        "-l:libcudart_static.a",
        "-ldl",
        "-lpthread",
        "-lrt",
    ]
