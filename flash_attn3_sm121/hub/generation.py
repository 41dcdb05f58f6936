"""The next generation: numbered, composed, signed, written as a tree, and only then shown.

Everything that it serves beside wheels and repositories' files is composed here, once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest, Revision, WheelEntry
from flash_attn3_sm121.hub.layout import RepoName
from flash_attn3_sm121.hub.site import huggingface, pages, simple, tree
from flash_attn3_sm121.hub.site.address import RESERVED
from flash_attn3_sm121.hub.store import Generation, Hub, Transaction


def commit(txn: Transaction, index: Index) -> Index:
    """Make `index` the next generation, its tree included; the same content as before makes none.

    Args:
        txn: Holds the writers' lock.
        index: What the generation shall hold; its number and its generated files are made here.

    Raises:
        HubError: The hub is signed and there is no key, or a repository has a name that cannot be served.
    """
    hub, numbered = txn.hub, txn.numbered(index)
    if numbered is txn.base:
        tree.heal(hub)
        return txn.base
    index = compose(txn, numbered)
    data = index.to_bytes()
    show(txn, Generation(index=index, data=data, signature=txn.key.sign(data) if txn.key is not None else None))
    return index


def show(txn: Transaction, done: Generation) -> None:
    """Write a generation's tree, make it the current one, and have web servers show it."""
    trees = tree.Trees(root=txn.hub.layout.root)
    tree.write(txn.hub, done, into=trees)
    txn.commit(done)
    trees.swap(done.index.generation)


def upgrade(hub: Hub) -> Index:
    """The current generation, which has a tree afterwards: one that an older version wrote is published again."""
    index = hub.index()
    if index.site:
        tree.heal(hub)
        return index
    with hub.transaction(unsigned=True) as txn:
        return commit(txn, txn.base)


def compose(txn: Transaction, index: Index) -> Index:
    """An index with its generated files, by their path in the tree; the content goes into the hub as objects."""
    for name in index.repos:
        if RepoName.parse(name).org in RESERVED:
            raise HubError(f"{name} can't be published: that folder is the hub's own", hint="choose another name")
    site = {path: _add(txn, value) for path, value in _of_the_hub(index)}
    for name, repo in sorted(index.repos.items()):
        site[f"api/models/{name}/refs/index.json"] = _add(txn, huggingface.refs(repo))
        revisions = {sha: _listed(txn, index, name, sha) for sha in repo.revisions}
        index = index.with_repo(name, replace(repo, revisions=revisions))
        for revision in revisions.values():
            for sha256 in (revision.manifest, revision.listing):
                path = f"hub/manifests/{sha256}.json"
                site[path] = txn.base.site.get(path) or txn.hub.manifest_entry(sha256)
        head = repo.refs.get("main")
        if head is not None:
            listing, held = (txn.hub.manifest(sha256) for sha256 in (revisions[head].listing, revisions[head].manifest))
            site[f"api/models/{name}/index.json"] = listing.files[f"api/models/{name}/revision/{head}/index.json"]
            card = txn.hub.read(held.files["README.md"]).decode()
            site[f"{name}/index.html"] = _add(txn, pages.repository(index, name, held, card))
    return replace(index, site=site)


def _listed(txn: Transaction, index: Index, name: str, sha: str) -> Revision:
    """A revision with the list of its generated files: they are composed when it comes in, and stay."""
    revision = index.repos[name].revisions[sha]
    if revision.listing:
        return revision
    manifest = txn.hub.manifest(revision.manifest)
    files = {path: _add(txn, value) for path, value in _of_a_revision(index, name, sha, manifest)}
    return replace(revision, listing=txn.add_bytes(replace(manifest, files=files).to_bytes()).sha256)


def _of_a_revision(index: Index, name: str, sha: str, manifest: Manifest) -> Iterator[tuple[str, Any]]:
    yield f"api/models/{name}/revision/{sha}/index.json", huggingface.info(name, index.repos[name], sha, manifest)
    for folder, rows in huggingface.listings(manifest):
        yield f"api/models/{name}/tree/{sha}/{folder + '/' if folder else ''}index.json", rows


def _of_the_hub(index: Index) -> Iterator[tuple[str, Any]]:
    yield "healthz", {"status": "ok", "generation": index.generation}
    for folder, offered in simple.indexes(index).items():
        yield from _pip_index(folder, simple.projects(offered))
    for org in sorted({name.partition("/")[0] for name in index.repos}):
        yield f"api/organizations/{org}/overview/index.json", huggingface.organization(index, org)
    names = [{"id": name, "tags": [huggingface.LIBRARY, repo.flavour]} for name, repo in sorted(index.repos.items())]
    yield "api/models/index.json", names
    yield from pages.of_the_hub(index)


def _pip_index(folder: str, found: Mapping[str, Mapping[str, WheelEntry]]) -> Iterator[tuple[str, Any]]:
    up = "../" * (folder.count("/") + 1)
    yield f"{folder}/index.html", simple.list_html(sorted(found), up=up)
    yield f"{folder}/index.json", simple.list_json(sorted(found))
    for project, wheels in found.items():
        # People and old tools also type the name as it is spelled.
        for spelling in {project, *(wheel.name for wheel in wheels.values())}:
            yield f"{folder}/{spelling}/index.html", simple.project_html(project, wheels, up=f"{up}../")
            yield f"{folder}/{spelling}/index.json", simple.project_json(project, wheels, up=f"{up}../")


def _add(txn: Transaction, value: Any) -> FileEntry:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n"
    return txn.add_bytes(text.encode())
