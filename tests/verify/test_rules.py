"""Every rule of the verifier passes on a sound wheel and fails, by name, on one that is spoilt in exactly that way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ci.verify import report, schemas
from ci.verify.checks import Check, passed
from ci.verify.elf import Symbol
from ci.verify.libraryrules import kernel_checks, label, library_checks
from ci.verify.wheelrules import wheel_checks
from flash_attn3_sm121.call.schemas import NATIVE, PUBLIC, differences, with_ours
from flash_attn3_sm121.console import plain
from flash_attn3_sm121.errors import VerifyError
from tests.fakes import doctored
from tests.fakes.doctored import FACTS, KERNELS, LIBRARY, OURS, SCHEMAS, WHEEL, forward_name, kernel


def failed(checks: tuple[Check, ...]) -> list[str]:
    return [check.rule for check in checks if not check.ok]


def test_a_sound_library_passes() -> None:
    assert failed(library_checks(LIBRARY, FACTS, schemas=SCHEMAS)) == []


def test_a_sound_wheel_passes() -> None:
    checks = wheel_checks(WHEEL)
    assert failed(checks) == []
    document = report.document([LIBRARY], checks, proxy=False)
    assert document["verdict"] == "pass" and document["publishable"] is True


def with_kernel(**changes: Any) -> dict[str, Any]:
    return {"kernels": (replace(KERNELS[0], **changes), *KERNELS[1:])}


def with_elf(**changes: Any) -> dict[str, Any]:
    return {"elf": replace(LIBRARY.elf, **changes)}


def needing(name: str, *, weak: bool = False, defined: bool = False) -> dict[str, Any]:
    symbol = Symbol(name=name, defined=defined, weak=weak, version="")
    return with_elf(symbols=(*LIBRARY.elf.symbols, symbol))


UNDEFINED = "undefined symbols are ones that torch 2.9 and the system have"
SPOILT_LIBRARIES = {
    "empty kernel": (with_kernel(instructions=16), "no empty kernel"),
    "no tensor cores": (with_kernel(tensor_core=0), "attention kernels use tensor cores"),
    "unknown kernel without tensor cores": (
        {"kernels": (*KERNELS, kernel("_Z7strange", kind="other", tensor_core=0))},
        "attention kernels use tensor cores",
    ),
    "only helpers": ({"kernels": KERNELS[3:]}, "attention kernels are there"),
    "a spill at head dim 64": (with_kernel(spill_stores=1), "spills stay within budget"),
    "too many registers": (with_kernel(registers=256), "registers"),
    "static shared memory": (with_kernel(static_smem=49153), "static shared memory"),
    "a tile that does not fit": (
        {"kernels": (kernel(KERNELS[0].name.replace("ILi112E", "ILi640E")), *KERNELS[1:])},
        "forward tiles fit the shared memory",
    ),
    "another image": ({"images": ("sm_90",)}, "machine code is what the facts say"),
    "image of another family": ({"images": ("sm_90a",)}, "machine code is for devices of the family"),
    "stray PTX": ({"ptx": ("compute_121",)}, "PTX is what the facts say"),
    "image without kernels": ({"images": ("sm_120", "sm_121")}, "every image holds the same kernels"),
    "other bytes": ({"sha256": "cd" * 32}, "facts hash this library"),
    "other name": ({"name": "flash_attn3_sm80.so"}, "facts name this library"),
    "other machine": (with_elf(machine="EM_X86_64"), "built for linux_aarch64"),
    "head dim that is not promised": (
        {"kernels": (*KERNELS, kernel(forward_name(causal=False, head_dim=128)))},
        "forward head dims",
    ),
    "missing feature": ({"kernels": (KERNELS[0], *KERNELS[3:])}, "features"),
    "backward that is not promised": (
        {"kernels": (*KERNELS, kernel(forward_name(causal=True).replace("Fwd", "Bwd"), kind="backward"))},
        "backward head dims",
    ),
    "needs the CUDA runtime": (
        with_elf(needed=(*LIBRARY.elf.needed, "libcudart.so.13")),
        "needs only system libraries and torch",
    ),
    "torch not named": (with_elf(needed=("libc.so.6",)), "needs torch by name"),
    "needs Python": (needing("PyModule_Create2"), UNDEFINED),
    "needs the driver": (needing("cuLaunchKernel"), UNDEFINED),
    "needs a newer torch": (needing("torch_new_stable_ivalue"), UNDEFINED),
    "no symbol of torch's": (with_elf(symbols=()), UNDEFINED),
    "strong stream symbol": (needing("aoti_torch_get_current_cuda_stream"), "loads on a CPU-only torch"),
    "exports": (needing("flash_fwd", defined=True), "exports nothing"),
    "run path": (with_elf(run_path="/somewhere"), "no run path, no executable stack"),
    "executable stack": (with_elf(executable_stack=True), "no run path, no executable stack"),
    "other schemas": ({"schemas": {**OURS, "fwd": "fwd(Tensor q) -> Tensor"}}, "op schemas are upstream's"),
    "missing schema": (
        {"schemas": {k: v for k, v in OURS.items() if k != "bwd"}},
        "op schemas are upstream's",
    ),
    "an op that the interface does not know": (
        {"schemas": {**OURS, "extra": "extra(Tensor q) -> Tensor"}},
        "op schemas are what the Python interface calls",
    ),
    "build path": ({"paths": ("/home/me/fa3/tile.h",)}, "no path of the build machine"),
}


@pytest.mark.parametrize("name", SPOILT_LIBRARIES)
def test_each_library_rule_fails_on_what_it_is_for(name: str) -> None:
    changes, rule = SPOILT_LIBRARIES[name]
    assert rule in failed(library_checks(replace(LIBRARY, **changes), FACTS, schemas=SCHEMAS))


def test_every_library_rule_is_shown_to_fail() -> None:
    rules = {check.rule for check in library_checks(LIBRARY, FACTS, schemas=SCHEMAS)}
    shown = {rule for _, rule in SPOILT_LIBRARIES.values()}
    rest = {
        # These depend on the facts, and are spoilt below.
        "dtypes",
        "dynamic shared memory is bounded (by a static_assert in each launch) by what every target has",
    }
    assert rules == shown | rest


def test_rules_about_the_facts() -> None:
    wrong = replace(FACTS, dtypes=("bf16", "fp16"))
    assert failed(library_checks(LIBRARY, wrong, schemas=SCHEMAS)) == ["dtypes"]
    more = replace(FACTS, family="sm80", effective_arch=80, smem_limit=166912)
    assert any("dynamic shared memory" in rule for rule in failed(library_checks(LIBRARY, more, schemas=SCHEMAS)))


def test_an_empty_kernel_is_named() -> None:
    spoilt = replace(LIBRARY, **with_kernel(instructions=16, tensor_core=0, registers=4))
    line = next(c.line() for c in library_checks(spoilt, FACTS, schemas=SCHEMAS) if c.rule == "no empty kernel")
    assert "forward hd64 bf16 packgqa [sm_121]: 16 instructions" in line and line.startswith("FAIL")
    assert label(KERNELS[2]) == "forward hd64 bf16 causal packgqa varlen [sm_121]"


@pytest.mark.parametrize(
    ("image", "stores", "good"), [("sm_86", 26, True), ("sm_86", 129, False), ("sm_120", 1, False)]
)
def test_spills_count_where_the_tiles_were_tuned(image: str, stores: int, good: bool) -> None:
    kernels = tuple(replace(item, image=image, spill_stores=stores) for item in LIBRARY.kernels)
    (check,) = (c for c in kernel_checks(kernels, FACTS) if c.rule == "spills stay within budget")
    assert check.ok is good


def test_only_images_that_convert_e4m3_hold_kernels_for_it() -> None:
    name = forward_name(causal=True).replace("NS_10bfloat16_tE", "N3fa33Kv8INS_10bfloat16_tEEE", 1)
    images = ("sm_86", "sm_120", "sm_121")
    facts = replace(FACTS, images=images, features=(*FACTS.features, "kv8"))
    plain = tuple(replace(item, image=image) for item in LIBRARY.kernels for image in images)
    widening = tuple(kernel(name, image=image) for image in images[1:])
    whole = replace(LIBRARY, images=images, kernels=(*plain, *widening))
    assert failed(library_checks(whole, facts, schemas=SCHEMAS)) == []
    partly = replace(whole, kernels=(*plain, *widening[1:]))
    rule = "every image that converts e4m3 holds the same kernels"
    assert failed(library_checks(partly, facts, schemas=SCHEMAS)) == [rule]


def test_a_proxy_build_may_hold_other_code_but_is_never_publishable() -> None:
    facts = replace(FACTS, images=("sm_90",), proxy=True)
    proxy = replace(LIBRARY, images=("sm_90",), kernels=tuple(replace(item, image="sm_90") for item in LIBRARY.kernels))
    checks = library_checks(proxy, facts, schemas=SCHEMAS)
    assert failed(checks) == []
    document = report.document([proxy], checks, proxy=True)
    assert document["verdict"] == "pass" and document["publishable"] is False


def without(files: dict[str, str], name: str) -> dict[str, Any]:
    left = {path: sha for path, sha in files.items() if path != name}
    return {"files": left, "record": doctored.record_of(left)}


FILES = dict(WHEEL.files)
SPOILT_WHEELS: dict[str, tuple[dict[str, Any], str]] = {
    "changed file": ({"files": {**FILES, "flash_attn3_sm121/__init__.py": "00" * 32}}, "RECORD"),
    "file not recorded": ({"files": {**FILES, "flash_attn3_sm121/x.py": "00" * 32}}, "RECORD"),
    "recorded and absent": ({"record": {**WHEEL.record, "flash_attn3_sm121/y.py": "sha256=x"}}, "RECORD"),
    "no drop-in": (without(FILES, "flash_attn3_sm121/_dropin/flash_attn_interface.py"), "layout"),
    "no licence": (without(FILES, f"{doctored.INFO}/licenses/LICENSE.cutlass"), "layout"),
    "no verdict": (without(FILES, "flash_attn3_sm121/lib/verify.json"), "layout"),
    "top level": (
        {"files": {**FILES, "flash_attn_interface.py": "00" * 32}},
        "top level",
    ),
    "size": ({"size": 500_000_000}, "size"),
    "tag too old": ({"name": doctored.NAME.replace("2_34", "2_28")}, "platform tag"),
    "tag of another machine": ({"name": doctored.NAME.replace("aarch64", "x86_64")}, "platform tag"),
    "not a wheel's name": ({"name": "flash.whl"}, "file name"),
    "Python ABI in the tag": ({"name": doctored.NAME.replace("py3-none", "cp311-abi3")}, "Python tag"),
    "WHEEL disagrees": ({"wheel_metadata": "Tag: py3-none-any\n"}, "WHEEL names the same tag"),
    "Python symbol": (
        {"libraries": (replace(LIBRARY, **needing("PyInit__C")),)},
        "no Python ABI (abi3 has nothing to audit)",
    ),
    "library without facts": ({"facts": ()}, "has build facts"),
    "facts without library": ({"libraries": ()}, "a library for each facts file"),
    "provenance of other libraries": (
        {"provenance": {**WHEEL.provenance, "libraries": {"flash_attn3_sm8x.so": "00"}}},
        "provenance names these libraries",
    ),
    "provenance of another pin": (
        {"provenance": {**WHEEL.provenance, "identity": {"pin": "0000000"}}},
        "facts and provenance name the same pin",
    ),
}


@pytest.mark.parametrize("name", SPOILT_WHEELS)
def test_each_wheel_rule_fails_on_what_it_is_for(name: str) -> None:
    changes, rule = SPOILT_WHEELS[name]
    checks = wheel_checks(replace(WHEEL, **changes))
    assert rule in failed(checks) and not passed(checks)


def test_every_wheel_rule_is_shown_to_fail() -> None:
    library = {check.rule for check in library_checks(LIBRARY, FACTS, schemas=SCHEMAS)}
    rules = {check.rule for check in wheel_checks(WHEEL)} - library
    assert rules <= {rule for _, rule in SPOILT_WHEELS.values()}


def test_the_table_for_people() -> None:
    checks = wheel_checks(WHEEL)
    text = plain(report.to_blocks(WHEEL.name, [LIBRARY], checks, kernels=True))
    assert "forward hd64 bf16 causal packgqa [sm_121]" in text and text.endswith(": pass\n")
    spoilt = wheel_checks(replace(WHEEL, size=500_000_000))
    assert f"FAIL, 1 of {len(spoilt)} checks" in plain(report.to_blocks(WHEEL.name, [], spoilt, kernels=False))


def test_a_wheel_of_sources_with_other_ops_is_refused_by_op_and_argument() -> None:
    """Library and provenance agree with each other, and the Python interface calls something else."""
    newer = {**SCHEMAS, "fwd": SCHEMAS["fwd"].replace("int num_splits=0,", "")}
    library = replace(LIBRARY, schemas=with_ours(newer))
    wheel = replace(WHEEL, libraries=(library,), provenance={**WHEEL.provenance, "op_schemas": newer})
    assert failed(wheel_checks(wheel)) == ["op schemas are what the Python interface calls"]
    (line,) = [check.line() for check in wheel_checks(wheel) if not check.ok]
    assert "fwd: argument 32 is 'bool? pack_gqa=None' instead of 'int num_splits=0'" in line
    known = library_checks(library, FACTS, schemas=newer)
    assert wheel_checks(wheel, judged=known) == wheel_checks(wheel), "make wheel and make verify say the same"
    with pytest.raises(VerifyError, match=r"api\.cpp: declares other ops(?s:.*)fwd: argument 32 is"):
        schemas.check_interface(newer, origin="api.cpp")


def test_differences_of_schemas() -> None:
    assert differences(SCHEMAS) == differences(PUBLIC) == []
    arguments, _, returns = SCHEMAS["bwd"].partition(" -> ")
    assert returns == "(Tensor,Tensor,Tensor,Tensor,Tensor)"
    assert differences({**SCHEMAS, "bwd": f"{arguments} -> (Tensor,Tensor)"})[0].startswith("bwd: returns (Tensor,Te")
    pin = f"{arguments} -> (Tensor(dq!),Tensor(dk!),Tensor(dv!),{returns[1:]}"
    assert differences({**SCHEMAS, "bwd": pin}) == [], "what the pin declares can be called too"
    library = with_ours({**PUBLIC, "bwd": pin})
    assert differences(library, NATIVE) == [], "with our arguments behind too, which is what libraries have"
    assert differences({**SCHEMAS, "bwd": pin}, SCHEMAS), "a library still has to declare what its source does"
    assert differences({**SCHEMAS, "more": "more() -> Tensor"}) == ["more: unknown"]
    assert differences({name: text for name, text in SCHEMAS.items() if name != "fwd"}) == ["fwd: missing"]
