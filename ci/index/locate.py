"""Where a file of a known name lies: find-links folders and pages, then each index's page of the project."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from ci.index.config import IndexConfig
from ci.index.http import is_local, open_url, shown
from flash_attn3_sm121.errors import FetchError

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One file of a project, pinned by its content."""

    project: str
    filename: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """A place that offers the file; `sha256` is what the place says about it, if it says anything."""

    url: str
    sha256: str | None


def candidates(wanted: Wanted, config: IndexConfig, refusals: list[str]) -> Iterator[Link]:
    """Every place that offers a file of that name and does not announce another hash; refusals say why others fell."""
    places = [(place, place) for place in config.find_links]
    name = re.sub(r"[-_.]+", "-", wanted.project).lower()
    places += [(f"{url.rstrip('/')}/{name}/", url) for url in config.index_urls]
    if not places:
        refusals.append("no package index is configured (no-index is set)")
    for place, origin in places:
        try:
            links = _links(place, config)
        except FetchError as error:
            refusals.append(str(error))
            continue
        found = [link for link in links if unquote(urlsplit(link.url).path.rpartition("/")[2]) == wanted.filename]
        if not found:
            refusals.append(f"{shown(origin)}: offers no {wanted.filename}")
        for link in found:
            if link.sha256 not in (None, wanted.sha256):
                refusals.append(f"{shown(link.url)}: offers sha256 {link.sha256}, pinned is {wanted.sha256}")
            else:
                yield link


def _links(place: str, config: IndexConfig) -> list[Link]:
    folder = _local_folder(place)
    if folder is not None:
        page = folder / "index.html"
        if not page.is_file():
            return [Link(url=file.absolute().as_uri(), sha256=None) for file in sorted(folder.iterdir())]
        place = page.absolute().as_uri()
    elif is_local(place):
        raise FetchError(f"{place}: no such folder")
    with open_url(place, config, accept=ACCEPT) as answer:
        headers = getattr(answer, "headers", {})
        final = getattr(answer, "url", place)
        body = answer.read()
    links = parse_page(body, content_type=headers.get("Content-Type", "text/html"), base=final)
    return [Link(url=_with_credentials(link.url, place), sha256=link.sha256) for link in links]


def _with_credentials(url: str, index: str) -> str:
    """An index's credentials, as given in its address, are for its own files as well, and for no other host."""
    ours, theirs = urlsplit(index), urlsplit(url)
    user, at, host = ours.netloc.rpartition("@")
    if not at or (theirs.scheme, theirs.netloc) != (ours.scheme, host):
        return url
    return urlunsplit(theirs._replace(netloc=f"{user}@{host}"))


def _local_folder(place: str) -> Path | None:
    parts = urlsplit(place)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(unquote(parts.path) if parts.scheme else place).expanduser()
    return path if path.is_dir() else None


def parse_page(body: bytes, *, content_type: str, base: str) -> list[Link]:
    """The links of a project page, in the JSON or the HTML form of the simple API."""
    if "json" in content_type:
        try:
            files = json.loads(body)["files"]
            return [Link(url=urljoin(base, f["url"]), sha256=f.get("hashes", {}).get("sha256")) for f in files]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FetchError(f"{shown(base)}: not a project page of the simple API: {error!r}") from error
    parser = _Anchors()
    parser.feed(body.decode("utf-8", errors="replace"))
    links = []
    for href in parser.hrefs:
        address, _, fragment = urljoin(parser.base or base, href).partition("#")
        algorithm, _, digest = fragment.partition("=")
        links.append(Link(url=address, sha256=digest if algorithm == "sha256" else None))
    return links


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.base: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if href and tag == "a":
            self.hrefs.append(href)
        elif href and tag == "base":
            self.base = href
