"""Signatures: of a whole generation, demanded when keys are configured, and worth nothing for anything else."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.checkout import checkout, load_from_hub, private_checkout, resolve
from flash_attn3_sm121.hub.export import export
from flash_attn3_sm121.hub.index import Index
from flash_attn3_sm121.hub.maintain import check, remove, sign
from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.sign import DOMAIN, SigningKey, TrustedKeys
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.trust import trusted

pytest.importorskip("cryptography")
REPO = "kernels-community/flash-attn3"
Value = dict[str, dict[str, dict[str, object]]]


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.generate(tmp_path / "key")


@pytest.fixture
def signed(hub: Hub, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A signed hub, on a machine that trusts its key."""
    sign(hub, key)
    monkeypatch.setenv("FLASH_ATTN3_TRUSTED_KEYS", key.public)
    return hub


def rewrite(hub: Hub, change: Callable[[Value], None]) -> None:
    """What an attacker without the key can do: write the index as he likes, all hashes right."""
    path = hub.layout.generation(hub.generation())
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))
    Index.from_bytes(path.read_bytes(), origin="the forgery reads well")


def test_a_key_is_private_and_reads_back(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public == key.public == (tmp_path / "key.pub").read_text().strip()
    with pytest.raises(HubError, match="exists already"):
        SigningKey.generate(path)
    with pytest.raises(HubError, match="not an unencrypted PEM"):
        SigningKey.load(tmp_path / "key.pub")


def test_keys_are_given_as_text_or_files(tmp_path: Path, key: SigningKey) -> None:
    other = SigningKey.generate(tmp_path / "other")
    assert set(TrustedKeys.parse(f"{key.public},{tmp_path}/other.pub").keys) == {key.key_id, other.key_id}
    assert TrustedKeys.from_env({}) is None
    with pytest.raises(HubError, match="ed25519: and 44 characters"):
        TrustedKeys.parse("ed25519:AAAA")
    with pytest.raises(HubError, match="neither a key nor a readable file"):
        TrustedKeys.parse("/no/such/file")


def test_a_signed_hub_passes_and_signing_again_makes_no_generation(signed: Hub, key: SigningKey) -> None:
    report = check(signed, TrustedKeys.parse(key.public))
    assert report.ok and report.signed and trusted(signed).index.generation == 2
    assert sign(signed, key).generation == 2


def test_an_unsigned_hub_fails_when_keys_are_demanded(hub: Hub, key: SigningKey) -> None:
    report = check(hub, TrustedKeys.parse(key.public))
    assert len(report.findings) == 1 and "not signed" in report.findings[0]


def test_another_key_is_not_trusted(signed: Hub, tmp_path: Path) -> None:
    """Swapping the key swaps nothing: a hub that another key signed whole is refused."""
    other = SigningKey.generate(tmp_path / "other")
    sign(signed, other)
    with pytest.raises(IntegrityError, match=f"signed by the key {other.key_id}, which is not among"):
        trusted(signed)


def test_a_signature_is_of_one_content_and_one_purpose(key: SigningKey) -> None:
    keys = TrustedKeys.parse(key.public)
    assert keys.verify(b"text", key.sign(b"text"), origin="x") == key.key_id
    with pytest.raises(IntegrityError, match="does not match"):
        keys.verify(b"text ", key.sign(b"text"), origin="x")
    for bad in ("AAAA", "not base64!", json.loads(key.sign(DOMAIN + b"text"))["signature"]):
        forged = json.dumps({"schema": 1, "key": key.key_id, "signature": bad}).encode()
        with pytest.raises(IntegrityError):
            keys.verify(b"text", forged, origin="x")


def swapped(value: Value) -> None:
    repos = value["repos"]
    one, other = repos["varunneal/flash-attention-3"], repos[REPO]
    repos[REPO], repos["varunneal/flash-attention-3"] = one, other


FORGERIES: dict[str, Callable[[Value], object]] = {
    "metadata": lambda value: [w.update(metadata_sha256="0" * 64) for w in value["wheels"].values()],
    "python": lambda value: [w.update(requires_python=">=2") for w in value["wheels"].values()],
    "file name": lambda value: value["wheels"].update({"x-9-py3-none-any.whl": next(iter(value["wheels"].values()))}),
    "repositories swapped": swapped,
    "flavour": lambda value: value["repos"][REPO].update(flavour="vllm"),
    "an older main": lambda value: value["repos"][REPO]["refs"].update(main=min(value["repos"][REPO]["revisions"])),
    "generation": lambda value: value.update(created="2030-01-01T00:00:00Z"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", FORGERIES)
def test_whatever_is_forged_in_the_index_is_refused_everywhere(
    signed: Hub, key: SigningKey, newer_wheel: Path, tmp_path: Path, name: str
) -> None:
    publish(signed, judge([newer_wheel]), key=key)
    trusted(signed)
    rewrite(signed, lambda value: (FORGERIES[name](value), None)[1])
    keys = TrustedKeys.parse(key.public)
    assert any("does not match the content" in text for text in check(signed, keys).findings)
    for use in (
        lambda: trusted(signed),
        lambda: load_from_hub(signed.layout.root, REPO, None),
        lambda: export(signed, tmp_path / "out"),
    ):
        with pytest.raises(IntegrityError, match=r"signature of key .* does not match the content"):
            use()


def test_an_older_generation_put_back_is_refused(signed: Hub, key: SigningKey, newer_wheel: Path) -> None:
    publish(signed, judge([newer_wheel]), key=key)
    assert trusted(signed).index.generation == 3
    signed.layout.current.write_text("2\n")
    with pytest.raises(IntegrityError, match=r"generation 2 of .* is older than 3"):
        trusted(signed)


def test_another_hub_of_the_same_key_in_its_place_is_refused(
    signed: Hub, key: SigningKey, tmp_path: Path, wheels: Mapping[str, Path]
) -> None:
    trusted(signed)
    other = Hub.create(tmp_path / "other")
    for name in ("pure", "aarch64", "x86_64"):
        publish(other, judge([wheels[name]]), key=key)
    signed.layout.root.rename(tmp_path / "aside")
    other.layout.root.rename(tmp_path / "hub")
    with pytest.raises(IntegrityError, match="is of another hub"):
        trusted(Hub.open(tmp_path / "hub"))


def test_a_signed_hub_does_not_become_unsigned_in_passing(
    signed: Hub, key: SigningKey, wheels: Mapping[str, Path], newer_wheel: Path
) -> None:
    publish(signed, judge(wheels.values()), key=key)
    for attempt in (
        lambda: publish(signed, judge([newer_wheel])),
        lambda: publish(signed, judge(wheels.values())),
        lambda: remove(signed, [REPO]),
    ):
        with pytest.raises(HubError, match=f"is signed by {key.key_id}, and there is no key"):
            attempt()
    assert trusted(signed).index.generation == 2
    publish(signed, judge([newer_wheel]), unsigned=True)
    with pytest.raises(IntegrityError, match="is not signed"):
        trusted(signed)


def planted_bytecode(folder: Path) -> str:
    path = folder / "build/torch-cpu/payload/any/flash_attn3_sm121/__pycache__/arch.cpython-311.pyc"
    path.parent.mkdir()
    path.write_bytes(b"evil")
    return "__pycache__/arch.cpython-311.pyc"


def linked_folder(folder: Path) -> str:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").write_text("evil")
    (folder / "build/torch-cpu/payload/any/flash_attn3_sm121/planted").symlink_to(elsewhere)
    return "flash_attn3_sm121/planted"


def linked_file(folder: Path) -> str:
    path = folder / "build/torch-cpu/payload/any/flash_attn3_sm121/arch.py"
    path.rename(folder.parent / "same.py")
    path.symlink_to(folder.parent / "same.py")
    return "arch.py"


@pytest.mark.parametrize("plant", [planted_bytecode, linked_folder, linked_file])
@pytest.mark.parametrize("make", [checkout, private_checkout])
def test_what_lies_beside_the_modules_is_refused_by_name(
    hub: Hub, make: Callable[..., Path], plant: Callable[[Path], str]
) -> None:
    found = resolve(hub, hub.index(), REPO)
    name = plant(make(hub, found))
    with pytest.raises(IntegrityError, match=f"first build/torch-cpu/payload/any/.*{name}"):
        make(hub, found)


def test_a_copy_that_others_can_change_is_refused(hub: Hub, tmp_path: Path) -> None:
    found = resolve(hub, hub.index(), REPO)
    assert stat.S_IMODE(private_checkout(hub, found).parent.stat().st_mode) == 0o700
    (tmp_path / "fa3" / "override").chmod(0o777)
    with pytest.raises(IntegrityError, match="can be changed by others"):
        private_checkout(hub, found)
