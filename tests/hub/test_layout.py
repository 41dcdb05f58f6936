"""Every path of the hub is formatted and parsed in one place; nothing from outside gets out of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.hub.layout import (
    HubLayout,
    RepoName,
    check_file_path,
    check_ref,
    check_wheel_name,
    default_root,
    payload_path,
    variant_path,
)

LAYOUT = HubLayout(root=Path("/hub"))
HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/../b",
    "a//b",
    "a/",
    "/a",
    "a\x00b",
    "a\\b",
    "a\nb",
    "\u202egpj.exe",
    "a/./b",
    "x" * 1025,
    "d/" + "n" * 256,
    "\ud800",
]


@given(st.text("0123456789abcdef", min_size=64, max_size=64))
def test_object_paths_parse_back(sha256: str) -> None:
    path = LAYOUT.object(sha256)
    assert path.parent.parent == LAYOUT.objects
    assert LAYOUT.parse_object(path) == sha256


@given(st.integers(0, 99_999_999))
def test_generation_paths_parse_back(number: int) -> None:
    assert LAYOUT.parse_generation(LAYOUT.generation(number).name) == number


@given(st.text())
def test_a_text_is_an_object_name_or_refused(text: str) -> None:
    try:
        path = LAYOUT.object(text)
    except HubError:
        return
    assert path.parent.parent == LAYOUT.objects and len(text) == 64


@given(st.text(max_size=300))
def test_a_file_path_stays_below_its_folder_or_is_refused(text: str) -> None:
    try:
        check_file_path(text)
    except HubError:
        return
    joined = Path("/base") / text
    assert joined.is_relative_to("/base") and ".." not in joined.parts and str(joined) == f"/base/{text}"


@given(st.text(max_size=300))
def test_a_repository_name_is_two_plain_folders_or_refused(text: str) -> None:
    try:
        name = RepoName.parse(text)
    except HubError:
        return
    assert str(name) == text and RepoName.parse(str(name)) == name
    assert (Path("/base") / text).parts == ("/", "base", name.org, name.name)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_paths_are_refused(text: str) -> None:
    for check in (check_file_path, check_ref, check_wheel_name, RepoName.parse, LAYOUT.object):
        with pytest.raises(HubError):
            check(text)


@pytest.mark.parametrize(
    "name", ["varunneal/flash-attention-3", "kernels-community/vllm-flash-attn3", "a/b", "A.b/c_d"]
)
def test_usual_repository_names_pass(name: str) -> None:
    assert str(RepoName.parse(name)) == name


def test_cache_folders_are_named_as_huggingface_hub_names_them() -> None:
    name = RepoName.parse("varunneal/flash-attention-3")
    assert name.cache_folder("model") == "models--varunneal--flash-attention-3"
    assert name.cache_folder("kernel") == "kernels--varunneal--flash-attention-3"


def test_variant_paths() -> None:
    path = variant_path("torch-cuda", payload_path("linux_aarch64", "flash_attn3_sm121/__init__.py"))
    assert path == "build/torch-cuda/payload/linux_aarch64/flash_attn3_sm121/__init__.py"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"FLASH_ATTN3_HUB": "/srv/hub", "HOME": "/h"}, "/srv/hub"),
        ({"XDG_DATA_HOME": "/data", "HOME": "/h"}, "/data/flash-attn3-sm121/hub"),
        ({"HOME": "/h"}, "/h/.local/share/flash-attn3-sm121/hub"),
    ],
    ids=["named", "xdg", "home"],
)
def test_the_default_folder(environ: dict[str, str], expected: str) -> None:
    assert str(default_root(environ)) == expected
