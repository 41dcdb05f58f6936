"""Linking a family library: static CUDA runtime, torch by name only, nothing exported, the same bytes each time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.build.compile import environment, failure
from ci.build.workdir import WorkDir
from ci.plan.plan import FamilyPlan
from ci.process import execute
from ci.toolchain import Toolchain
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.files import put_file

# Torch's op loader finds the ops through static constructors; no symbol of the library is for anybody else, so two
# families (and an upstream flash_attn_3 beside them) cannot take each other's.
EXPORTS = "{ local: *; };\n"

# The library's undefined aoti_torch_* and torch_* symbols live here. Empty stand-ins with these names are enough to
# record the need, so linking wants no torch.
TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so")


@dataclass(frozen=True, kw_only=True)
class Linker:
    """Links in a family's work folder; all names in commands are relative to it."""

    toolchain: Toolchain
    folder: WorkDir
    logs: Path
    narrate: Narrator

    def link(self, family: FamilyPlan, objects: Sequence[tuple[str, Path]]) -> Path:
        """The library of a family, from its units' objects (name, file) in the plan's order."""
        self.make_stubs()
        put_file(self.folder.root / "stubs" / "exports.map", EXPORTS)
        names = []
        for name, made in objects:
            shutil.copyfile(made, self.folder.root / "obj" / f"{name}.o")
            names.append(f"obj/{name}.o")
        output = f"obj/{family.library}"
        self.call(link_command(self.toolchain, names, output=output), name=family.library)
        return self.folder.root / output

    def make_stubs(self) -> None:
        """Empty libraries with the names of torch's."""
        put_file(self.folder.root / "stubs" / "empty.c", "")
        for soname in TORCH_LIBRARIES:
            self.call(stub_command(self.toolchain, soname), name=soname)

    def call(self, argv: Sequence[str], *, name: str) -> None:
        """Run one command of a link. Raises CompileError (or DiskError) where it fails."""
        env = environment(os.environ, folder=self.folder.root, launcher=None, fingerprint="")
        done = execute(argv, narrate=self.narrate, cwd=self.folder.root, env=env)
        if done.returncode != 0:
            output = done.stdout + done.stderr
            log = put_file(self.logs / f"{name}.log", output)
            raise failure(argv, done.returncode, output, log=log, work=self.folder.root)


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
