"""Signatures: made with one's own key, demanded when keys are configured, and worth nothing for other content."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub import variant_loader
from flash_attn3_sm121.hub.checkout import checkout, resolve, verify_signatures
from flash_attn3_sm121.hub.index import FileEntry
from flash_attn3_sm121.hub.maintain import check, sign
from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.seed import seed
from flash_attn3_sm121.hub.sign import DOMAIN, SigningKey, TrustedKeys, wheel_statement
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.variants import SIGNATURE_FILE, SIGNED_FILE

pytest.importorskip("cryptography")
REPO = "kernels-community/flash-attn3"


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.generate(tmp_path / "key")


@pytest.fixture
def signed(tmp_path: Path, wheels: Mapping[str, Path], key: SigningKey) -> Hub:
    hub = Hub.create(tmp_path / "signed")
    publish(hub, judge(wheels.values()), key=key)
    return hub


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
    text = f"{key.public},{tmp_path}/other.pub"
    assert set(TrustedKeys.parse(text).keys) == {key.key_id, other.key_id}
    assert variant_loader.trusted_keys(text) == dict(TrustedKeys.parse(text).keys)
    assert TrustedKeys.from_env({}) is None
    with pytest.raises(HubError, match="neither a key nor a readable file"):
        TrustedKeys.parse("/no/such/file")


def test_a_signed_hub_passes(signed: Hub, key: SigningKey) -> None:
    report = check(signed, TrustedKeys.parse(key.public))
    assert report.ok and report.signed


def test_an_unsigned_hub_fails_when_keys_are_demanded(hub: Hub, key: SigningKey) -> None:
    report = check(hub, TrustedKeys.parse(key.public))
    assert len(report.findings) == 3 + 3 and all("not signed" in text for text in report.findings)


def test_signing_later_is_as_good(hub: Hub, key: SigningKey) -> None:
    before = hub.index()
    after, count = sign(hub, key)
    assert count == 6 and after.generation == before.generation + 1
    assert check(hub, TrustedKeys.parse(key.public)).ok
    assert sign(hub, key) == (after, 0)
    old = before.repos[REPO].refs["main"]
    assert old in after.repos[REPO].revisions and after.repos[REPO].refs["main"] != old


def test_another_key_is_not_trusted(signed: Hub, tmp_path: Path) -> None:
    other = SigningKey.generate(tmp_path / "other")
    report = check(signed, TrustedKeys.parse(other.public))
    assert report.findings and all("not among" in text for text in report.findings)


def test_a_signature_is_of_one_content_and_one_purpose(key: SigningKey) -> None:
    keys = TrustedKeys.parse(key.public)
    statement = wheel_statement("a.whl", FileEntry(sha256="0" * 64, size=1))
    keys.verify(statement, key.key_id, key.sign(statement), origin="x")
    for changed in (statement + b" ", wheel_statement("b.whl", FileEntry(sha256="0" * 64, size=1))):
        with pytest.raises(IntegrityError, match="does not match"):
            keys.verify(changed, key.key_id, key.sign(statement), origin="x")
    for bad in ("AAAA", "not base64!", key.sign(DOMAIN + statement)):
        with pytest.raises(IntegrityError):
            keys.verify(statement, key.key_id, bad, origin="x")


def test_a_revision_with_a_file_swapped_is_refused(signed: Hub, key: SigningKey) -> None:
    """The attacker may write the hub, hashes and all, but has no key."""
    found = resolve(signed, signed.index(), REPO)
    keys = TrustedKeys.parse(key.public)
    verify_signatures(signed, found, keys)
    evil = "build/torch-cuda/payload/linux_x86_64/flash_attn3_sm121/__init__.py"
    with signed.transaction() as txn:
        entry = txn.add_bytes(b"import os\n")
    changes = (
        {**found.manifest.files, evil: entry},
        {**found.manifest.files, evil.replace("__init__", "extra"): entry},
    )
    for files in (*changes, {path: e for path, e in found.manifest.files.items() if path != evil}):
        with pytest.raises(IntegrityError, match="1 files are not what was signed"):
            verify_signatures(signed, replace(found, manifest=replace(found.manifest, files=files)), keys)


def test_seed_and_checkout_refuse_what_is_not_signed(
    hub: Hub, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASH_ATTN3_TRUSTED_KEYS", key.public)
    with pytest.raises(IntegrityError, match="not signed"):
        seed(hub, hub.index(), [REPO], tmp_path / "cache")
    with pytest.raises(IntegrityError, match="not signed"):
        checkout(hub, resolve(hub, hub.index(), REPO))


def test_the_loader_in_a_variant_checks_by_itself(signed: Hub, key: SigningKey) -> None:
    folder = checkout(signed, resolve(signed, signed.index(), REPO)) / "build/torch-cuda"
    keys = variant_loader.trusted_keys(key.public)
    variant_loader.check_signature(folder, keys)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"Python's own")
    variant_loader.check_signature(folder, keys)
    with pytest.raises(ImportError, match="not among"):
        variant_loader.check_signature(folder, {})
    target = folder / "payload/any/flash_attn3_sm121/arch.py"
    text = target.read_bytes()
    target.write_bytes(text + b"# tampered\n")
    with pytest.raises(ImportError, match=r"first payload/any/flash_attn3_sm121/arch\.py"):
        variant_loader.check_signature(folder, keys)
    target.write_bytes(text)
    statement = (folder / SIGNED_FILE).read_bytes()
    (folder / SIGNED_FILE).write_bytes(statement.replace(b'"schema": 1', b'"schema": 1 '))
    with pytest.raises(ImportError, match="does not match the content"):
        variant_loader.check_signature(folder, keys)
    (folder / SIGNED_FILE).write_bytes(statement)
    (folder / SIGNATURE_FILE).unlink()
    with pytest.raises(ImportError, match="is not signed"):
        variant_loader.check_signature(folder, keys)
