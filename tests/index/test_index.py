"""Files from an index: wheels through pip, one file through the index's pages, parts of wheels by ranges."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from urllib3.util import Retry

from ci.cache.archive import unpack_zip
from ci.index import Wanted, members, pages
from ci.index.pip import download, pip_settings
from flash_attn3_sm121.errors import DiskError, FetchError
from tests.fakes.serving import PROJECT, Index, make_wheel, pip_looks_at, serving, sha
from tests.fakes.worlds import said, settings_of

BODY = bytes(range(256)) * 5000
NAME = "the_project-1.0.tar.gz"
WANTED = Wanted(project="The.Project", filename=NAME, sha256=sha(BODY))


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index that pip is configured for; the pages' own reader is told so without asking pip each time."""
    with serving(Index(files={"other.whl": b"", NAME: BODY})) as index:
        pip_looks_at(monkeypatch, index=index.url)
        places = {"index-url": index.url}
        monkeypatch.setattr(pages, "pip_settings", lambda: places)
        monkeypatch.setattr(members, "pip_settings", lambda: places)
        monkeypatch.setattr(pages, "RETRIES", Retry(total=2, backoff_factor=0, status_forcelist=[500]))
        yield index


def get(into: Path, *, offline: bool = False) -> bytes:
    return pages.download_file(WANTED, into, settings_of(into, offline=offline)).read_bytes()


@pytest.mark.parametrize("page_json", [True, False], ids=["json", "html"])
def test_a_file_is_found_on_either_kind_of_page(index: Index, tmp_path: Path, page_json: bool) -> None:
    index.page_json = page_json
    assert get(tmp_path) == BODY


def test_a_cut_download_and_a_server_error_are_tried_again(index: Index, tmp_path: Path) -> None:
    index.faults = ["cut", "500"]
    assert get(tmp_path) == BODY


@pytest.mark.parametrize(("fault", "words"), [("500", "500"), ("cut", "broken")])
def test_a_server_that_stays_broken_is_given_up(index: Index, tmp_path: Path, fault: str, words: str) -> None:
    index.faults = [fault] * 9
    with pytest.raises(FetchError, match=rf"(?s)could not get {NAME}.*{words}.*PIP_FIND_LINKS"):
        get(tmp_path)


def test_other_bytes_are_refused_and_not_kept(index: Index, tmp_path: Path) -> None:
    index.files[NAME] = BODY[:-1] + b"?"
    index.announced[NAME] = WANTED.sha256
    with pytest.raises(FetchError, match=f"expected sha256 {WANTED.sha256}, found"):
        get(tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_announced_hash_is_refused_before_the_download(index: Index, tmp_path: Path) -> None:
    index.announced[NAME] = "0" * 64
    with pytest.raises(FetchError, match=f"sha256 {'0' * 64}, pinned is {WANTED.sha256}"):
        get(tmp_path)
    assert not [path for path, _ in index.asked if path.startswith("/files/")]


@pytest.mark.parametrize("kind", ["find-links", "a file: index"])
def test_folders_come_first_and_a_bad_copy_there_is_passed_over(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    links = tmp_path / "a b" / PROJECT
    links.mkdir(parents=True)
    places = {"index-url": index.url}
    if kind == "find-links":
        places["find-links"] = links.as_uri()
    else:
        places["extra-index-url"] = links.parent.as_uri()
    monkeypatch.setattr(pages, "pip_settings", lambda: places)
    (links / NAME).write_bytes(b"other")
    assert get(tmp_path) == BODY
    (links / NAME).write_bytes(BODY)
    index.asked.clear()
    assert get(tmp_path) == BODY
    assert get(tmp_path, offline=True) == BODY
    assert not index.asked


def test_a_full_disk_is_called_one(index: Index, tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"(?s)cannot write .*No space left on device.*FA3_CACHE"):
        get(tmp_path)


def test_credentials_are_sent_and_never_shown(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.token = "Basic dTpzZWNyZXQ="
    scheme, _, rest = index.url.partition("://")
    monkeypatch.setattr(pages, "pip_settings", lambda: {"index-url": f"{scheme}://u:secret@{rest}"})
    settings = settings_of(tmp_path)
    assert pages.download_file(WANTED, tmp_path, settings).read_bytes() == BODY
    assert "fetching http" in said(settings) and "secret" not in said(settings)
    index.token = "Basic another"
    with pytest.raises(FetchError, match="401") as caught:
        pages.download_file(WANTED, tmp_path, settings)
    assert "secret" not in str(caught.value) + said(settings)


def test_credentials_stay_with_their_host() -> None:
    index = "https://u:secret@index.example.org/simple/p/"
    same, other = "https://index.example.org/f.whl", "https://files.example.org/f.whl"
    assert pages.with_credentials(same, index) == "https://u:secret@index.example.org/f.whl"
    assert pages.with_credentials(other, index) == other
    assert pages.with_credentials(same.replace("https", "http"), index) == same.replace("https", "http")


def test_offline_asks_nobody(index: Index, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="offline"):
        get(tmp_path, offline=True)
    assert not index.asked


def test_pip_downloads_wheels_of_another_platform_and_python(index: Index, tmp_path: Path) -> None:
    wheels = [
        make_wheel(tmp_path / "made", PROJECT, tag, {"x": "x"})
        for tag in ("py3-none-linux_riscv64", "cp310-cp310-linux_riscv64")
    ]
    index.files = {wheel.filename: (tmp_path / "made" / wheel.filename).read_bytes() for wheel in wheels}
    for wheel in wheels:
        download([wheel], tmp_path / "got", settings_of(tmp_path))
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == sorted(wheel.filename for wheel in wheels)
    index.files.clear()  # what is there already is not downloaded again
    with pytest.raises(FetchError, match=r"(?s)pip did not get .*No matching distribution.*PIP_FIND_LINKS"):
        download([wheels[0]], tmp_path / "elsewhere", settings_of(tmp_path))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_pip_refuses_another_wheel_than_the_pinned_one(index: Index, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, PROJECT, "py3-none-any", {"x": "x"})
    index.files = {wheel.filename: (tmp_path / wheel.filename).read_bytes()}
    pinned = Wanted(project=PROJECT, filename=wheel.filename, sha256="0" * 64)
    with pytest.raises(FetchError, match=rf"(?s)Expected sha256 {'0' * 64}.*Got +{wheel.sha256}.*another index"):
        download([pinned], tmp_path / "got", settings_of(tmp_path))


def test_pip_offline_asks_folders_alone(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "a b", PROJECT, "py3-none-any", {"x": "x"})
    monkeypatch.setenv("PIP_FIND_LINKS", f"{(tmp_path / 'a b').as_uri()} {index.url}/{PROJECT}/")
    download([wheel], tmp_path / "got", settings_of(tmp_path, offline=True))
    assert (tmp_path / "got" / wheel.filename).is_file() and not index.asked


def test_settings_are_pips_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_looks_at(monkeypatch)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = file:///i\nextra-index-url = file:///a\n  file:///b\ntimeout = 7\ncert = /c\n"
        "[download]\ntimeout = 8\n[install]\ntimeout = 9\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "file:///j")
    monkeypatch.setenv("PIP_FIND_LINKS", "/d /e")
    found = pip_settings()
    assert (found["index-url"], found["extra-index-url"].split()) == ("file:///j", ["file:///a", "file:///b"])
    assert (found["find-links"], found["timeout"], found["cert"]) == ("/d /e", "8", "/c")
    (tmp_path / "pip.conf").write_text("not = in a section\n")
    with pytest.raises(FetchError, match="configuration cannot be read"):
        pip_settings()


def large_wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as zipped:
        zipped.writestr("torch/lib/big.so", os.urandom(9 << 20))
        for number in range(50):
            zipped.writestr(f"torch/include/a/{number}.h", f"header {number}")
        zipped.writestr("torch/lib/other.so", os.urandom(1 << 20))
    return buffer.getvalue()


def test_only_the_needed_parts_of_a_wheel_are_fetched(index: Index, tmp_path: Path) -> None:
    index.files = {"t.whl": large_wheel()}
    wanted = Wanted(project=PROJECT, filename="t.whl", sha256=sha(index.files["t.whl"]))
    with members.opened(wanted, settings_of(tmp_path)) as remote:
        assert unpack_zip(remote, "t.whl", {"torch/include/a": "a"}, tmp_path) == 50
    assert [(tmp_path / "a" / f"{number}.h").read_text() for number in (0, 49)] == ["header 0", "header 49"]
    assert index.sent < len(index.files["t.whl"]) / 2
    assert len([path for path, _ in index.asked if path.startswith("/files/")]) < 5


def test_a_server_without_ranges_is_told_apart(index: Index, tmp_path: Path) -> None:
    index.ranges = False
    with pytest.raises(members.NoParts, match="range"), members.opened(WANTED, settings_of(tmp_path)):
        pass


def zip_of(name: str | zipfile.ZipInfo, content: str) -> zipfile.ZipFile:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as zipped:
        zipped.writestr("a/x.h", "x")
        zipped.writestr(name, content)
    return zipfile.ZipFile(body)


@pytest.mark.parametrize("name", ["a/../../../x", "/x", "a\\..\\x"])
def test_a_zip_with_tricks_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FetchError, match="refused, a member leaves the folder"):
        unpack_zip(zip_of(name, ""), "t.whl", {"a": "a"}, tmp_path)


def test_a_full_disk_is_told_from_a_bad_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(DiskError, match=r"no space left on the disk of (?s:.*)FA3_CACHE=DIR"):
        unpack_zip(zip_of("a/y.h", "y"), "t.whl", {"a": "a"}, tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a/l")
    info.external_attr = 0o120777 << 16
    with pytest.raises(FetchError, match="neither a file nor a folder"):
        unpack_zip(zip_of(info, "/etc/passwd"), "t.whl", {"a": "a"}, tmp_path)


def test_certificates_are_those_of_pips_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session = pages.session_of(
        {"cert": "/c.pem", "client-cert": "/k.pem", "trusted-host": "index.test other.test:8443"}
    )
    assert (session.verify, session.cert) == ("/c.pem", "/k.pem")
    hosts = ("index.test", "index.test:8080", "other.test:8443", "other.test", "index.test.evil")
    trusted = [isinstance(session.get_adapter(f"https://{host}/x"), pages.TrustedHost) for host in hosts]
    assert trusted == [True, True, True, False, False]
    system = tmp_path / "system.pem"
    system.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    assert pages.session_of({}).verify == str(system)
