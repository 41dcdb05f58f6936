"""The Hugging Face endpoint and the package index, answer by answer."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from flash_attn3_sm121.hub.site.tree import etag_of
from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import INIT, PROJECT, REPO, Server, add_repo, running

KINDS = ["models", "kernels"]
JSON_TYPE = "application/vnd.pypi.simple.v1+json"
HTML_TYPE = "application/vnd.pypi.simple.v1+html"
# What pip and uv send.
PIP = f"{JSON_TYPE}, {HTML_TYPE}; q=0.1, text/html; q=0.01"
UV = f"{JSON_TYPE}, {HTML_TYPE};q=0.2, text/html;q=0.01"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["", "/revision/main", "/revision/v1"])
def test_repository_info(server: Server, hub: Hub, kind: str, tail: str) -> None:
    sha = hub.index().repos[REPO].refs["main"]
    answer = server.ask(f"/api/{kind}/{REPO}{tail}")
    value = json.loads(answer.body)
    assert (value["id"], value["sha"], value["private"]) == (REPO, sha, False)
    assert {"rfilename": INIT} in value["siblings"]


@pytest.mark.parametrize("kind", KINDS)
def test_tree(server: Server, hub: Hub, kind: str) -> None:
    manifest = hub.manifest(next(iter(hub.index().repos[REPO].revisions.values())).manifest)
    base = f"/api/{kind}/{REPO}/tree/main"
    every = json.loads(server.ask(f"{base}?recursive=true&expand=false").body)
    assert {row["path"]: row["size"] for row in every if row["type"] == "file"} == {
        path: entry.size for path, entry in manifest.files.items()
    }
    assert {"build", "build/torch-cuda"} <= {row["path"] for row in every if row["type"] == "directory"}
    direct = json.loads(server.ask(f"{base}/build?recursive=false").body)
    assert {(row["path"], row["type"]) for row in direct} == {(f"build/{v}", "directory") for v in manifest.variants}


def test_refs(server: Server, hub: Hub) -> None:
    refs = hub.index().repos[REPO].refs
    value = json.loads(server.ask(f"/api/kernels/{REPO}/refs").body)
    assert {row["name"]: row["targetCommit"] for row in value["branches"]} == {k: refs[k] for k in ("main", "v1")}
    assert {row["name"] for row in value["tags"]} == set(refs) - {"main", "v1"}


@pytest.mark.parametrize("prefix", ["", "/kernels"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_resolve(server: Server, hub: Hub, prefix: str, method: str) -> None:
    repo = hub.index().repos[REPO]
    entry = hub.manifest(repo.revisions[repo.refs["main"]].manifest).files[INIT]
    answer = server.ask(f"{prefix}/{REPO}/resolve/{repo.refs['main']}/{INIT}", method=method)
    assert answer.status == 200
    assert answer.headers["etag"] == etag_of(entry)
    assert answer.headers["x-repo-commit"] == repo.refs["main"]
    assert answer.headers["content-length"] == str(entry.size)
    assert method == "HEAD" or hashlib.sha256(answer.body).hexdigest() == entry.sha256


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"/{REPO}/resolve/main/kernel-status.toml", "EntryNotFound"),
        (f"/kernels/{REPO}/resolve/main/kernel-status.toml", "EntryNotFound"),
        (f"/{REPO}/resolve/main/build", "EntryNotFound"),
        (f"/{REPO}/resolve/nope/README.md", "RevisionNotFound"),
        (f"/{REPO}/resolve/{'0' * 40}/README.md", "RevisionNotFound"),
        ("/no/such/resolve/main/README.md", "RepoNotFound"),
        ("/api/models/no/such", "RepoNotFound"),
        ("/api/kernels/no/such/refs", "RepoNotFound"),
        (f"/api/kernels/{REPO}/tree/nope", "RevisionNotFound"),
        (f"/api/kernels/{REPO}/tree/main/nope", "EntryNotFound"),
        ("/api/organizations/nobody/overview", "RepoNotFound"),
        ("/no/such", None),
    ],
)
def test_what_is_missing_is_named(server: Server, path: str, code: str | None) -> None:
    answer = server.ask(path, method="GET")
    assert (answer.status, answer.headers.get("x-error-code")) == (404, code)


def test_an_organisation_of_this_hub_is_trusted(server: Server) -> None:
    value = json.loads(server.ask("/api/organizations/kernels-community/overview").body)
    assert value["trustedKernelPublisher"] is True


def test_listing(server: Server) -> None:
    every = json.loads(server.ask("/api/models").body)
    assert REPO in {row["id"] for row in every}
    assert server.ask("/api/kernels?search=x").body == server.ask("/api/models").body


class Links(HTMLParser):
    """The anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(dict(attrs))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "text/html"),
        ("*/*", "text/html"),
        ("text/html", "text/html"),
        (PIP, JSON_TYPE),
        (UV, JSON_TYPE),
        (HTML_TYPE, "text/html"),
    ],
)
@pytest.mark.parametrize("path", ["/simple/", f"/simple/{PROJECT}/"])
def test_the_form_is_negotiated(server: Server, accept: str | None, expected: str, path: str) -> None:
    answer = server.ask(path, headers={"Accept": accept} if accept else {})
    assert answer.headers["content-type"].split(";")[0] == expected
    assert "Accept" in answer.headers["vary"]


@pytest.mark.parametrize("path", ["/simple/", "/simple/sm121/", f"/simple/{PROJECT}/", f"/simple/sm121/{PROJECT}/"])
def test_pips_pages_have_the_icon_of_the_others(server: Server, path: str) -> None:
    icon = re.search(r'<link rel=icon href="([^"]+)" type="image/svg\+xml">', server.ask(path).text)
    assert icon is not None
    url = urlsplit(urljoin(server.url + path, icon[1]))
    assert server.ask(f"{url.path}?{url.query}").text.startswith("<svg")


def test_project_as_html(server: Server, hub: Hub) -> None:
    page = f"{server.url}/simple/{PROJECT}/"
    wheels = dict(hub.index().wheels)
    for link in Links(server.ask(f"/simple/{PROJECT}/").text).found:
        url = urlsplit(urljoin(page, link["href"]))
        wheel = wheels.pop(unquote(url.path.rsplit("/", 1)[1]))
        assert url.fragment == f"sha256={wheel.sha256}"
        assert hashlib.sha256(server.ask(url.path).body).hexdigest() == wheel.sha256
        metadata = server.ask(f"{url.path}.metadata")
        digest = f"sha256={hashlib.sha256(metadata.body).hexdigest()}"
        assert link["data-core-metadata"] == link["data-dist-info-metadata"] == digest
        assert link["data-requires-python"] == ">=3.10"
        assert metadata.text.startswith("Metadata-Version: ")
    assert not wheels


def test_project_as_json(server: Server, hub: Hub) -> None:
    value = json.loads(server.ask(f"/simple/{PROJECT}/", headers={"Accept": JSON_TYPE}).body)
    wheels = hub.index().wheels
    assert value["meta"] == {"api-version": "1.1"}
    assert value["name"] == PROJECT
    assert set(value["versions"]) == {wheel.version for wheel in wheels.values()}
    assert {row["filename"] for row in value["files"]} == set(wheels)
    for row in value["files"]:
        wheel = wheels[row["filename"]]
        assert row["hashes"] == {"sha256": wheel.sha256}
        assert (row["size"], row["requires-python"]) == (wheel.size, ">=3.10")
        assert row["core-metadata"] == {"sha256": wheel.metadata_sha256}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["upload-time"])


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/simple", "/simple/"),
        ("/simple/flash_attn3_sm121", "/simple/flash_attn3_sm121/"),
        (f"/simple/{PROJECT}", f"/simple/{PROJECT}/"),
    ],
)
def test_other_spellings_lead_to_the_one(server: Server, path: str, location: str) -> None:
    answer = server.ask(path)
    assert answer.status == 301
    assert urljoin(path, answer.headers["location"]) == location


@pytest.mark.parametrize(
    "path", ["/simple/torch/", "/files/torch.whl", "/files/", "/files/.metadata", "/-/../hub.json"]
)
def test_other_names_are_not_there(server: Server, path: str) -> None:
    assert server.ask(path).status == 404


def test_a_new_generation_is_seen_without_a_restart(own_hub: Hub) -> None:
    with running(own_hub.layout.root) as server:
        assert server.ask("/some/new/resolve/main/README.md").status == 404
        first = add_repo(own_hub, "some/new", {"README.md": b"one\n"})
        assert server.ask("/some/new/resolve/main/README.md").body == b"one\n"
        add_repo(own_hub, "some/new", {"README.md": b"two\n"})
        assert server.ask("/some/new/resolve/main/README.md").body == b"two\n"
        assert server.ask(f"/some/new/resolve/{first}/README.md").body == b"one\n"
        own_hub.layout.current.write_text("999\n", encoding="ascii")
        assert server.ask("/some/new/resolve/main/README.md").body == b"two\n"
        health = server.ask("/healthz")
        assert (health.status, json.loads(health.body)["status"]) == (503, "stale")
    assert "the old one is still served" in server.log
