"""The next generation: numbered, composed, signed, written as a tree, and only then shown."""

from __future__ import annotations

from dataclasses import replace

from flash_attn3_sm121.hub.index import Index
from flash_attn3_sm121.hub.site import tree
from flash_attn3_sm121.hub.site.compose import compose
from flash_attn3_sm121.hub.store import Hub, Transaction


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
    done = replace(numbered, site=compose(txn, numbered))
    data = done.to_bytes()
    signature = txn.key.sign(data) if txn.key is not None else None
    trees = tree.Trees(root=hub.layout.root)
    tree.write(hub, done, data, signature, into=trees)
    txn.commit(done, data, signature)
    trees.swap(done.generation)
    return done


def upgrade(hub: Hub) -> Index:
    """The current generation with a tree; one that an older version wrote, or none at all, is written as the next."""
    index = hub.index()
    if index.site:
        tree.heal(hub)
        return index
    with hub.transaction(unsigned=True) as txn:
        return commit(txn, txn.base)
