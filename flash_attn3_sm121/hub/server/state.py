"""What the handlers share: the shelf (which names there are), the vault (their bytes), the counters."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import web

from flash_attn3_sm121.hub.server.catalog import Catalog, Shelf
from flash_attn3_sm121.hub.server.config import ServeConfig
from flash_attn3_sm121.hub.server.metrics import Metrics
from flash_attn3_sm121.hub.server.vault import Vault


@dataclass(kw_only=True)
class State:
    """One worker's state."""

    config: ServeConfig
    shelf: Shelf
    vault: Vault
    metrics: Metrics
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def audience(self) -> str:
        """For Cache-Control: a shared cache must not hand out what needed a token."""
        return "private" if self.config.token else "public"

    async def catalog(self) -> Catalog:
        """The current generation; read again, once and off the event loop, when somebody has published."""
        if self.shelf.stale():
            async with self._loading:
                if self.shelf.stale():
                    await asyncio.get_running_loop().run_in_executor(None, self.shelf.load)
        return self.shelf.catalog


STATE: web.AppKey[State] = web.AppKey("state", State)
