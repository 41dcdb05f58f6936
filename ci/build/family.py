"""Building families: from a plan and prepared inputs to artifacts. Compiling, linking, packing are separate steps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from ci.build import compile as compiling
from ci.build.artifact import Artifact, Identity, file_sha256, write
from ci.build.children import Children
from ci.build.executor import Executor, Job
from ci.build.inputs import Inputs
from ci.build.link import Linker
from ci.build.workdir import WorkDir, workdir
from ci.cache.objects import ObjectReport, ObjectStore, Sources, Tools, object_key
from ci.console import Narrator
from ci.machine import memory_probe
from ci.plan.plan import BuildPlan, FamilyPlan, PlannedUnit
from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.errors import CompileError
from flash_attn3_sm121.native.buildfacts import BuildFacts


@dataclass(frozen=True, kw_only=True)
class Keyed:
    """A unit with the key of its object."""

    planned: PlannedUnit
    key: str


@dataclass(frozen=True, kw_only=True)
class Builder:
    """One build's surroundings. Everything it makes is in the cache or in the folder it is told to write to."""

    inputs: Inputs
    cache: Path
    narrate: Narrator
    jobs: int
    launcher: str | None = None

    @property
    def store(self) -> ObjectStore:
        return ObjectStore(cache=self.cache)

    def keys(self, units: Sequence[PlannedUnit]) -> tuple[Keyed, ...]:
        """Every unit's key, from the contents of what it depends on."""
        sources = Sources(self.inputs.edited.folder)
        tools = Tools(
            toolchain=self.inputs.toolchain.fingerprint,
            cxx=self.inputs.toolchain.cxx_version,
            torch_headers=self.inputs.torch_headers_id,
        )
        return tuple(
            Keyed(planned=unit, key=object_key(unit, sources=sources, tools=tools, launcher=self.launcher))
            for unit in units
        )

    def compile(self, groups: Sequence[tuple[WorkDir, Sequence[Keyed]]], *, children: Children) -> None:
        """Compile what the store lacks, all groups in one queue: one's last long unit does not leave cores idle.

        Units of a group share its folder, so their names must differ; two families have units of the same name.
        """
        for _, units in groups:
            assert len({unit.planned.unit.name for unit in units}) == len(units), "a name twice in one folder"
        assert len({work.root for work, _ in groups}) == len(groups), "two groups in one folder"
        missing = [(work, unit) for work, units in groups for unit in units if self.store.find(unit.key) is None]
        count = sum(len(units) for _, units in groups)
        self.narrate.note(f"{count} units, {count - len(missing)} in the cache, {len(missing)} to compile")
        if missing:
            compiling.check_space(self.cache, free_gb=compiling.free_gb(self.cache))
            jobs = [_job(self._compiler(work, children), unit) for work, unit in missing]
            Executor(limit=self.jobs, memory=memory_probe, narrate=self.narrate, children=children).run(jobs)

    def _compiler(self, work: WorkDir, children: Children) -> compiling.UnitCompiler:
        toolchain, launcher = self.inputs.toolchain, self.launcher
        return compiling.UnitCompiler(
            toolchain=toolchain,
            work=work,
            store=self.store,
            children=children,
            narrate=self.narrate,
            launcher=launcher,
            env=compiling.environment(os.environ, toolchain=toolchain, work=work, launcher=launcher),
        )

    def reports(self, units: Sequence[Keyed]) -> tuple[ObjectReport, ...]:
        """Every compiled unit's report, in order."""
        return tuple(self._found(unit)[1] for unit in units)

    def workdir(self) -> AbstractContextManager[WorkDir]:
        """A folder to compile one family in."""
        return workdir(self.cache, sources=self.inputs.edited.folder, torch=self.inputs.torch_headers)

    def _found(self, unit: Keyed) -> tuple[Path, ObjectReport]:
        found = self.store.find(unit.key)
        if found is None:
            raise CompileError(f"the object of {unit.planned.unit.name} vanished from the cache", hint="run it again")
        return found

    def build(self, plan: BuildPlan, *, output: Path) -> tuple[Path, ...]:
        """Compile this plan's shard and write its artifacts; whole families are linked as well."""
        made: list[Path] = []
        children = Children()
        with contextlib.ExitStack() as stack:
            families = [
                (family, stack.enter_context(self.workdir()), self.keys(family.of_shard(plan.shard)))
                for family in plan.families
            ]
            self.compile([(work, units) for _, work, units in families], children=children)
            for family, work, units in families:
                objects = [(unit.planned.unit.name, *self._found(unit)) for unit in units]
                artifact = self.artifact(plan, family, reports=self.reports(units))
                paths = {f"{name}.o": path for name, path, _ in objects}
                if plan.shard.whole:
                    linker = self.linker(work, children)
                    library = linker.link(family, [(name, path) for name, path, _ in objects])
                    paths = {family.library: library}
                artifact = replace(artifact, files={name: file_sha256(path) for name, path in paths.items()})
                made.append(write(output, artifact, paths))
        return tuple(made)

    def linker(self, work: WorkDir, children: Children) -> Linker:
        env = compiling.environment(os.environ, toolchain=self.inputs.toolchain, work=work, launcher=None)
        return Linker(toolchain=self.inputs.toolchain, work=work, children=children, narrate=self.narrate, env=env)

    def artifact(self, plan: BuildPlan, family: FamilyPlan, *, reports: tuple[ObjectReport, ...]) -> Artifact:
        """The artifact's description, without files yet."""
        return Artifact(
            kind="library" if plan.shard.whole else "objects",
            family=str(family.family),
            identity=identity(plan, self.inputs),
            targets=tuple(target.name for target in family.targets),
            flags={planned.unit.name: planned.flags for planned in family.of_shard(plan.shard)},
            shard=str(plan.shard),
            files={},
            reports=reports,
        )


def _job(compiler: compiling.UnitCompiler, unit: Keyed) -> Job:
    cost = unit.planned.cost
    return Job(
        name=f"{unit.planned.unit.name}-{unit.key[:8]}",
        cpu_s=cost.cpu_s,
        need_gb=cost.rss_gb,
        action=lambda: compiler.compile(unit.planned, unit.key),
    )


def identity(plan: BuildPlan, inputs: Inputs) -> Identity:
    return Identity(
        pin=inputs.tree.lock.short,
        sources=inputs.tree.lock.key,
        edits=inputs.edited.digest,
        cuda=".".join(str(part) for part in inputs.toolchain.version),
        toolchain=inputs.toolchain.fingerprint,
        cxx=inputs.toolchain.cxx_version,
        torch_headers=inputs.torch_headers_id,
        profile=plan.profile,
        platform=str(plan.platform),
        version=__version__,
        proxy=plan.proxy,
    )


def facts_of(family: FamilyPlan, *, identity: Identity, sha256: str, platform_tag: str) -> BuildFacts:
    """The facts that the run-time gate reads; `verify` compares them with what is really in the library."""
    chosen = family.selection
    return BuildFacts(
        family=str(family.family),
        effective_arch=chosen.spec.effective_arch,
        library=family.library,
        sha256=sha256,
        namespace=family.namespace,
        images=family.images,
        ptx=family.ptx,
        dtypes=chosen.dtypes,
        head_dims=chosen.head_dims,
        backward_head_dims=chosen.backward_head_dims,
        features=tuple(sorted(chosen.features)),
        smem_limit=chosen.spec.smem_limit,
        profile=identity.profile,
        platform=platform_tag,
        cuda=identity.cuda,
        upstream=identity.pin,
        proxy=bool(identity.proxy),
    )
