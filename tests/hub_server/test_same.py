"""`hub serve` and nginx send the same bytes with the same headers, and follow a publish without a reload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from flash_attn3_sm121.hub.index import Index
from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.site.simple import JSON_TYPE
from flash_attn3_sm121.hub.store import Hub
from tests.hub.wheelmaker import write_wheel
from tests.hub_server.harness import INIT, REPO, Answer, Server, behind_nginx, needs_nginx

pytestmark = needs_nginx
# What the software says of itself or of the moment.
OWN = {"date", "server", "connection", "transfer-encoding", "keep-alive"}
GZIP = {"Accept-Encoding": "gzip"}


@pytest.fixture(scope="module")
def nginx(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with behind_nginx(hub.layout.root, tmp_path_factory.mktemp("nginx")) as started:
        yield started


def addresses(index: Index) -> dict[str, tuple[str, Mapping[str, str]]]:
    wheel = next(name for name in index.wheels if "aarch64" in name)
    sha = index.repos[REPO].refs["main"]
    plain: dict[str, tuple[str, Mapping[str, str]]] = {
        "page": ("/", {}),
        "history": ("/history.html", {}),
        "repository's page": (f"/{REPO}/", {}),
        "style": ("/-/hub.css", {}),
        "health": ("/healthz", {}),
        "projects": ("/simple/", {}),
        "project": ("/simple/flash-attn3-sm121/", {}),
        "project as spelled": ("/simple/flash_attn3_sm121/", {}),
        "project as json": ("/simple/flash-attn3-sm121/", {"Accept": JSON_TYPE}),
        "project for a GPU": ("/simple/sm121/flash-attn3-sm121/", {"Accept": JSON_TYPE}),
        "wheel": (f"/files/{wheel}", {}),
        "metadata": (f"/files/{wheel}.metadata", {}),
        "file by revision": (f"/{REPO}/resolve/{sha}/{INIT}", {}),
        "file by ref": (f"/{REPO}/resolve/main/{INIT}", {}),
        "file by version": (f"/kernels/{REPO}/resolve/3.0.0.post1/README.md", {}),
        "generation": ("/hub/generation.json", {}),
    }
    for kind in ("models", "kernels"):
        for name in (f"{REPO}", f"{REPO}/revision/main", f"{REPO}/revision/{sha}", f"{REPO}/refs"):
            plain[f"{kind} {name.removeprefix(REPO)}"] = (f"/api/{kind}/{name}", {})
        plain[f"{kind} tree"] = (f"/api/{kind}/{REPO}/tree/{sha}?recursive=true&expand=false", {})
        plain[f"{kind} build"] = (f"/api/{kind}/{REPO}/tree/main/build?recursive=false", {})
    return plain


def shown(answer: Answer) -> dict[str, str]:
    found = {name: value for name, value in answer.headers.items() if name not in OWN}
    return {**found, "vary": ", ".join(sorted(found.get("vary", "").split(", ")))}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_same_bytes_and_headers(hub: Hub, server: Server, nginx: Server, method: str) -> None:
    for name, (path, headers) in addresses(hub.index()).items():
        ours, theirs = (one.ask(path, method=method, headers=headers) for one in (server, nginx))
        assert (ours.status, ours.body) == (200, theirs.body), name
        assert shown(ours) == shown(theirs), name


def test_the_same_when_compressed(hub: Hub, server: Server, nginx: Server) -> None:
    for name, (path, headers) in addresses(hub.index()).items():
        ours, theirs = (one.ask(path, headers={**headers, **GZIP}) for one in (server, nginx))
        for header in ("content-encoding", "etag", "content-type", "vary"):
            assert shown(ours).get(header) == shown(theirs).get(header), (name, header)


def test_the_same_where_nothing_is(server: Server, nginx: Server) -> None:
    for path in (
        f"/{REPO}/resolve/main/no/such.py",
        f"/kernels/{REPO}/resolve/main/kernel-status.toml",
        f"/{REPO}/resolve/nosuch/README.md",
        "/no/such/resolve/main/README.md",
        "/api/models/no/such",
        f"/api/models/{REPO}/revision/nosuch",
        f"/api/kernels/{REPO}/tree/main/nosuch",
    ):
        ours, theirs = server.ask(path), nginx.ask(path)
        assert ours.status == theirs.status == 404
        assert ours.headers["x-error-code"] == theirs.headers["x-error-code"], path
    for path in ("/files/x.whl", "/nothing/at/all"):
        assert server.ask(path).status == nginx.ask(path).status == 404


def test_the_same_redirects(server: Server, nginx: Server) -> None:
    from urllib.parse import urljoin

    for path in (f"/{REPO}", f"/kernels/{REPO}", f"/kernels/{REPO}/", "/simple", "/simple/flash-attn3-sm121"):
        ours, theirs = server.ask(path), nginx.ask(path)
        assert ours.status == theirs.status in (301, 302), path
        assert urljoin(path, ours.headers["location"]) == urljoin(path, theirs.headers["location"]), path


def test_ranges_and_conditions_are_the_same(hub: Hub, server: Server, nginx: Server) -> None:
    path = f"/{REPO}/resolve/main/{INIT}"
    etag = server.ask(path).headers["etag"]
    for headers in (
        {"Range": "bytes=10-19"}, {"Range": "bytes=-7"}, {"Range": "bytes=100-"},
        {"Range": "bytes=0-0", "If-Range": etag},
        {"Range": "bytes=0-9", "If-Range": '"other"'}, {"Range": "bytes=99999999-"},
        {"If-None-Match": etag}, {"If-None-Match": '"other"'}, {"If-Match": '"other"'},
    ):  # fmt: skip
        ours, theirs = server.ask(path, headers=headers), nginx.ask(path, headers=headers)
        assert ours.status == theirs.status, headers
        if ours.status in (200, 206):
            assert ours.body == theirs.body and ours.headers.get("content-range") == theirs.headers.get("content-range")


def test_a_publish_shows_in_both_without_a_reload(own_hub: Hub, tmp_path: Path) -> None:
    from tests.hub_server.harness import running

    with running(own_hub.layout.root) as ours, behind_nginx(own_hub.layout.root, tmp_path) as theirs:
        path = f"/{REPO}/resolve/main/build/torch-cuda/flash_attn3_variant.json"
        before = [one.ask(path) for one in (ours, theirs)]
        publish(own_hub, judge([write_wheel(tmp_path / "new", version="3.0.1", library=b"new")]))
        after = [one.ask(path) for one in (ours, theirs)]
        sha = own_hub.index().repos[REPO].refs["main"]
        for old, new in zip(before, after, strict=True):
            assert new.headers["x-repo-commit"] == sha != old.headers["x-repo-commit"]
            assert new.body != old.body and new.headers["etag"] != old.headers["etag"]
            assert b"3.0.1" in new.body
        again = [one.ask(f"/{REPO}/resolve/{before[0].headers['x-repo-commit']}/README.md") for one in (ours, theirs)]
        assert [answer.status for answer in again] == [200, 200], "the older revision stays"
