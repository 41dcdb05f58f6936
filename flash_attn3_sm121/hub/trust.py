"""What this machine believes of a hub: the trusted keys, and the newest generation that it has seen.

A signature says who published, not that nothing newer was published since. So the highest generation of each hub that
was accepted here is remembered, and an older one is refused afterwards. `hub rollback` makes a new generation.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.files import put_file
from flash_attn3_sm121.hub.index import Index
from flash_attn3_sm121.hub.sign import TrustedKeys
from flash_attn3_sm121.hub.store import Generation, Hub


def cache_root() -> Path:
    """The folder of checkouts and of the generations seen: FA3_CACHE, else below the user's cache folder."""
    if os.environ.get("FA3_CACHE"):
        return Path(os.environ["FA3_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flash-attn3-sm121"


def trusted(hub: Hub) -> Generation:
    """The current generation; where FLASH_ATTN3_TRUSTED_KEYS is set, signed by one of them and not older than seen."""
    keys = TrustedKeys.from_env()
    found = hub.trusted(keys)
    if keys is not None:
        remember(str(hub.layout.root), found.index)
    return found


def remember(place: str, index: Index) -> None:
    """Refuse a generation older than one that was accepted from the same place; else write it down.

    Args:
        place: The hub's folder or address.
        index: A generation whose signature was found right.
    """
    file = cache_root() / "generations-seen.json"
    seen = _read(file)
    hub, generation = seen.get(place, (index.hub, 0))
    if hub != index.hub or generation > index.generation:
        other = "of another hub" if hub != index.hub else f"older than {generation}, which was here"
        raise IntegrityError(
            f"generation {index.generation} of {place} is {other}: somebody put old files back",
            hint=f"if that was you, take {place} out of {file}",
        )
    if seen.get(place) == (index.hub, index.generation):
        return
    try:
        put_file(file, json.dumps({**seen, place: [index.hub, index.generation]}, indent=1) + "\n")
    except OSError as error:
        raise HubError(f"cannot write {file}: {error.strerror}", hint="set FA3_CACHE to a folder of yours") from error


def _read(file: Path) -> dict[str, tuple[str, int]]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return {str(place): (str(hub), int(generation)) for place, (hub, generation) in value.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{file} cannot be read ({error})", hint=f"rm {file}") from error
