"""The page for people: which kernels there are, for which machines, how to get them. Complete without scripts.

This module says what the page shows; `static/page.html` says how. Everything is escaped by the template engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import groupby
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined

from flash_attn3_sm121.arch import CAPABILITIES, Capability, Image
from flash_attn3_sm121.hub.index import FileEntry, Repo, WheelEntry
from flash_attn3_sm121.hub.server.assets import address, read
from flash_attn3_sm121.hub.server.catalog import Catalog

PLATFORM_NAMES = {"linux_aarch64": "Linux aarch64", "linux_x86_64": "Linux x86-64", "any": "any machine"}
FLAVOUR_NAMES = {
    "fa3": "FlashAttention-3's own interface",
    "vllm": "The interface of vLLM's fork: attention sinks, and always (out, lse)",
}
VERIFY_NAMES = {"pass": "machine code verified", "no-library": "Python only", "unverified": "not verified"}
FAVOURITE = "kernels-community/flash-attn3"  # in the example, where the hub has it
UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, kw_only=True)
class PageFacts:
    """What the page says that is not in the hub."""

    base: str  # the server's address as the visitor sees it, without a slash at the end
    token: bool
    stale: bool
    version: str

    @property
    def pip_base(self) -> str:
        scheme, _, rest = self.base.partition("://")
        return f"{scheme}://hub:$HUB_TOKEN@{rest}" if self.token else self.base


@dataclass(frozen=True, kw_only=True)
class MachineRow:
    """One GPU generation, and the wheels that have code for it (platform, image)."""

    devices: str
    capability: str
    native: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RepoCard:
    """Repositories of the same content. `files` is empty where the main revision is damaged."""

    names: tuple[str, ...]
    about: str
    sha: str
    version: str
    created: str
    refs: tuple[str, ...]
    older: tuple[str, ...]
    variants: tuple[str, ...]
    wheels: tuple[str, ...]
    files: tuple[tuple[str, FileEntry], ...]

    @property
    def size(self) -> int:
        return sum(entry.size for _, entry in self.files)


@dataclass(frozen=True, kw_only=True)
class WheelCard:
    """One wheel."""

    filename: str
    url: str
    platform: str
    machines: tuple[str, ...]
    verdict: str
    entry: WheelEntry


def human(size: int) -> str:
    """A size for people, in powers of ten."""
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 or value >= 99.5 else f"{value:.1f} {UNITS[unit]}"


def moment(stamp: str) -> str:
    return stamp.replace("T", " ").removesuffix("Z") + (" UTC" if stamp.endswith("Z") else "")


def serves(wheel: WheelEntry, row: Capability) -> str | None:
    """The code in a wheel that a device of that generation would run, its own first; None where there is none."""
    if str(row.family) not in wheel.families:
        return None
    found = [image for image in map(Image.parse, wheel.images) if image.runs_on(row.major, row.minor)]
    best = max(found, key=lambda image: (image.kind == "sm", image.number), default=None)
    return None if best is None else str(best)


def machine_rows(catalog: Catalog) -> list[MachineRow]:
    """The arch table; what has kernels here comes first."""
    rows = []
    for row in CAPABILITIES.values():
        native = {
            f"{PLATFORM_NAMES.get(wheel.platform, wheel.platform)}, {image}"
            for wheel in catalog.index.wheels.values()
            if (image := serves(wheel, row)) is not None
        }
        rows.append(MachineRow(devices=row.devices, capability=row.name, native=tuple(sorted(native))))
    return sorted(rows, key=lambda row: not row.native)


def _repo_card(catalog: Catalog, names: tuple[str, ...], repo: Repo) -> RepoCard:
    found = catalog.manifest(repo, "main")
    sha, manifest = found if found is not None else (repo.refs.get("main", ""), None)
    revision = repo.revisions.get(sha)
    files = sorted(manifest.files.items()) if manifest else []
    return RepoCard(
        names=names,
        about=FLAVOUR_NAMES.get(repo.flavour, repo.flavour),
        sha=sha,
        version=revision.version if revision else "",
        created=revision.created if revision else "",
        refs=tuple(sorted(ref for ref, at in repo.refs.items() if at == sha)),
        older=_older(repo, sha),
        variants=manifest.variants if manifest else (),
        wheels=revision.wheels if revision else (),
        files=tuple(files),
    )


def _older(repo: Repo, current: str) -> tuple[str, ...]:
    """Revisions beside the current one, newest first."""
    others = ((entry.created, sha) for sha, entry in repo.revisions.items() if sha != current)
    return tuple(sha for _, sha in sorted(others, reverse=True))


def repo_cards(catalog: Catalog) -> list[RepoCard]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, repo in sorted(catalog.index.repos.items()):
        groups.setdefault((repo.flavour, *sorted(repo.refs.items())), []).append(name)
    return [_repo_card(catalog, tuple(names), catalog.index.repos[names[0]]) for names in groups.values()]


def wheel_cards(catalog: Catalog) -> list[WheelCard]:
    """Newest version first."""
    names = [name for project in catalog.projects.values() for name in reversed(project)]
    cards = []
    for name in names:
        entry = catalog.index.wheels[name]
        native = tuple(f"{row.devices} ({row.name})" for row in CAPABILITIES.values() if serves(entry, row))
        cards.append(
            WheelCard(
                filename=name,
                url=f"files/{quote(name)}",
                platform=PLATFORM_NAMES.get(entry.platform, entry.platform),
                machines=native,
                verdict=VERIFY_NAMES.get(entry.verify, f"not verified: {entry.verify}"),
                entry=entry,
            )
        )
    return cards


def folder_of(path: str) -> str:
    """`build/<variant>` for what lies in a variant, "" for what lies outside of them."""
    parts = path.split("/", 2)
    return "/".join(parts[:2]) if len(parts) == 3 and parts[0] == "build" else ""


def folders(card: RepoCard) -> list[tuple[str, list[tuple[str, FileEntry]]]]:
    """The files by variant; what lies outside of them first."""
    rows = sorted(card.files, key=lambda row: (folder_of(row[0]), row[0]))
    return [(folder, list(group)) for folder, group in groupby(rows, key=lambda row: folder_of(row[0]))]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        human=human, moment=moment, relative=lambda path, folder: path.removeprefix(f"{folder}/" if folder else "")
    )
    environment.globals.update(address=address)
    return environment


def render(catalog: Catalog, facts: PageFacts) -> str:
    """The first page."""
    repos = catalog.index.repos
    return (
        _environment()
        .get_template("page.html")
        .render(
            root="",
            facts=facts,
            index=catalog.index,
            total=sum(wheel.size for wheel in catalog.index.wheels.values()),
            example=FAVOURITE if FAVOURITE in repos else next(iter(sorted(repos)), None),
            machines=machine_rows(catalog),
            repos=repo_cards(catalog),
            wheels=wheel_cards(catalog),
        )
    )


def render_repo(catalog: Catalog, name: str, facts: PageFacts, *, root: str) -> str:
    """A repository's own page; `root` leads from its address back to the hub's."""
    card = _repo_card(catalog, (name,), catalog.index.repos[name])
    template = _environment().get_template("repo.html")
    return template.render(root=root, facts=facts, name=name, repo=card, folders=folders(card))
