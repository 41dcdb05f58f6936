"""Files from an index: found through pip's configuration, resumed, retried, checked; parts of wheels by ranges."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci.cache.archive import unpack_zip
from ci.index import IndexConfig, Wanted, obtained, opened_ranges, read_config
from ci.index.config import default_index
from ci.index.http import NotRangeable
from ci.index.locate import _with_credentials
from flash_attn3_sm121.errors import FetchError
from tests.fakes.serving import PROJECT, Index, serving, sha
from tests.fakes.worlds import narrator, said

BODY = bytes(range(256)) * 5000
NAME = "the_project-1.0.tar.gz"
WANTED = Wanted(project="The.Project", filename=NAME, sha256=sha(BODY))


@pytest.fixture
def index() -> Iterator[Index]:
    with serving(Index(files={"other.whl": b"", NAME: BODY})) as index:
        yield index


def get(index: Index, cache: Path, **config: object) -> bytes:
    settings = IndexConfig(index_urls=(index.url,), **config)  # type: ignore[arg-type]
    with obtained(WANTED, cache, settings, narrator(), sleep=lambda _: None) as file:
        return file.read_bytes()


@pytest.mark.parametrize("page_json", [True, False], ids=["json", "html"])
def test_a_file_is_found_on_either_kind_of_page(index: Index, tmp_path: Path, page_json: bool) -> None:
    index.page_json = page_json
    assert get(index, tmp_path) == BODY


def test_a_cut_download_goes_on_where_it_stopped(index: Index, tmp_path: Path) -> None:
    index.faults = ["cut", "500"]
    assert get(index, tmp_path) == BODY
    files = [wanted for path, wanted in index.asked if path.startswith("/files/")]
    assert files == [None, f"bytes={len(BODY) // 2}-", f"bytes={len(BODY) // 2}-"]


def test_without_ranges_a_cut_download_starts_over(index: Index, tmp_path: Path) -> None:
    index.faults, index.ranges = ["cut"], False
    assert get(index, tmp_path) == BODY


def test_what_a_killed_run_left_is_used(index: Index, tmp_path: Path) -> None:
    partial = tmp_path / "downloads" / WANTED.sha256 / f"{NAME}.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(BODY[:1000])
    assert get(index, tmp_path) == BODY
    assert index.asked[-1] == (f"/files/{NAME}", "bytes=1000-")


def test_a_complete_partial_file_needs_no_byte_more(index: Index, tmp_path: Path) -> None:
    partial = tmp_path / "downloads" / WANTED.sha256 / f"{NAME}.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(BODY)
    assert get(index, tmp_path) == BODY


def test_a_server_that_stays_broken_is_given_up(index: Index, tmp_path: Path) -> None:
    index.faults = ["500"] * 9
    with pytest.raises(FetchError, match=r"HTTP 500.*attempt 5 of 5"):
        get(index, tmp_path)


def test_other_bytes_are_refused_and_not_kept(index: Index, tmp_path: Path) -> None:
    index.files[NAME] = BODY[:-1] + b"?"
    index.announced[NAME] = WANTED.sha256
    with pytest.raises(FetchError, match=f"expected sha256 {WANTED.sha256}, found"):
        get(index, tmp_path)
    assert not list((tmp_path / "downloads" / WANTED.sha256).iterdir())


def test_another_announced_hash_is_refused_before_the_download(index: Index, tmp_path: Path) -> None:
    index.announced[NAME] = "0" * 64
    with pytest.raises(FetchError, match=f"offers sha256 {'0' * 64}, pinned is"):
        get(index, tmp_path)
    assert not [path for path, _ in index.asked if path.startswith("/files/")]


def test_find_links_come_first_and_a_bad_copy_there_is_passed_over(index: Index, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / NAME).write_bytes(b"other")
    assert get(index, tmp_path / "cache", find_links=(str(links),)) == BODY
    (links / NAME).write_bytes(BODY)
    index.asked.clear()
    assert get(index, tmp_path / "cache", find_links=(links.as_uri(),)) == BODY
    assert not index.asked


def test_credentials_are_sent_and_never_shown(index: Index, tmp_path: Path) -> None:
    index.token = "Basic dTpzZWNyZXQ="
    scheme, _, rest = index.url.partition("://")
    narrate = narrator()
    config = IndexConfig(index_urls=(f"{scheme}://u:secret@{rest}",))
    with obtained(WANTED, tmp_path, config, narrate) as file:
        assert file.read_bytes() == BODY
    assert "fetching http" in said(narrate)
    assert "secret" not in said(narrate)
    index.token = "Basic another"
    with pytest.raises(FetchError, match="HTTP 401") as caught, obtained(WANTED, tmp_path, config, narrate):
        pass
    assert "secret" not in str(caught.value) + said(narrate)


def test_credentials_stay_with_their_host() -> None:
    index = "https://u:secret@index.example.org/simple/p/"
    same, other = "https://index.example.org/f.whl", "https://files.example.org/f.whl"
    assert _with_credentials(same, index) == "https://u:secret@index.example.org/f.whl"
    assert _with_credentials(other, index) == other
    assert _with_credentials(same.replace("https", "http"), index) == same.replace("https", "http")


def test_offline_asks_nobody(index: Index, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="offline"):
        get(index, tmp_path, offline=True)
    assert not index.asked


def wheel(extra: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as zipped:
        zipped.writestr("torch/lib/big.so", bytes(9 << 20))
        for name, body in {"torch/include/a/x.h": b"x", "torch/include/b/y.h": b"y", **(extra or {})}.items():
            zipped.writestr(name, body)
    return buffer.getvalue()


def test_only_the_needed_parts_of_a_wheel_are_read(index: Index, tmp_path: Path) -> None:
    index.files = {"t.whl": wheel()}
    wanted = Wanted(project=PROJECT, filename="t.whl", sha256=sha(index.files["t.whl"]))
    with opened_ranges(wanted, IndexConfig(index_urls=(index.url,)), narrator()) as remote:
        assert unpack_zip(remote, "t.whl", {"torch/include/a": "a"}, tmp_path) == 1  # type: ignore[arg-type]
        read = sum(len(block) for block in remote.blocks.values())
    assert (tmp_path / "a" / "x.h").read_bytes() == b"x"
    assert read < len(index.files["t.whl"]) / 2


def test_a_server_without_ranges_is_told_apart(index: Index) -> None:
    index.ranges = False
    with pytest.raises(NotRangeable), opened_ranges(WANTED, IndexConfig(index_urls=(index.url,)), narrator()):
        pass


@pytest.mark.parametrize("name", ["torch/include/a/../../../x", "/x", "torch/include/a\\..\\x"])
def test_a_zip_with_tricks_is_refused(tmp_path: Path, name: str) -> None:
    body = io.BytesIO(wheel({name: b""}))
    with pytest.raises(FetchError, match="refused, a member leaves the folder"):
        unpack_zip(body, "t.whl", {"torch/include/a": "a"}, tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a/l")
    info.external_attr = 0o120777 << 16
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as zipped:
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(FetchError, match="neither a file nor a folder"):
        unpack_zip(body, "t.whl", {"a": "a"}, tmp_path)


def test_configuration_as_pip_reads_it(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = file:///i\nextra-index-url = file:///a\n  file:///b\ntimeout = 7\n"
    )
    home = {"HOME": str(tmp_path / "nobody"), "XDG_CONFIG_DIRS": "", "XDG_CONFIG_HOME": str(tmp_path / "none")}
    config = read_config(home, prefix=tmp_path)
    assert config.index_urls == ("file:///i", "file:///a", "file:///b")
    env = {**home, "PIP_INDEX_URL": "file:///j", "PIP_EXTRA_INDEX_URL": "file:///c", "PIP_FIND_LINKS": "/d /e"}
    config = read_config(env, prefix=tmp_path, offline=True)
    assert (config.index_urls, config.find_links) == (("file:///j", "file:///c"), ("/d", "/e"))
    assert config.offline
    assert read_config({**env, "PIP_NO_INDEX": "1"}, prefix=tmp_path).index_urls == ()
    assert (
        read_config({**home, "UV_DEFAULT_INDEX": "main=file:///u"}, prefix=tmp_path / "n").index_urls[0] == "file:///u"
    )


def test_the_public_index_is_the_one_pip_names() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing pip swaps distutils under whoever has imported it before
        from pip._internal.models.index import PyPI

    assert default_index() == PyPI.simple_url
