"""TORCH_CUDA_ARCH_LIST: PyTorch's grammar, nothing dropped, and every refusal says what is allowed."""

from __future__ import annotations

import pytest

from ci.plan import archs
from ci.plan.archs import Platform
from ci.settings import this_machine
from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.doctor.collect import parse_gpus
from flash_attn3_sm121.errors import ArchError

CUDA = (13, 0)


def names(text: str | None, **kwargs: object) -> list[str]:
    return [target.name for target in archs.parse(text, cuda=CUDA, **kwargs)]  # type: ignore[arg-type]


def test_every_capability_of_the_table_parses() -> None:
    assert names(" ".join(CAPABILITIES)) == [
        "8.0", "8.6", "8.9", "9.0a", "10.0", "10.3", "11.0", "12.0", "12.1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("12.1", ["12.1"], id="one"),
        pytest.param("9.0 10.0 12.1", ["9.0a", "10.0", "12.1"], id="spaces"),
        pytest.param("9.0a;12.0f", ["9.0a", "12.0f"], id="variants"),
        pytest.param("12.1+PTX", ["12.1+PTX"], id="ptx"),
        pytest.param("12.1 12.1+PTX 12.1", ["12.1+PTX"], id="ptx is not lost among duplicates"),
        pytest.param(" 12.1 ; 12.0 ;", ["12.0", "12.1"], id="empty items"),
        pytest.param("9.0 9.0a", ["9.0a"], id="plain 9.0 is 9.0a"),
        pytest.param("Ampere", ["8.0", "8.6+PTX"], id="Ampere"),
        pytest.param("Ada", ["8.9+PTX"], id="Ada"),
        pytest.param("Hopper", ["9.0a+PTX"], id="Hopper"),
        pytest.param("Blackwell", ["10.0", "10.3", "12.0", "12.1+PTX"], id="Blackwell"),
        pytest.param("Blackwell+Tegra", ["11.0"], id="the longer name wins"),
        pytest.param("Hopper 12.1", ["9.0a+PTX", "12.1"], id="name and number"),
        pytest.param("12.0 12.0a 12.0f", ["12.0", "12.0a", "12.0f"], id="variants are targets of their own"),
    ],
)
def test_grammar(text: str, expected: list[str]) -> None:
    assert names(text) == expected


def test_default_is_the_machine_and_else_gb10() -> None:
    assert names(None) == ["12.1"]
    assert names("") == ["12.1"]
    assert names(None, native=("8.9", "12.0")) == ["8.9", "12.0"]
    assert names("native", native=("12.1",)) == ["12.1"]
    with pytest.raises(ArchError, match="no NVIDIA GPU answers"):
        names("native")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("13.7", "no kernel family serves compute capability 13.7", id="unknown number"),
        pytest.param("7.5", "compute capability 7.5", id="too old"),
        pytest.param("Turing", "compute capability 7.5", id="too old by name"),
        pytest.param("Ampere+Tegra", "compute capability 8.7", id="known to torch, not to us"),
        pytest.param("9.0f", "9.0 has no variant 'f'", id="9.0 has no family code"),
        pytest.param("8.6a", "8.6 has no variant 'a'", id="8.6 has no a"),
        pytest.param("sm_121", "unknown architecture 'sm_121'", id="not the grammar"),
        pytest.param("12.1,12.0", "unknown architecture '12.1,12.0'", id="commas are not torch's"),
        pytest.param("hopper", "unknown architecture 'hopper'", id="names are as torch spells them"),
        pytest.param("12.1 13.7", "13.7", id="one wrong item spoils the list"),
        pytest.param("12.1+ptx", "unknown architecture", id="PTX is upper case"),
    ],
)
def test_refusals_say_what_is_allowed(text: str, reason: str) -> None:
    with pytest.raises(ArchError) as caught:
        names(text)
    assert reason in str(caught.value)
    assert "12.1[af]" in str(caught.value) and "Blackwell" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("text", "cuda"), [("12.1", (12, 8)), ("12.0f", (12, 8)), ("11.0", (12, 9))])
def test_toolchain_too_old(text: str, cuda: tuple[int, int]) -> None:
    with pytest.raises(ArchError, match=r"needs CUDA 1\d\.\d or newer, found 12\.\d"):
        archs.parse(text, cuda=cuda)
    assert archs.parse(text, cuda=CUDA)


def test_a_gpu_that_no_family_serves_is_an_error_too() -> None:
    with pytest.raises(ArchError, match=r"7\.5"):
        names(None, native=("7.5",))


def test_gencode() -> None:
    (plain,) = archs.parse("9.0", cuda=CUDA)
    assert archs.gencode(plain.code) == ("-gencode", "arch=compute_90a,code=sm_90a")
    (ptx,) = archs.parse("12.1+PTX", cuda=CUDA)
    assert archs.gencode(ptx.code)[3] == "arch=compute_121,code=compute_121"
    assert str(ptx.ptx_image) == "compute_121"


def test_platforms_have_several_names() -> None:
    assert [Platform.parse(name) for name in ("arm64", "AMD64", "linux_aarch64")] == ["aarch64", "x86_64", "aarch64"]


def test_each_capability_of_this_machine_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parse_gpus("A, 12.1, 580, [N/A]\nA, 12.1, 580, [N/A]\nB, 9.0, 580, 80000 MiB\nNo devices were found\n")[1]
    monkeypatch.setattr("ci.settings.gpus", lambda: (None, None, found))
    assert this_machine().gpus == ("12.1", "9.0")
