"""Wheels into the hub: what gets in, what does not, and how releases and platforms come together."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from ci.wheel.wheel import fa2_files, fa2_name, wheel_bytes
from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.checkout import resolve
from flash_attn3_sm121.hub.layout import PACKAGE, RepoName
from flash_attn3_sm121.hub.maintain import prune
from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.variants import ALIASES, INFO_FILE, Flavour, Variant, parse_repo
from flash_attn3_sm121.hub.wheelfile import read_wheel
from tests.hub.wheelmaker import write_wheel

VARUNNEAL = "varunneal/flash-attention-3"


def test_a_release_has_both_platforms_in_one_repository(hub: Hub, wheels: Mapping[str, Path]) -> None:
    index = hub.index()
    assert set(index.repos) == set(ALIASES)
    assert set(index.wheels) == {path.name for path in wheels.values()}
    for name in ALIASES:
        found = resolve(hub, index, name)
        assert index.repos[name].refs == dict.fromkeys(("main", "v1", "3.0.0.post1"), found.revision)
        unit = found.manifest.under("build/torch-cuda")
        for platform in ("linux_x86_64", "linux_aarch64"):
            held = hub.read(unit[f"payload/{platform}/{PACKAGE}/lib/flash_attn3_sm8x.so"])
            wheel = read_wheel(wheels[platform.removeprefix("linux_")])
            with zipfile.ZipFile(wheel.path) as archive:
                assert held == archive.read(f"{PACKAGE}/lib/flash_attn3_sm8x.so")
        assert f"payload/any/{PACKAGE}/__init__.py" in unit
        assert not [p for p in unit if p.startswith("payload/any/") and "/lib/" in p]
        assert "payload/linux_x86_64/licenses/LICENSE" in unit


def test_the_cpu_variant_holds_no_library(hub: Hub) -> None:
    unit = resolve(hub, hub.index(), VARUNNEAL).manifest.under("build/torch-cpu")
    assert {path.split("/")[1] for path in unit if path.startswith("payload/")} == {"any"}
    assert not [path for path in unit if path.endswith(".so")]


def test_metadata_is_what_every_kernels_version_parses(hub: Hub) -> None:
    ids = set()
    for name, flavour in ALIASES.items():
        manifest = resolve(hub, hub.index(), name).manifest
        for variant in Variant:
            metadata = json.loads(hub.read(manifest.under(variant.folder(RepoName.parse(name)))["metadata.json"]))
            assert set(metadata) == {"name", "id", "version", "license", "python-depends", "backend"}
            assert metadata["name"] == flavour.kernel_name and metadata["version"] == 1
            assert metadata["id"].isidentifier() and metadata["backend"] == {"type": variant.backend}
            ids.add((metadata["id"], flavour, variant.backend))
    assert len({item[0] for item in ids}) == len(ids)


def test_publishing_the_same_again_changes_nothing(hub: Hub, wheels: Mapping[str, Path]) -> None:
    before = hub.index()
    done = publish(hub, judge(wheels.values()))
    assert not done.changed and hub.index() == before


def test_platforms_may_come_one_after_the_other(tmp_path: Path, wheels: Mapping[str, Path], hub: Hub) -> None:
    other = Hub.create(tmp_path / "other")
    for name in ("pure", "aarch64", "x86_64"):
        publish(other, judge([wheels[name]]))
    assert resolve(other, other.index(), VARUNNEAL).revision == resolve(hub, hub.index(), VARUNNEAL).revision
    assert [item.added for _, item in other.index().repos[VARUNNEAL].history] == [3, 2, 1]


def test_without_a_pure_wheel_its_python_comes_from_another(tmp_path: Path, wheels: Mapping[str, Path]) -> None:
    hub = Hub.create(tmp_path / "x")
    publish(hub, judge([wheels["aarch64"]]))
    unit = resolve(hub, hub.index(), VARUNNEAL).manifest.under("build/torch-cpu")
    assert json.loads(hub.read(unit[INFO_FILE]))["platforms"]["any"]["wheel"] == wheels["aarch64"].name
    assert f"payload/any/{PACKAGE}/__init__.py" in unit and not [p for p in unit if "/lib/" in p]


def test_an_older_release_does_not_become_main(hub: Hub, newer_wheel: Path, tmp_path: Path) -> None:
    (warning,) = publish(hub, judge([newer_wheel])).skipped
    assert warning.startswith("`main` is release 3.0.1 now, which has no wheel for linux_aarch64: ")
    newest = resolve(hub, hub.index(), VARUNNEAL)
    assert newest.manifest.version == "3.0.1"
    older = write_wheel(tmp_path / "old", version="2.9.0", library=b"old")
    assert publish(hub, judge([older])).skipped == ()
    index = hub.index()
    assert resolve(hub, index, VARUNNEAL).revision == newest.revision
    assert resolve(hub, index, VARUNNEAL, "2.9.0").manifest.version == "2.9.0"
    assert resolve(hub, index, VARUNNEAL, "3.0.0.post1").manifest.version == "3.0.0.post1"
    assert resolve(hub, index, VARUNNEAL, "fake-ops-return-probs").revision == newest.revision


def test_a_rebuilt_wheel_of_the_same_name_replaces_the_old_one(hub: Hub, tmp_path: Path) -> None:
    before = resolve(hub, hub.index(), VARUNNEAL)
    publish(hub, judge([write_wheel(tmp_path / "again", library=b"rebuilt")]))
    after = resolve(hub, hub.index(), VARUNNEAL)
    assert after.revision != before.revision and len(hub.index().wheels) == 3
    assert set(hub.index().repos[VARUNNEAL].revisions) == {before.revision, after.revision}


def test_the_page_says_what_was_executed(hub: Hub, tmp_path: Path) -> None:
    page = hub.layout.root / "www/index.html"
    assert "executed in software" not in page.read_text(encoding="utf-8")
    story = {"attention": 96, "cases": 602, "wrong": 0, "kernels": []}
    extra = {f"{PACKAGE}/lib/executed.json": json.dumps(story).encode()}
    publish(hub, judge([write_wheel(tmp_path, extra=extra, local="g1234567.121.smoke")]))
    line = "executed in software: 96 attention kernels for 12.1 in 602 cases, none wrong"
    assert line in page.read_text(encoding="utf-8")


def test_names_of_ones_own(hub: Hub, wheels: Mapping[str, Path]) -> None:
    with pytest.raises(HubError, match="no such flavour"):
        parse_repo("a/b=no")
    mine = dict(parse_repo(text) for text in ("my-lab/attention", "my-lab/vllm-attention", "my-lab/x=vllm"))
    assert list(mine.values()) == [Flavour.FA3, Flavour.VLLM, Flavour.VLLM]
    publish(hub, judge([wheels["pure"]]), repos=mine)
    assert {"my-lab/attention", "my-lab/x"} <= set(hub.index().repos)
    with pytest.raises(HubError, match="flavour vllm, not fa3"):
        publish(hub, judge([wheels["pure"]]), repos=dict([parse_repo("my-lab/x=fa3")]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        ({"proxy": True}, IntegrityError, "proxy build"),
        ({"verdict": "fail"}, IntegrityError, "not verified: .*'fail'"),
        (
            {"about": {"flash_attn3_sm8x.so": {"sha256": "0" * 64}}},
            IntegrityError,
            "is not about this flash_attn3_sm8x",
        ),
        ({"about": {}}, IntegrityError, "is not about this flash_attn3_sm8x"),
        ({"verdict": None}, IntegrityError, "holds no .*verify.json"),
        (
            {"extra": {"flash_attn3_sm121/lib/provenance.json": b'{"op_schemas": {"fwd": "(Tensor q) -> Tensor"}}'}},
            IntegrityError,
            r"bwd: missing(?s:.*)fwd: argument 2 is 'nothing' instead of 'Tensor k'",
        ),
        ({"falsify": {f"{PACKAGE}/__init__.py": b"evil"}}, IntegrityError, "does not match the wheel's RECORD"),
        ({"falsify": {f"{PACKAGE}/evil.py": b"evil"}}, IntegrityError, "not in its RECORD"),
        ({"falsify": {"../evil.py": b"evil"}}, HubError, "safe path"),
        ({"extra": {f"{PACKAGE}/lib/stray.so": b"x"}}, IntegrityError, "without build facts"),
        ({"drop": frozenset({f"{PACKAGE}/lib/flash_attn3_sm8x.so"})}, IntegrityError, "does not hold"),
        ({"falsify": {f"{PACKAGE}/lib/sm8x.json": b"\xff"}}, IntegrityError, "does not match the wheel's RECORD"),
        ({"extra": {f"{PACKAGE}/lib/other.json": b"\xff\xfe"}}, IntegrityError, "other.json is not UTF-8"),
        ({"extra": {f"{PACKAGE}/lib/other.json": b"{}"}}, IntegrityError, "build facts"),
        ({"extra": {f"{PACKAGE}/bomb.bin": bytes(100 << 20)}}, IntegrityError, "a zip bomb"),
        ({"extra": {f"{PACKAGE}/lib/other.json": bytes(20 << 20)}}, IntegrityError, "expected at most 16777216"),
        ({"modes": {f"{PACKAGE}/__init__.py": 0o120777}}, IntegrityError, "is a link"),
        ({"extra": {f"{PACKAGE}/lib/executed.json": b"[]"}}, IntegrityError, "not what `make prove` writes"),
    ],
    ids=[
        "proxy",
        "failed",
        "of-another",
        "of-none",
        "no-report",
        "other-ops",
        "changed",
        "added",
        "outside",
        "stray",
        "missing",
        "changed-facts",
        "not-utf-8",
        "bad-facts",
        "bomb",
        "large-facts",
        "link",
        "bad-executed",
    ],
)
def test_bad_wheels_are_refused(tmp_path: Path, make: dict[str, object], error: type[Exception], message: str) -> None:
    path = write_wheel(tmp_path, **make)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        judge([path])


def test_unverified_may_be_asked_for_and_is_remembered(tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "hub")
    path = write_wheel(tmp_path, verdict="fail")
    publish(hub, judge([path], allow_unverified=True))
    assert hub.index().wheels[path.name].verify == "unverified"
    with pytest.raises(IntegrityError, match="proxy"):
        judge([write_wheel(tmp_path, proxy=True)], allow_unverified=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other-1.0-py3-none-any.whl", "expected a wheel of flash_attn3_sm121"),
        ("flash_attn3_sm121-9.9-py3-none-any.whl", "METADATA says"),
        (f"{PACKAGE}-3.0.0.post1+g3effce8.121.nanochat-py3-none-manylinux_2_34_aarch64.whl", "holds libraries for"),
        ("nonsense.whl", "[Ii]nvalid wheel filename"),
        ("flash_attn3_sm121-not.a.version-py3-none-any.whl", "[Ii]nvalid"),
    ],
    ids=["project", "version", "platform", "name", "bad-version"],
)
def test_a_wheel_under_a_false_name_is_refused(
    tmp_path: Path, wheels: Mapping[str, Path], name: str, message: str
) -> None:
    target = tmp_path / name
    target.write_bytes(wheels["x86_64"].read_bytes())
    with pytest.raises(HubError, match=message):
        judge([target])


def test_flash_attention_2s_names_are_on_the_pip_side_only(hub: Hub, tmp_path: Path) -> None:
    name = fa2_name()
    files = fa2_files(name)
    path = tmp_path / name.file
    path.write_bytes(wheel_bytes(name, files))
    before = hub.index()
    done = publish(hub, judge([path]))
    index = hub.index()
    assert done.changed and done.repos == {} and index.repos == before.repos
    assert index.wheels[path.name].name == "flash_attn"
    assert b"flash_attn-2.8.3" in (hub.layout.root / "www" / "simple" / "flash-attn" / "index.html").read_bytes()
    prune(hub, 1)  # a wheel of those names is no release: it neither goes nor pushes another out
    assert set(hub.index().wheels) == set(index.wheels)
    with pytest.raises(HubError, match="has no kernel"):
        publish(hub, judge([path]), repos={RepoName.parse(VARUNNEAL): Flavour.FA3})
    described = f"{name.dist_info}/METADATA"
    alien = files | {described: files[described].replace(b"Requires-Dist: flash_attn3_sm121", b"Requires-Dist: torch")}
    path.write_bytes(wheel_bytes(name, alien))
    with pytest.raises(HubError, match="somebody else's"):
        judge([path])


def test_a_truncated_wheel_is_refused(tmp_path: Path, wheels: Mapping[str, Path]) -> None:
    target = tmp_path / wheels["pure"].name
    target.write_bytes(wheels["pure"].read_bytes()[:-2000])
    with pytest.raises(IntegrityError, match="not a whole wheel"):
        judge([target])


def test_a_version_in_the_metadata_that_is_none_is_refused(tmp_path: Path) -> None:
    info = f"{PACKAGE}-3.0.0.post1.dist-info/METADATA"
    text = f"Metadata-Version: 2.4\nName: {PACKAGE}\nVersion: not a version\n\n".encode()
    with pytest.raises(IntegrityError, match="METADATA says"):
        judge([write_wheel(tmp_path, platform=None, extra={info: text})])


def test_a_large_wheel_is_never_held_in_memory(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, library=os.urandom(48 << 20))
    hub = Hub.create(tmp_path / "hub", durable=False)
    tracemalloc.start()
    try:
        publish(hub, judge([path]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20, f"{peak >> 20} MiB for a wheel of {path.stat().st_size >> 20}"
