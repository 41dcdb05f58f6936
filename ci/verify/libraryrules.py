"""The rules for a family library. Pure: from a reading and its facts to checks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from ci.plan.archs import Platform
from ci.verify import kernels, policy
from ci.verify.checks import Check, about, nothing, same
from ci.verify.kernels import Kernel
from ci.verify.reading import LibraryReading
from flash_attn3_sm121.arch import FAMILIES, TUNED_CAPABILITIES, Family, Image, capability
from flash_attn3_sm121.call.schemas import NATIVE, differences, with_ours
from flash_attn3_sm121.native.buildfacts import BuildFacts

# A kernel whose guard left its body out has about 16 instructions; the smallest real one has some hundred.
FEWEST_INSTRUCTIONS = 64
# A tile needs dozens of tensor-core instructions; fewer means that most of the body is gone.
FEWEST_TENSOR_CORE = 16
MOST_REGISTERS = 255
STATIC_SMEM_LIMIT = 48 * 1024
# Spill stores (STL instructions) a kernel may have, by direction and head dim, in mma.sync code for what the tiles were
# tuned on: none forward up to 128. docs/kernels-12.1-full.md has what the kernels of the full profile take, in bytes.
SPILL_BUDGET = {
    "forward": {64: 0, 96: 0, 128: 0, 192: 16, 256: 16},
    "backward": {64: 0, 96: 32, 128: 8, 192: 32, 256: 64},
}
_E4M3 = {"kv8", "fp8"}  # features whose kernels are not in code that cannot convert e4m3
OTHER_SPILL_BUDGET = 128  # Hopper's kernels, helpers, and the same tiles in code for other devices

# Torch functions that a library may need: all are in libtorch_cpu of torch 2.9, the oldest that is served.
TORCH_PREFIXES = ("aoti_torch_", "torch_")
WEAK_ONLY = frozenset({"aoti_torch_get_current_cuda_stream"})  # lives in libtorch_cuda: a CPU-only torch lacks it
NEWER_THAN_MINIMUM = ("torch_new_stable_ivalue", "torch_library_impl", "torch_call_dispatcher", "torch_parallel_for")
_LINKER_WEAK = frozenset(
    {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__", "__cxa_finalize"}
)


def library_checks(reading: LibraryReading, facts: BuildFacts, *, schemas: Mapping[str, str]) -> tuple[Check, ...]:
    """Every rule about one library; `schemas` are those that upstream declares."""
    ops = ", ".join(sorted(reading.schemas))
    checks = (
        *_identity(reading, facts),
        *_machine_code(reading, facts),
        *kernel_checks(reading.kernels, facts),
        *_contents(reading.kernels, facts),
        *_linkage(reading, facts),
        nothing(
            "op schemas are upstream's",
            bad=differences(reading.schemas, with_ours(schemas)),
            good=ops,
            expected="what upstream's source declares, and our arguments behind",
        ),
        nothing(
            "op schemas are what the Python interface calls",
            bad=differences(reading.schemas, NATIVE),
            good=ops,
            expected="the same as in flash_attn3_sm121/call/schemas.py",
        ),
        nothing("no path of the build machine", bad=reading.paths, good="none", expected="none"),
    )
    return about(reading.name, checks)


def _identity(reading: LibraryReading, facts: BuildFacts) -> Iterable[Check]:
    yield same("facts hash this library", found=[reading.sha256], expected=[facts.sha256])
    yield same("facts name this library", found=[reading.name], expected=[facts.library])
    machine = Platform.parse(facts.platform).elf_machine
    yield same(f"built for {facts.platform}", found=[reading.elf.machine], expected=[machine])


def _machine_code(reading: LibraryReading, facts: BuildFacts) -> Iterable[Check]:
    yield same("machine code is what the facts say", found=reading.images, expected=facts.images)
    yield same("PTX is what the facts say", found=reading.ptx, expected=facts.ptx)
    if not facts.proxy:
        yield nothing(
            "machine code is for devices of the family",
            bad=[name for name in reading.images if not _serves(Image.parse(name), Family(facts.family))],
            good=", ".join(reading.images),
            expected=f"images of family {facts.family}",
        )
    e4m3 = {k.name for k in reading.kernels if (v := kernels.variant(k.name)) and v.flags & _E4M3}
    yield _equal("every image holds the same kernels", reading, reading.images, without=e4m3)
    if _E4M3 & set(facts.features):
        newer = [image for image in reading.images if Image.parse(image).converts_e4m3]
        yield _equal("every image that converts e4m3 holds the same kernels", reading, newer)


def _equal(rule: str, reading: LibraryReading, images: Sequence[str], *, without: Container[str] = ()) -> Check:
    held = [kernel.image for kernel in reading.kernels if kernel.name not in without]
    by_image = {image: held.count(image) for image in images}
    return Check(
        rule=rule,
        ok=bool(by_image) and len(set(by_image.values())) == 1 and min(by_image.values()) > 0,
        found=", ".join(f"{image}: {count}" for image, count in by_image.items()) or "none",
        expected="equal numbers, more than none",
    )


def _serves(image: Image, family: Family) -> bool:
    row = capability(image.major, image.minor)
    return row is not None and row.family is family


def label(kernel: Kernel) -> str:
    """A kernel's name for people: what it is for, where that can be read, else the mangled name's head."""
    variant = kernels.variant(kernel.name)
    return f"{kernel.kind} {variant or kernel.name[:90]} [{kernel.image}]"


def _each(
    rule: str, unit: str, values: Iterable[tuple[Kernel, int]], bad: Callable[[int], bool], *, expected: str
) -> Check:
    """A number of each kernel: none may be bad."""
    listed = list(values)
    numbers = [number for _, number in listed]
    wrong = [f"{label(kernel)}: {number} {unit}" for kernel, number in listed if bad(number)]
    good = f"{min(numbers)} to {max(numbers)} {unit}" if numbers else "none"
    return nothing(rule, bad=wrong, good=good, expected=expected)


def kernel_checks(listed: tuple[Kernel, ...], facts: BuildFacts) -> Iterable[Check]:
    """The rules about kernels alone."""
    real = [kernel for kernel in listed if kernel.kind != "library"]
    attention = [kernel for kernel in real if kernels.needs_tensor_cores(kernel.kind)]
    yield _each(
        "no empty kernel",
        "instructions",
        ((kernel, kernel.instructions) for kernel in real),
        lambda count: count < FEWEST_INSTRUCTIONS,
        expected=f"at least {FEWEST_INSTRUCTIONS} instructions each",
    )
    yield _each(
        "attention kernels use tensor cores",
        "tensor-core instructions",
        ((kernel, kernel.tensor_core) for kernel in attention),
        lambda count: count < FEWEST_TENSOR_CORE,
        expected=f"at least {FEWEST_TENSOR_CORE} tensor-core instructions each",
    )
    found = str(len(attention))
    yield Check(rule="attention kernels are there", ok=bool(attention), found=found, expected="at least one")
    yield nothing(
        "spills stay within budget",
        bad=(f"{label(k)}: {k.spill_stores} stores" for k in real if k.spill_stores > spill_budget(k)),
        good=f"{max((kernel.spill_stores for kernel in real), default=0)} spill stores at most",
        expected=f"spill stores a kernel, by head dim in code for {' and '.join(TUNED_CAPABILITIES)}: "
        + "; ".join(f"{kind} {by_dim}" for kind, by_dim in SPILL_BUDGET.items())
        + f"; {OTHER_SPILL_BUDGET} elsewhere",
    )
    yield _each(
        "registers",
        "registers",
        ((kernel, kernel.registers) for kernel in real),
        lambda count: count > MOST_REGISTERS,
        expected=f"at most {MOST_REGISTERS}",
    )
    limit = min(STATIC_SMEM_LIMIT, facts.smem_limit)
    yield _each(
        "static shared memory",
        "bytes",
        ((kernel, kernel.static_smem) for kernel in real),
        lambda size: size > limit,
        expected=f"at most {limit} bytes",
    )
    yield _each(
        "forward tiles fit the shared memory",
        "bytes",
        ((kernel, size) for kernel in attention if (size := kernels.dynamic_smem(kernel.name)) is not None),
        lambda size: size > facts.smem_limit,
        expected=f"at most {facts.smem_limit} bytes",
    )
    ceiling = _smallest_limit(facts)
    yield Check(
        rule="dynamic shared memory is bounded (by a static_assert in each launch) by what every target has",
        ok=facts.proxy or facts.smem_limit <= ceiling,
        found=f"{facts.smem_limit} bytes",
        expected=f"at most {ceiling} bytes",
    )


def spill_budget(kernel: Kernel) -> int:
    variant = kernels.variant(kernel.name)
    image = Image.parse(kernel.image)
    tuned = f"{image.major}.{image.minor}" in TUNED_CAPABILITIES
    if variant is None or not tuned or (variant.head_dim_v and "qv" not in variant.flags):
        return OTHER_SPILL_BUDGET
    return SPILL_BUDGET[kernel.kind].get(variant.head_dim, OTHER_SPILL_BUDGET)


def _smallest_limit(facts: BuildFacts) -> int:
    rows = (capability(Image.parse(name).major, Image.parse(name).minor) for name in facts.images)
    known = [row.smem_limit for row in rows if row is not None]
    return min(known, default=FAMILIES[Family(facts.family)].smem_limit)


def _contents(listed: tuple[Kernel, ...], facts: BuildFacts) -> Iterable[Check]:
    """The facts promise head dims, dtypes and features: each must be there as a kernel, and nothing beyond."""
    if facts.family == str(Family.SM90):
        return  # Hopper's kernel names carry these in another form; its counts are checked above
    forward = [v for k in listed if k.kind == "forward" and (v := kernels.variant(k.name))]
    backward = [v for k in listed if k.kind == "backward" and (v := kernels.variant(k.name))]
    dims = {str(v.head_dim) for v in forward}
    yield same("forward head dims", found=dims, expected=(str(dim) for dim in facts.head_dims))
    dims = {str(v.head_dim) for v in backward}
    yield same("backward head dims", found=dims, expected=(str(dim) for dim in facts.backward_head_dims))
    yield same("dtypes", found={v.dtype for v in forward}, expected=facts.dtypes)
    seen: set[str] = set().union(*(v.flags for v in (*forward, *backward))) | ({"backward"} if backward else set())
    seen |= {"diff_headdim"} if any(v.head_dim_v for v in forward) else set()
    shown = {"backward", "causal", "local", "softcap", "varlen", "paged", "split", "append", "packgqa"}
    shown |= {"deterministic", "diff_headdim", "qv", *_E4M3}
    yield same("features", found=seen & shown, expected=set(facts.features) & shown)


def _linkage(reading: LibraryReading, facts: BuildFacts) -> Iterable[Check]:
    library = reading.elf
    platform = Platform.parse(facts.platform)
    allowed = policy.SYSTEM_LIBRARIES | policy.TORCH_LIBRARIES | {platform.loader}
    yield nothing(
        "needs only system libraries and torch",
        bad=(name for name in library.needed if name not in allowed),
        good=", ".join(library.needed),
        expected="libc, libstdc++ and the like, libtorch, libtorch_cpu",
    )
    absent = sorted(policy.TORCH_LIBRARIES - set(library.needed))
    yield nothing("needs torch by name", bad=absent, good="yes", expected="libtorch.so and libtorch_cpu.so")
    yield nothing(
        "undefined symbols are ones that torch 2.9 and the system have",
        # A library that asks torch for nothing cannot be one of ours: whoever read it has read it wrong.
        bad=sorted(s.name for s in library.undefined if not _may_be_undefined(s.name, s.version))
        or ([] if any(s.name.startswith("aoti_torch_") for s in library.undefined) else ["none of torch's at all"]),
        good=f"{len(library.undefined)}",
        expected="torch's stable C functions, versioned system symbols",
    )
    strong = sorted(s.name for s in library.undefined if s.name in WEAK_ONLY and not s.weak)
    yield nothing("loads on a CPU-only torch", bad=strong, good="yes", expected="weak references only")
    yield nothing("exports nothing", bad=library.exported, good="nothing", expected="nothing")
    yield Check(
        rule="no run path, no executable stack",
        ok=not library.run_path and not library.executable_stack,
        found=library.run_path or ("executable stack" if library.executable_stack else "neither"),
        expected="neither",
    )


def _may_be_undefined(name: str, version: str) -> bool:
    if name in NEWER_THAN_MINIMUM:
        return False
    return bool(version) or name in _LINKER_WEAK or name in WEAK_ONLY or name.startswith(TORCH_PREFIXES)
