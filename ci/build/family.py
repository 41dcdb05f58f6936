"""Building families: from a plan and gathered inputs to family libraries, and to the artifacts that others assemble."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.build.artifact import Artifact, Identity, Part
from ci.build.compile import check_space, free_gb
from ci.build.link import Linker
from ci.build.ninja import Ninja, in_order, measuring, unit_edge
from ci.build.workdir import WorkFolder, work_folder
from ci.cache.folders import file_sha256
from ci.cache.objects import ObjectReport, ObjectStore, Sources, Tools, object_key
from ci.plan.plan import BuildPlan, FamilyPlan, PlannedUnit
from ci.settings import Settings
from ci.sources import SourceTree
from ci.sources.lock import SourceLock
from ci.sources.patched import Edited
from ci.toolchain import Toolchain
from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.errors import CompileError
from flash_attn3_sm121.native.buildfacts import BuildFacts


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a build. With the plan, they decide every byte of a library."""

    tree: SourceTree
    edited: Edited
    toolchain: Toolchain
    torch_headers: Path
    torch_headers_id: str

    @property
    def lock_document(self) -> Mapping[str, object]:
        """The pin as provenance shows it."""
        lock: SourceLock = self.tree.lock
        return {
            "upstream": {"url": lock.upstream.url, "commit": lock.upstream.commit},
            "cutlass": {"url": lock.cutlass.url, "commit": lock.cutlass.commit},
            "trees": {tree.path: tree.id for tree in lock.trees},
        }


@dataclass(frozen=True, kw_only=True)
class Keyed:
    """A unit with the key of its object."""

    planned: PlannedUnit
    key: str


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Compiles and links families. Everything it makes is in the cache or in the folder it is told to write to."""

    inputs: Inputs
    settings: Settings

    @property
    def store(self) -> ObjectStore:
        return ObjectStore(cache=self.settings.cache)

    def keys(self, units: Sequence[PlannedUnit]) -> tuple[Keyed, ...]:
        """Every unit's key, from the contents of what it depends on."""
        sources = Sources(self.inputs.edited.folder)
        tools = Tools(
            toolchain=self.inputs.toolchain.fingerprint,
            cxx=self.inputs.toolchain.cxx_version,
            torch_headers=self.inputs.torch_headers_id,
        )
        launcher = self.settings.launcher
        return tuple(
            Keyed(planned=unit, key=object_key(unit, sources=sources, tools=tools, launcher=launcher)) for unit in units
        )

    @contextlib.contextmanager
    def folder(self) -> Iterator[WorkFolder]:
        """A folder to compile and link in."""
        inputs = self.inputs
        with work_folder(self.settings.cache, sources=inputs.edited.folder, torch=inputs.torch_headers) as work:
            yield work

    def compile(
        self, families: Mapping[str, Sequence[Keyed]], *, work: WorkFolder
    ) -> dict[str, tuple[ObjectReport, ...]]:
        """Compile what the cache lacks, all families in one queue: the last long unit of one leaves no core idle.

        Args:
            families: the units of each family, by a name that is its folder's too.

        Returns:
            A report of each unit. Its object is in the store under the report's key.

        Raises:
            CompileError: a compiler failed; what was compiled before stays in the cache.
        """
        settings = self.settings
        objects = {unit.key: self.store.find(unit.key) for units in families.values() for unit in units}
        count, missing = sum(len(units) for units in families.values()), [key for key in objects if not objects[key]]
        settings.narrate.note(f"{count} units, {count - len(missing)} in the cache, {len(missing)} to compile")
        if missing:
            self._run_ninja(families, missing, work)
            objects |= {key: self.store.find(key) for key in missing}
        return {name: tuple(_report(unit, objects[unit.key]) for unit in units) for name, units in families.items()}

    def _run_ninja(self, families: Mapping[str, Sequence[Keyed]], missing: Sequence[str], work: WorkFolder) -> None:
        """Ninja makes the missing objects: an entry that is there but damaged goes first, or ninja would trust it."""
        settings, toolchain = self.settings, self.inputs.toolchain
        check_space(settings.cache, free_gb=free_gb(settings.cache))
        for key in missing:
            self.store.object(key).unlink(missing_ok=True)
        edges = []
        for name, units in families.items():
            folder = work.family(name)
            for unit in units:
                folder.write(unit.planned.unit)
                output = str(self.store.object(unit.key).absolute())
                options = ("--key", unit.key)
                edges.append(
                    unit_edge(
                        unit.planned, folder=name, output=output, options=options, toolchain=toolchain,
                        launcher=settings.launcher,
                    )
                )  # fmt: skip
        at_once = settings.at_once([edge.cost for edge in edges])
        measure = measuring(settings.cache, toolchain=toolchain, launcher=settings.launcher)
        Ninja(root=work.root, narrate=settings.narrate).build(in_order(edges), measure=measure, at_once=at_once)

    def build(self, plan: BuildPlan, *, work: WorkFolder) -> tuple[Part, ...]:
        """Compile this plan's shard, and link whole families. The parts' files lie in `work` or in the cache."""
        units = {str(family.family): self.keys(family.of_shard(plan.shard)) for family in plan.families}
        compiled = self.compile(units, work=work)
        return tuple(self._part(plan, family, compiled[str(family.family)], work) for family in plan.families)

    def _part(self, plan: BuildPlan, family: FamilyPlan, reports: Sequence[ObjectReport], work: WorkFolder) -> Part:
        objects = {report.unit: self.store.object(report.key) for report in reports}
        if plan.shard.whole:
            library = self.link(family, list(objects.items()), work=work)
            paths, hashes = {family.library: library}, {family.library: file_sha256(library)}
        else:
            paths = {f"{name}.o": path for name, path in objects.items()}
            hashes = {f"{report.unit}.o": report.sha256 for report in reports}
        artifact = Artifact(
            kind="library" if plan.shard.whole else "objects",
            family=str(family.family),
            identity=identity(plan, self.inputs),
            targets=tuple(target.name for target in family.targets),
            flags={planned.unit.name: planned.flags for planned in family.of_shard(plan.shard)},
            shard=str(plan.shard),
            files=hashes,
            reports=tuple(reports),
            kernels=self.store.kernels(reports, CAPABILITIES["12.1"].target),
        )
        return Part(artifact=artifact, paths=paths, plan=family)

    def link(self, family: FamilyPlan, objects: Sequence[tuple[str, Path]], *, work: WorkFolder) -> Path:
        """The library of a family, from its units' objects (name, file) in the plan's order."""
        return self.linker(str(family.family), work=work).link(family, objects)

    def linker(self, family: str, *, work: WorkFolder) -> Linker:
        return Linker(
            toolchain=self.inputs.toolchain,
            folder=work.family(family),
            logs=self.settings.cache / "logs",
            narrate=self.settings.narrate,
        )


def _report(unit: Keyed, found: tuple[Path, ObjectReport] | None) -> ObjectReport:
    if found is None:
        raise CompileError(f"the object of {unit.planned.unit.name} vanished from the cache", hint="run it again")
    return found[1]


def identity(plan: BuildPlan, inputs: Inputs) -> Identity:
    return Identity(
        pin=inputs.tree.lock.short,
        sources=inputs.tree.lock.key,
        edits=inputs.edited.digest,
        cuda=inputs.toolchain.cuda,
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
