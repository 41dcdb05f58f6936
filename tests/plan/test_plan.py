"""The plan: which files, with which flags, as goldens; and what must hold for every plan."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from ci.build.ninja import planned_text
from ci.commands.options import Request, from_environment, plan_of
from ci.commands.plan import to_text
from ci.plan import archs as archlist
from ci.plan import plan
from ci.plan.archs import Platform
from ci.plan.costs import Concurrency
from ci.plan.flags import feature_defines
from ci.plan.plan import BuildPlan, Shard, make_plan
from ci.plan.profiles import find, select
from ci.plan.units import backwards, forwards, units
from ci.settings import Machine, Settings
from flash_attn3_sm121.arch import CAPABILITIES, FAMILIES, PROXY_DEVICES, Family
from flash_attn3_sm121.builds import PROFILES
from flash_attn3_sm121.errors import ArchError, UsageError

CUDA = (13, 0)


def planned(profile: str, archs: str, **kwargs: object) -> BuildPlan:
    return make_plan(
        profile=find(profile),
        targets=archlist.parse(archs, cuda=CUDA),
        platform=Platform.AARCH64,
        cuda=CUDA,
        **kwargs,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("name", "profile", "archs"),
    [
        ("smoke-121.txt", "smoke", "12.1"),
        ("nanochat-121.txt", "nanochat", "12.1"),
    ],
)
def test_golden_text(golden: Callable[[str, str], None], name: str, profile: str, archs: str) -> None:
    """Which files with which flags; their cost is an estimate that is measured anew now and then, so it is left out."""
    text = to_text(planned(profile, archs), Settings(cores=4, memory_gb=24.0))
    units, _, _ = text.rpartition("\ntotal: ")
    golden(name, re.sub(r"(?m)^(  \S+\.c\w+ +\d+) .*$", r"\1", units).replace("  CPU s   GB", ""))


def test_the_last_line_adds_up_what_the_units_cost() -> None:
    built = planned("nanochat", "12.1")
    text = to_text(built, Settings(jobs=2, cores=4, memory_gb=24.0))
    cpu_s = sum(item.cost.cpu_s for family in built.families for item in family.units)
    assert f"about {cpu_s:.0f} CPU s" in text and "with 2 at once here, less" in text
    text = to_text(built, Settings(jobs=2, cores=4, memory_gb=12.0))
    assert "with 2 at once here (1 of those over 1 GB), less" in text, "memory is for one of the large ones"


def test_flags_that_a_kind_of_file_has_beside_others_are_of_files_that_are_named() -> None:
    titles = re.findall(r"(?m)^  flags of (.*)$", to_text(planned("common", "12.1"), Settings(cores=4, memory_gb=24.0)))
    assert titles[0] == "fwd" and titles[1].startswith("fwd_hd256_plain") and len(set(titles)) == len(titles)


def test_golden_ninja(golden: Callable[[str, str], None]) -> None:
    """Every command of a build, with a pool that keeps the hungry units apart."""
    built = planned("smoke", "12.1")
    at_once = Concurrency(jobs=2, hungry=1, hungry_gb=2.0)
    golden("smoke-121.ninja", planned_text(built, at_once=at_once))


def test_json_names_everything_that_decides_the_bytes() -> None:
    document = json.loads(plan.to_json(planned("nanochat", "12.1")))
    (family,) = document["families"]
    assert family["images"] == ["sm_121"] and family["library"] == "flash_attn3_sm8x.so"
    for unit in family["units"]:
        assert unit["flags"] and unit["kernels"] >= 0 and unit["cpu_s"] > 0


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", CAPABILITIES)
def test_every_capability_plans_in_every_profile(name: str, profile: str) -> None:
    (family,) = planned(profile, name).families
    assert family.family is CAPABILITIES[name].family
    assert family.images == (CAPABILITIES[name].target,)
    names = [item.unit.name for item in family.units]
    assert len(set(names)) == len(names)
    assert {"prepare", "api"} <= set(names)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_units_hold_every_instantiation_once(family: Family, profile: str) -> None:
    chosen = select(find(profile), family)
    wanted = forwards(chosen)
    together = "".join(unit.text for unit in units(chosen))
    assert len({item.text for item in wanted}) == len(wanted)
    for item in wanted:
        assert together.count(item.text) == 1


def test_host_code_and_instantiations_agree() -> None:
    """The forward combinations that upstream's dispatch reaches below Hopper: head dim, dtype and three switches."""
    chosen = select(find("full"), Family.SM8X)
    found = {(f.head_dim, f.head_dim_v, f.dtype, f.paged, f.split, f.softcap) for f in forwards(chosen)}
    types, switches = ("bf16", "fp16"), (False, True)
    every = product((*types, "bf16_kv8", "fp16_kv8", "e4m3"), switches, switches, switches)
    wanted = {(d, d, *rest) for d, rest in product((64, 96, 128, 192, 256), every)}
    pairs = ((64, 128), (64, 256), (192, 128))
    wanted |= {(*pair, *rest, False) for pair in pairs for rest in product(types, switches, switches)}
    second = product(("bf16_qv", "fp16_qv"), switches, switches)
    assert found == wanted | {(64, 512, *rest, False) for rest in second}
    assert all(f.packgqa for f in forwards(chosen))


def test_files_with_kv_in_e4m3_hold_one_variant() -> None:
    chosen = select(find("full"), Family.SM8X)
    names = {unit.name for unit in units(chosen) if "kv8" in unit.name}
    variants = {item.variant for item in forwards(chosen) if item.head_dim == 64 == item.head_dim_v}
    assert {name for name in names if "hd64" in name} == {f"fwd_kv8_hd64_{word}_bf16_fp16" for word in variants}
    assert len(names) == len(variants) * len(chosen.head_dims)


def test_code_that_cannot_convert_e4m3_holds_no_kernels_for_it() -> None:
    """Neither where a library holds no other code, nor beside code that can."""
    for archs, proxy in (("8.0", ""), ("8.6+PTX", ""), ("12.1", "8.6")):
        built = planned("full", archs, proxy=proxy)
        (family,) = built.families
        assert not any(item.unit.e4m3 for item in family.units)
        assert "-DFLASHATTENTION_DISABLE_KV8" in family.units[-1].flags
        assert not family.selection.features & {"kv8", "fp8"} and family.selection.has("deterministic")
        text = to_text(built, Settings(cores=4, memory_gb=24.0))
        assert "  left out    fp8 kv8: in code for 8.9 and later only\n" in text
    for archs, old, new in (("8.6+PTX 12.1", ["sm_86", "compute_86"], "sm_121"), ("8.0 10.0", ["sm_80"], "sm_100")):
        (family,) = planned("full", archs).families
        assert "kv8" in family.selection.features
        for item in family.units:
            code = [flag.rpartition("=")[2] for flag in item.flags if flag.startswith("arch=")]
            assert code == ([] if not item.unit.is_cuda else [new] if item.unit.e4m3 else [*old, new])
    assert "left out" not in to_text(planned("full", "8.9"), Settings(cores=4, memory_gb=24.0))


def test_files_of_fp8_kernels_hold_nothing_else() -> None:
    chosen = select(find("full"), Family.SM8X)
    found = [unit for unit in units(chosen) if "fa3_fp8.h" in unit.text]
    assert all(unit.name.startswith(f"fwd_fp8_hd{unit.head_dim}") for unit in found)
    assert sum(unit.text.count("run_fp8<") for unit in found) == 8 * len(chosen.head_dims)
    assert not any("::fa3::Kv8" in unit.text or "launch_template" in unit.text for unit in found)


def test_files_of_qv_kernels_hold_nothing_else() -> None:
    """Nor are other files others for them: with the feature and without, the same texts and flags."""
    chosen = select(find("full"), Family.SM8X)
    found = [unit for unit in units(chosen) if "fa3_qv.h" in unit.text]
    assert [unit.name for unit in found] == [
        f"fwd_qv_hd64_512_{word}_bf16_fp16" for word in ("plain", "split", "paged", "paged_split")
    ]
    assert all(unit.text.count("run_qv<") == 2 and "launch_template" not in unit.text for unit in found)
    without = replace(chosen, features=chosen.features - {"qv"})
    assert [unit for unit in units(chosen) if unit not in found] == list(units(without))
    for kind in ("fwd", "bwd", "combine", "prepare"):
        assert feature_defines(chosen, kind) == feature_defines(without, kind)


def test_a_deterministic_backward_has_files_of_its_own() -> None:
    """Below Hopper; so that no other kernel's file changes with it."""
    chosen = select(find("full"), Family.SM8X)
    for unit in units(chosen):
        ordered = {item.ordered for item in backwards(chosen) if item.text in unit.text}
        assert ordered == ({"ordered" in unit.name} if unit.kind == "bwd" else set())
    plain = select(find("nanochat"), Family.SM8X)
    assert not plain.has("deterministic") and not any(item.ordered for item in backwards(plain))
    hopper = select(find("nanochat"), Family.SM90)
    assert hopper.has("deterministic") and not any(item.ordered for item in backwards(hopper))


def test_hopper_packs_where_upstream_forces_it() -> None:
    for item in forwards(select(find("full"), Family.SM90)):
        assert item.packgqa or not (item.paged or item.split)


def test_what_is_left_out_is_disabled_in_the_host_file() -> None:
    (family,) = planned("smoke", "12.1").families
    api = next(item for item in family.units if item.unit.kind == "api")
    off = {flag.removeprefix("-DFLASHATTENTION_DISABLE_") for flag in api.flags if "DISABLE" in flag}
    assert {"BACKWARD", "LOCAL", "SOFTCAP", "PAGEDKV", "SPLIT", "APPENDKV", "FP16", "FP8"} <= off
    assert {"HDIM96", "HDIM128", "HDIM192", "HDIM256"} <= off
    assert not off & {"HDIM64", "VARLEN", "PACKGQA"}


def test_kernel_files_share_objects_between_profiles() -> None:
    prepare = {
        item.flags
        for profile in PROFILES
        for item in planned(profile, "12.1").families[0].units
        if item.unit.kind == "prepare"
    }
    assert len(prepare) == 1


def test_only_files_whose_kernels_would_spill_save_registers() -> None:
    saving = [
        (str(family.family), item.unit.name.removesuffix("_bf16_fp16"))
        for family in planned("full", "9.0 10.0 12.1").families
        for item in family.units
        if "-Xptxas=--register-usage-level=3" in item.flags
    ]
    variants = ("plain", "softcap", "split", "split_softcap", "paged", "paged_softcap", "paged_split")
    names = [f"fwd_hd256_{variant}" for variant in (*variants, "paged_split_softcap")]
    assert sorted(saving) == [("sm8x", name) for name in sorted(["fwd_hd192_plain", *names])]


def test_fat_plan_has_a_library_a_family() -> None:
    fat = planned("full", "9.0 10.0 12.0 12.1")
    assert [str(family.family) for family in fat.families] == ["sm80", "sm8x", "sm90"]
    assert fat.families[1].images == ("sm_120", "sm_121")
    slim = planned("full", "9.0 10.0 12.0 12.1", families=(Family.SM8X,))
    assert [str(family.family) for family in slim.families] == ["sm8x"]
    with pytest.raises(UsageError, match="family sm90 serves none of"):
        planned("full", "12.1", families=(Family.SM90,))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_cover_everything_once(count: int) -> None:
    whole = [item.unit.name for item in planned("full", "12.1").families[0].units]
    parts = []
    loads = []
    for index in range(1, count + 1):
        shard = Shard(index=index, count=count)
        part = planned("full", "12.1", shard=shard)
        parts += [item.unit.name for item in part.families[0].of_shard(shard)]
        loads.append(part.cost.cpu_s)
    assert sorted(parts) == sorted(whole)
    assert max(loads) < 1.5 * min(loads)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_bad_shards(text: str) -> None:
    with pytest.raises(UsageError, match="not a shard"):
        Shard.parse(text)


def test_proxy_build() -> None:
    (family,) = planned("nanochat", "12.1", proxy="9.0").families
    assert family.images == ("sm_90",) and family.proxy and family.family is Family.SM8X
    assert "-DFA3_ARCH=86" in family.units[0].flags
    images = [planned("smoke", "12.1", proxy=name).families[0].images for name in PROXY_DEVICES]
    assert images == [("sm_80",), ("sm_86",), ("sm_89",), ("sm_90",)]
    with pytest.raises(ArchError, match=r"no proxy build for '7\.5'"):
        planned("nanochat", "12.1", proxy="7.5")
    with pytest.raises(ArchError, match="built directly"):
        planned("nanochat", "9.0", proxy="9.0")


MACHINE = Machine(platform=Platform.X86_64, cores=2, memory_gb=24.0, gpus=())


def test_environment_alone_is_a_request() -> None:
    request = from_environment(
        {"FLASH_ATTN3_PROFILE": "smoke", "TORCH_CUDA_ARCH_LIST": "12.0", "MAX_JOBS": "3", "FA3_SOURCE": "x"}
    )
    assert (request.profile, request.archs, request.jobs, str(request.source)) == ("smoke", "12.0", 3, "x")
    built = plan_of(request, machine=MACHINE, cuda=CUDA)
    assert built.platform is Platform.X86_64 and built.families[0].images == ("sm_120",)
    with pytest.raises(UsageError, match="MAX_JOBS: expected a number"):
        from_environment({"MAX_JOBS": "many"})


@pytest.mark.parametrize("archs", ["7.5 8.0 8.6 9.0 10.0 12.0+PTX", "8.0 8.6 9.0 10.0 11.0 12.0+PTX"])
def test_nvidias_container_asks_for_no_architectures(archs: str) -> None:
    """Its image sets TORCH_CUDA_ARCH_LIST: `make wheel` is for the machine's GPU there, too."""
    container = {"NVIDIA_PYTORCH_VERSION": "25.10", "TORCH_CUDA_ARCH_LIST": archs}
    built = plan_of(from_environment(container), machine=replace(MACHINE, gpus=("12.1",)), cuda=CUDA)
    assert [target.name for target in built.targets] == ["12.1"]
    asked = from_environment({**container, "TORCH_CUDA_ARCH_LIST": "12.0"})
    assert asked.archs == "12.0" and from_environment({"TORCH_CUDA_ARCH_LIST": archs}).archs == archs


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="unknown profile 'tiny'\n"):
        plan_of(Request(profile="tiny"), machine=MACHINE, cuda=CUDA)
    with pytest.raises(UsageError, match="unknown profile 'comon'; did you mean common"):
        plan_of(Request(profile="comon"), machine=MACHINE, cuda=CUDA)
    with pytest.raises(UsageError, match=r"unknown profile 'Gemma-3'[^$]*--models gemma3"):
        plan_of(Request(profile="Gemma-3"), machine=MACHINE, cuda=CUDA)
    with pytest.raises(UsageError, match="unknown platform 'riscv64'"):
        plan_of(Request(platform="riscv64"), machine=MACHINE, cuda=CUDA)
    with pytest.raises(UsageError, match="unknown family 'sm99'"):
        plan_of(Request(families=("sm99",)), machine=MACHINE, cuda=CUDA)
