"""Wheels for named models: what they need is served, nothing else is built, and what cannot be is said."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import replace

import pytest
from packaging.version import Version

from ci.build.artifact import Identity
from ci.build.family import facts_of
from ci.commands.options import Request, from_environment, plan_of
from ci.plan import profiles
from ci.plan.archs import Platform
from ci.plan.costs import concurrency
from ci.plan.plan import BuildPlan
from ci.plan.profiles import find, select
from ci.plan.units import forwards
from ci.settings import Machine
from ci.wheel.wheel import native_version
from flash_attn3_sm121 import builds
from flash_attn3_sm121.arch import FAMILIES, Family
from flash_attn3_sm121.builds import DEFAULT, MODELS, PREFIX, PROFILES, Model
from flash_attn3_sm121.call.facts import CallFacts, DeviceFacts, Direction
from flash_attn3_sm121.dispatch.decide import NativeState, decide, native_refusal
from flash_attn3_sm121.errors import TableError, UsageError
from flash_attn3_sm121.native.buildfacts import BuildFacts
from tests.wheels import ROOT

MACHINE = Machine(platform=Platform.AARCH64, cores=20, memory_gb=100.0, gpus=())
GB10 = DeviceFacts(type="cuda", capability=(12, 1), smem_limit=101376)


def planned(text: str, archs: str = "12.1") -> BuildPlan:
    request = Request(profile=profiles.profile_name(text), archs=archs)
    return plan_of(request, machine=MACHINE, cuda=(13, 0))


def facts(text: str) -> BuildFacts:
    return facts_of_profile(profiles.profile_name(text))


def facts_of_profile(name: str) -> BuildFacts:
    (family,) = plan_of(Request(profile=name, archs="12.1"), machine=MACHINE, cuda=(13, 0)).families
    words = dict.fromkeys(Identity.__dataclass_fields__, "x") | {"cuda": "13.0", "proxy": ""}
    return facts_of(family, identity=Identity(**words), sha256="0", platform_tag="any")


def calls_of(model: Model) -> list[CallFacts]:
    """Forward and backward of each head dim. A V of more than 256 columns meets a second query, and is not trained."""
    asked = model.features - {"backward", "qv"}
    cache = {"paged", "append", "split"}
    kinds: list[tuple[Direction, frozenset[str]]] = [("forward", asked)]
    if "backward" in model.features:
        kinds.append(("backward", asked - cache | {"dlse"}))
    return [
        CallFacts(
            device_type="cuda",
            dtype=dtype,
            dtype_kv=dtype,
            head_dim=dim,
            head_dim_v=model.head_dim_v(dim),
            direction=direction,
            features=features | ({"qv"} if model.head_dim_v(dim) > 256 else set()),
        )
        for direction, features in kinds
        for dtype in model.dtypes
        for dim in model.head_dims
        if direction == "forward" or model.head_dim_v(dim) <= 256
    ]


def refusals(build: BuildFacts, model: Model) -> list[str]:
    """Why the GB10's dispatch would not take a library for the calls of this model."""
    found = [native_refusal(GB10, NativeState(builds=(build,)), call) for call in calls_of(model)]
    return [answer for answer in found if isinstance(answer, str)]


@pytest.mark.parametrize("name", MODELS)
def test_a_wheel_for_a_model_serves_its_calls_with_tiles_of_their_size(name: str) -> None:
    build = facts(name)
    assert refusals(build, MODELS[name]) == []
    assert build.head_dims == MODELS[name].head_dims
    assert "causal" in build.features, "no switch leaves it out, so libraries have it, and verify counts it"


def test_a_wheel_for_all_models_serves_each_of_them() -> None:
    build = facts(" ".join(MODELS))
    assert [refusals(build, MODELS[name]) for name in MODELS] == [[] for _ in MODELS]


@pytest.mark.parametrize(("built", "run"), [("qwen3", "gemma3"), ("gemma3", "gemma2"), ("qwen3", "gptoss")])
def test_a_wheel_for_one_model_does_not_serve_what_only_another_needs(built: str, run: str) -> None:
    assert refusals(facts(built), MODELS[run])


@pytest.mark.parametrize("name", MODELS)
def test_nothing_can_be_left_out(name: str) -> None:
    """A library without any one of the features that are compiled for a model refuses some call of it."""
    build = facts(name)
    for word in MODELS[name].features - {"causal"}:
        smaller = replace(build, features=tuple(feature for feature in build.features if feature != word))
        assert refusals(smaller, MODELS[name]), word


def test_a_wheel_for_models_costs_less_than_everything() -> None:
    full = plan_of(Request(profile="full", archs="12.1"), machine=MACHINE, cuda=(13, 0)).cost.cpu_s
    costs = {text: planned(text).cost.cpu_s for text in ("gptoss", "gptoss gemma3", " ".join(MODELS))}
    assert sorted(costs.values()) == list(costs.values()) and costs["gptoss gemma3"] < full / 4


def test_names_are_typed_in_any_way_and_order() -> None:
    typed = {profiles.profile_name(text) for text in ("gpt-oss Gemma3", "gemma-3,GPT_OSS", " gptoss  gemma3 gptoss ")}
    assert typed == {"models.gemma3.gptoss"}
    plan = planned("gpt-oss gemma3")
    assert find(plan.profile).name == plan.profile  # assembly finds the profile by the name in an artifact
    assert plan.profile == find("models.gptoss.gemma3").name
    version = native_version("3effce8", ["12.1"], profile=plan.profile, proxy=False)
    assert version.endswith("+g3effce8.121.models.gemma3.gptoss") and str(Version(version)) == version


def test_unknown_models_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown model 'gemm3'; did you mean gemma3 or gemma2") as caught:
        planned("qwen3 gemm3")
    assert all(name in str(caught.value) for name in MODELS)
    with pytest.raises(UsageError, match="unknown model 'zzz'\n"):
        planned("zzz")
    with pytest.raises(UsageError, match="no model is named"):
        planned(" , ")


def test_a_model_that_a_family_cannot_serve_is_refused() -> None:
    with pytest.raises(UsageError, match=r"gptoss .* natively on capability 9\.0: it needs sinks"):
        planned("gptoss", "9.0")


def test_a_row_that_no_family_serves_is_an_error_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, model in {
        "gpt-oss": MODELS["gptoss"],
        "fp4": replace(MODELS["qwen3"], dtypes=("fp4",)),
        "odd": replace(MODELS["qwen3"], head_dims=(80,)),
        "mla": replace(MODELS["deepseek"], head_dims_v={}),
        "absorbed": replace(MODELS["deepseek"], head_dims=(192,)),
    }.items():
        monkeypatch.setattr(builds, "MODELS", {name: model})
        with pytest.raises(TableError, match=name):
            builds.validate()


def test_every_model_plans_where_its_kernels_are() -> None:
    for model in MODELS.values():
        families = [family for family, spec in FAMILIES.items() if not model.missing(spec)]
        assert families
        for family in families:
            assert select(find(PREFIX + model.name), family).head_dims == model.head_dims
    for arch in ("9.0", "12.1"):
        assert planned("deepseek", arch).families[0].selection.has("diff_headdim")
    names = {unit.unit.name for unit in planned("deepseek").families[0].units}
    modes = ("plain", "split", "paged", "paged_split")
    assert names >= {f"fwd_qv_hd64_512_{mode}_bf16" for mode in modes}, "absorbed, as servers decode"


def test_the_table_is_in_the_documents() -> None:
    text = (ROOT / "docs" / "building.md").read_text(encoding="utf-8")
    assert profiles.models_table() in text, "print(ci.plan.profiles.models_table()) has the new one"


@pytest.mark.parametrize("target", ["plan", "wheel"])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (["MODELS=gpt-oss gemma3"], 'ci {} --models "gpt-oss gemma3"'),
        (["PROFILE=nanochat"], "ci {} --profile nanochat"),
        (["PROFILE=full", "MODELS=wan"], 'ci {} --profile full --models "wan"'),
    ],
    ids=["models", "profile", "both"],
)
def test_make_hands_models_on(target: str, variables: list[str], said: str) -> None:
    """What somebody typed goes along, and the command refuses the two."""
    done = subprocess.run(["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.format(target) in " ".join(done.stdout.split())


def test_one_place_names_the_default_profile() -> None:
    done = subprocess.run(["make", "-n", "wheel", "prove"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--profile" not in done.stdout and Request().profile == from_environment({}).profile == DEFAULT
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8")
    *few, last = PROFILES
    assert f"options: [{', '.join(PROFILES)}]" in workflow
    assert workflow.count(f'description: "{", ".join(few)} or {last}"') == 2
    assert f"| `PROFILE=` | `--profile` | `FLASH_ATTN3_PROFILE` | `{DEFAULT}` (default" in (
        ROOT / "docs" / "building.md"
    ).read_text(encoding="utf-8")


def test_the_default_wheel_serves_the_models_in_both_types() -> None:
    """But for two, Gemma 2 for its softcap and DeepSeek for its V. docs/building.md says why."""
    build = facts_of_profile(DEFAULT)
    refused = {
        name: refusals(build, replace(MODELS[name], dtypes=dtypes))
        for name in MODELS
        for dtypes in (MODELS[name].dtypes, ("fp16",))
    }
    assert {name for name, reasons in refused.items() if reasons} == {"gemma2", "deepseek"}
    assert all(reason.endswith("is built without: softcap") for reason in refused["gemma2"] if "dtype" not in reason)


@pytest.mark.parametrize("built", ["smoke", "nanochat", DEFAULT, "models.gptoss"])
def test_what_a_wheel_lacks_for_a_model_is_built_by_the_commands_that_dispatch_names(built: str) -> None:
    build = facts_of_profile(built)
    for name in MODELS:
        for call in calls_of(MODELS[name]):
            decision = decide(device=GB10, native=NativeState(builds=(build,)), call=call, flex_refusal="off")
            assert (decision.backend == "native") == (decision.remedy is None)
            for command in decision.remedy.split(" or ") if decision.remedy else ():
                variable, value = command.removeprefix("make wheel ").split("=")
                made = facts(value.strip('"')) if variable == "MODELS" else facts_of_profile(value)
                assert isinstance(native_refusal(GB10, NativeState(builds=(made,)), call), BuildFacts), command
                assert variable == "PROFILE" or name in value or not refusals(made, MODELS[name])


def test_the_default_wheel_is_built_in_time() -> None:
    """25 minutes on 2 cores, 5 on a GB10: by the estimates of measured units."""
    costs = plan_of(Request(archs="12.1"), machine=MACHINE, cuda=(13, 0)).costs
    minutes = {
        cores: concurrency(costs, cores=cores, memory_gb=memory, wanted=None).seconds(costs) / 60
        for cores, memory in ((2, 22.0), (20, 110.0))
    }
    assert minutes[2] <= 25 and minutes[20] <= 5


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_profile_holds_what_those_before_it_hold(family: Family) -> None:
    """So that the first one of the table that serves a call is the smallest."""
    shares = [profile.share(FAMILIES[family]) for profile in PROFILES.values()]
    for smaller, larger in itertools.pairwise(shares):
        assert all({*a} <= {*b} for a, b in zip(smaller, larger, strict=True))
    counts = [len(forwards(select(profile, family))) for profile in PROFILES.values()]
    assert sorted(set(counts)) == counts and next(iter(PROFILES)) == "smoke", "tests build the first"


def test_the_profile_for_an_fp8_cache_adds_kernels_that_read_e4m3_and_nothing_else() -> None:
    """Below Hopper; there, e4m3 is one more type of upstream's kernels."""
    units = {
        name: {item.unit.name for item in plan_of(request, machine=MACHINE, cuda=(13, 0)).families[0].units}
        for name, request in {name: Request(profile=name, archs="12.1") for name in ("common", "fp8")}.items()
    }
    added = units["fp8"] - units["common"]
    assert units["common"] < units["fp8"] and all(name.startswith(("fwd_kv8_hd", "fwd_fp8_hd")) for name in added)
    hopper = select(PROFILES["fp8"], Family.SM90)
    assert hopper.dtypes == ("bf16", "fp16", "e4m3") and not hopper.has("kv8") and hopper.has("fp8")
    build = facts_of_profile("fp8")
    for model in MODELS.values():
        served = not refusals(facts_of_profile(DEFAULT), model)
        calls = [replace(call, dtype_kv="e4m3") for call in calls_of(model) if call.direction == "forward"]
        found = [native_refusal(GB10, NativeState(builds=(build,)), call) for call in calls]
        assert served == all(isinstance(answer, BuildFacts) for answer in found)


def test_objects_of_the_default_profile_are_among_those_of_full() -> None:
    """A unit's key hashes its file and flags (and what is the same for both): all but the host file's are equal.

    So are those of the profile between them.
    """
    objects = {
        name: {
            (item.unit.file, item.unit.text, item.flags)
            for item in plan_of(Request(profile=name, archs="12.1"), machine=MACHINE, cuda=(13, 0)).families[0].units
        }
        for name in (DEFAULT, "fp8", "full")
    }
    assert {file for file, _, _ in objects[DEFAULT] - objects["fp8"]} == {"api.cpp"}
    assert {file for file, _, _ in objects[DEFAULT] - objects["full"]} == {"api.cpp"}
    assert {file for file, _, _ in objects["fp8"] - objects["full"]} == {"api.cpp"}
