"""The pages for people: which kernels there are, for which machines, how to get them. Complete without scripts.

This module says what a page shows; the templates in `static/` say how. Everything is escaped by the template engine.
The pages are written when something is published, so they cannot know under which address they are read: commands say
`http://HUB`, and the script puts the true address in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from urllib.parse import quote

from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest, Repo, WheelEntry
from flash_attn3_sm121.hub.site.simple import indexes
from flash_attn3_sm121.hub.site.templates import read, render

PLATFORM_NAMES = {"linux_aarch64": "Linux aarch64", "linux_x86_64": "Linux x86-64", "any": "any machine"}
VERIFY_NAMES = {"pass": "machine code verified", "no-library": "Python only", "unverified": "not verified"}
FAVOURITE = "kernels-community/flash-attn3"  # in the example, where the hub has it
ASSETS = ("hub.css", "hub.js", "icon.svg")


@dataclass(frozen=True, kw_only=True)
class MachineRow:
    """One GPU generation, and what of this hub runs on it."""

    devices: str
    capability: str
    native: tuple[str, ...]  # platform and machine code
    other_host: tuple[str, ...]  # code for the GPU, in a wheel for a CPU that it is never found beside


@dataclass(frozen=True, kw_only=True)
class WheelCard:
    """One wheel."""

    filename: str
    url: str
    index: str  # the folder of the pip index that offers it; empty where none does
    platform: str
    machines: tuple[str, ...]
    verdict: str
    entry: WheelEntry

    @property
    def requirement(self) -> str:
        """For a requirements file, in pip's own form: the hash on a line of its own."""
        # `==3.0.0` means 3.0.0+local too, which uv then takes, and misses the hash; `===` means the very text.
        equals = "==" if "+" in self.entry.version else "==="
        return f"{self.entry.name}{equals}{self.entry.version} \\\n    --hash=sha256:{self.entry.sha256}"


def machine_rows(index: Index) -> list[MachineRow]:
    """The arch table as this hub can serve it; what has kernels here comes first."""
    rows = []
    for row in CAPABILITIES.values():
        native: set[str] = set()
        other: set[str] = set()
        for wheel in index.wheels.values():
            code = wheel.code_for(row)
            if code is not None:
                platform = PLATFORM_NAMES.get(wheel.platform, wheel.platform)
                (native if wheel.platform in row.hosts else other).add(f"{platform}, {code}")
        rows.append(
            MachineRow(
                devices=row.devices,
                capability=row.name,
                native=tuple(sorted(native)),
                other_host=() if native else tuple(sorted(other)),
            )
        )
    return sorted(rows, key=lambda row: (not row.native, not row.other_host))


def wheel_cards(index: Index) -> list[WheelCard]:
    """The wheels, the one that came last first."""
    offers = indexes(index)
    cards = []
    for name, entry in sorted(index.wheels.items(), key=lambda item: (-item[1].added, item[0])):
        native = tuple(
            f"{row.devices} ({row.name})"
            for row in CAPABILITIES.values()
            if entry.code_for(row) and entry.platform in row.hosts
        )
        cards.append(
            WheelCard(
                filename=name,
                url=f"files/{quote(name)}",
                index=next((folder for folder, offered in offers.items() if name in offered), ""),
                platform=PLATFORM_NAMES.get(entry.platform, entry.platform),
                machines=native,
                verdict=VERIFY_NAMES.get(entry.verify, f"not verified: {entry.verify}"),
                entry=entry,
            )
        )
    return cards


def newest(cards: list[WheelCard]) -> list[WheelCard]:
    """The last wheel of each platform for all GPUs: all that the first page shows, however long the history is."""
    return list({card.platform: card for card in reversed(cards) if card.index == "simple"}.values())[::-1]


def repo_groups(index: Index) -> list[tuple[tuple[str, ...], Repo, str]]:
    """The repositories, those of the same content in one group, and the platforms that their `main` has kernels for."""
    groups: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for name, repo in sorted(index.repos.items()):
        wheels = repo.revisions[repo.refs["main"]].wheels if "main" in repo.refs else ()
        groups.setdefault((repo.flavour, wheels, tuple(sorted(set(repo.refs)))), []).append(name)
    found = []
    for (_, wheels, _), names in groups.items():
        native = {index.wheels[wheel].platform for wheel in wheels if wheel in index.wheels} - {"any"}
        platforms = ", ".join(sorted(PLATFORM_NAMES.get(name, name) for name in native))
        found.append((tuple(names), index.repos[names[0]], platforms))
    return found


def _folder_of(path: str) -> str:
    """`build/<variant>` for what lies in a variant, "" for what lies outside of them."""
    parts = path.split("/", 2)
    return "/".join(parts[:2]) if len(parts) == 3 and parts[0] == "build" else ""


def _folders(manifest: Manifest) -> list[tuple[str, list[tuple[str, FileEntry]]]]:
    """The files by variant. Those outside of variants come first."""
    rows = sorted(manifest.files.items(), key=lambda row: (_folder_of(row[0]), row[0]))
    return [(folder, list(group)) for folder, group in groupby(rows, key=lambda row: _folder_of(row[0]))]


def card_html(text: str) -> str:
    """A repository's README.md as HTML; HTML inside of it stays text."""
    from markdown_it import MarkdownIt

    body = text.split("---\n", 2)[2] if text.startswith("---\n") and text.count("---\n") > 1 else text
    return str(MarkdownIt("commonmark", {"html": False}).enable("table").render(body))


def of_the_hub(index: Index) -> Iterator[tuple[str, str]]:
    """(path, text) of the pages that belong to no repository, and of their assets."""
    cards = wheel_cards(index)
    shown, repos = newest(cards), index.repos
    yield (
        "index.html",
        render(
            "page.html",
            root="",
            index=index,
            total=sum(wheel.size for wheel in index.wheels.values()),
            example=FAVOURITE if FAVOURITE in repos else next(iter(sorted(repos)), None),
            machines=machine_rows(index),
            repos=repo_groups(index),
            wheels=shown,
            older=len(cards) - len(shown),
        ),
    )
    yield "history.html", render("history.html", root="", index=index, wheels=cards)
    yield "404.html", render("missing.html", root="/")
    for name in ASSETS:
        yield f"-/{name}", read(name)


def repository(index: Index, name: str, manifest: Manifest, card: str) -> str:
    """A repository's own page, under the address where the real hub has one: error messages of clients lead there."""
    repo = index.repos[name]
    sha = repo.refs["main"]
    return render(
        "repo.html",
        root="../../",
        name=name,
        repo=repo,
        sha=sha,
        revision=repo.revisions[sha],
        refs=sorted(ref for ref, at in repo.refs.items() if at == sha),
        history=repo.history[:20],
        manifest=manifest,
        size=sum(entry.size for entry in manifest.files.values()),
        folders=_folders(manifest),
        card=card_html(card),
    )
