"""What holds for every answer: methods, ranges, ETags, HEAD, gzip, headers."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest

from flash_attn3_sm121.hub.index import FileEntry
from flash_attn3_sm121.hub.site.tree import etag_of
from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import INIT, REPO, Answer, Server

RESOLVE = f"/{REPO}/resolve/main/{INIT}"
TEXTS = ["/", f"/{REPO}/", "/simple/", "/simple/flash-attn3-sm121/", f"/api/models/{REPO}", "/-/hub.css"]


def wheel_of(hub: Hub) -> tuple[str, str, int]:
    name, entry = next((name, entry) for name, entry in hub.index().wheels.items() if "x86_64" in name)
    return f"/files/{name.replace('+', '%2B')}", entry.sha256, entry.size


def test_a_wheel_comes_whole(server: Server, hub: Hub) -> None:
    path, sha256, size = wheel_of(hub)
    answer = server.ask(path)
    assert answer.status == 200
    assert hashlib.sha256(answer.body).hexdigest() == sha256
    assert answer.headers["content-length"] == str(size)
    assert answer.headers["etag"] == etag_of(FileEntry(sha256=sha256, size=size))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("header", "status", "place"),
    [
        ("bytes=0-99", 206, slice(0, 100)),
        ("bytes=100-", 206, slice(100, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=0-1,5-6", 200, slice(None)),
        ("nonsense", 200, slice(None)),
    ],
)
def test_range(server: Server, hub: Hub, header: str, status: int, place: slice) -> None:
    path, _, size = wheel_of(hub)
    whole = server.ask(path).body
    answer = server.ask(path, headers={"Range": header})
    assert (answer.status, answer.body) == (status, whole[place])
    if status == 206:
        start, stop, _ = place.indices(size)
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"


def test_a_range_outside_of_the_file(server: Server, hub: Hub) -> None:
    path, _, size = wheel_of(hub)
    answer = server.ask(path, headers={"Range": f"bytes={size}-"})
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{size}"


def test_a_download_goes_on_where_it_stopped_unless_the_file_changed(server: Server, hub: Hub) -> None:
    path, sha256, size = wheel_of(hub)
    rest = server.ask(path, headers={"Range": "bytes=1000-", "If-Range": etag_of(FileEntry(sha256=sha256, size=size))})
    assert (rest.status, len(rest.body)) == (206, size - 1000)
    assert server.ask(path, headers={"Range": "bytes=1000-", "If-Range": '"older"'}).status == 200


@pytest.mark.parametrize("path", [*TEXTS, RESOLVE])
def test_an_etag_saves_the_second_download(server: Server, path: str) -> None:
    first = server.ask(path)
    again = server.ask(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert server.ask(path, headers={"If-None-Match": '"other"'}).status == 200
    assert server.ask(path, headers={"If-Match": '"other"'}).status == 412


@pytest.mark.parametrize("path", [*TEXTS, RESOLVE, "/nothing/here", "/simple/nothing/"])
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    get, head = server.ask(path), server.ask(path, method="HEAD")
    assert head.body == b""
    ignored = {"date"}
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in get.headers.items() if k not in ignored
    }
    assert head.status == get.status


def test_head_knows_no_ranges(server: Server, hub: Hub) -> None:
    path, _, size = wheel_of(hub)
    answer = server.ask(path, method="HEAD", headers={"Range": "bytes=0-1"})
    assert (answer.status, answer.headers["content-length"]) == (200, str(size))


@pytest.mark.parametrize("path", TEXTS)
def test_texts_are_zipped_on_request(server: Server, path: str) -> None:
    plain, zipped = server.ask(path), server.ask(path, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    if len(plain.body) < 512:
        assert "content-encoding" not in zipped.headers
        return
    assert "Accept-Encoding" in plain.headers["vary"]
    assert zipped.headers["content-encoding"] == "gzip"
    assert zipped.headers["etag"] != plain.headers["etag"]
    assert len(zipped.body) < len(plain.body)
    assert gzip.decompress(zipped.body) == plain.body


def test_files_are_never_zipped(server: Server, hub: Hub) -> None:
    for path in (
        wheel_of(hub)[0],
        f"/{REPO}/resolve/main/build/torch-cuda/payload/linux_x86_64/flash_attn3_sm121/lib/flash_attn3_sm8x.so",
    ):
        answer = server.ask(path, headers={"Accept-Encoding": "gzip, deflate, br"})
        assert "content-encoding" not in answer.headers
        assert answer.headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "MKCOL"])
@pytest.mark.parametrize("path", ["/", "/files/new.whl", "/simple/", f"/api/models/{REPO}", "/nothing"])
def test_nothing_can_be_changed(server: Server, method: str, path: str) -> None:
    answer = server.ask(path, method=method, headers={"Content-Length": "0"})
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_an_upload_is_cut_off_before_its_body(server: Server) -> None:
    answer = server.raw(
        patience=2, data=b"POST /files/x.whl HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\nstart"
    )
    assert answer.startswith(b"HTTP/1.1 405 ")


def check_headers(answer: Answer) -> None:
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "set-cookie" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", [*TEXTS, RESOLVE, "/nothing", "/healthz", "/simple", "/api/models/no/such"])
def test_every_answer_is_dressed(server: Server, path: str) -> None:
    check_headers(server.ask(path))


def test_addresses_by_revision_may_be_kept_for_ever(server: Server, hub: Hub) -> None:
    sha = hub.index().repos[REPO].refs["main"]
    assert "immutable" in server.ask(f"/{REPO}/resolve/{sha}/{INIT}").headers["cache-control"]
    assert server.ask(RESOLVE).headers["cache-control"] == "no-cache"


def test_health(server: Server, hub: Hub) -> None:
    assert json.loads(server.ask("/healthz").body) == {"status": "ok", "generation": hub.index().generation}


def test_what_is_no_http_gets_an_answer_without_it(server: Server) -> None:
    answer = server.raw(b"GET / HTTP/1.1\r\nHost: h\r\nbroken header <script>\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 400 ") and b"nosniff" in answer and b"script>" not in answer


@pytest.mark.parametrize("path", ["/", "/simple", f"/{REPO}", f"/kernels/{REPO}", "/no/such", "/api/no/such"])
def test_the_host_that_a_client_names_goes_nowhere(server: Server, path: str) -> None:
    asked = f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
    assert b"evil.example" not in server.raw(asked.encode())


def test_people_get_a_page_where_nothing_is_and_programs_json(server: Server) -> None:
    page = server.ask("/nothing", headers={"Accept": "text/html,*/*"})
    assert page.status == 404 and page.headers["content-type"].startswith("text/html") and "nothing" in page.text
    for path, accept in (("/nothing", "*/*"), ("/simple/nothing/", "text/html"), ("/files/x.whl", "text/html")):
        assert server.ask(path, headers={"Accept": accept}).headers["content-type"] == "application/json"
