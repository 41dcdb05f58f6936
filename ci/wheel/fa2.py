"""The second wheel: FlashAttention-2's names over the first one. Pure Python, the same bytes each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ci import ROOT
from ci.wheel import metadata
from ci.wheel.wheel import PACKAGE, WheelName, license_files
from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.fa2 import names

_README = f"""# flash_attn, served by {PACKAGE}

Not FlashAttention-2: its names (`flash_attn`, `flash_attn_2_cuda`) and its meaning over {PACKAGE}, for programs
that know no other. Dropout and ALiBi are refused. It must not be installed beside a flash_attn of somebody else's.
"""


def wheel_name() -> WheelName:
    """flash_attn in the version whose interface this is; programs compare it, so it has no local part."""
    return WheelName(project=names.PACKAGE, version=names.VERSION, platform_tag="any")


def wheel_files(name: WheelName, root: Path = ROOT) -> dict[str, bytes]:
    """Every file of the wheel but RECORD: the thin modules as they lie in the package, and metadata of its own."""
    folder = root / PACKAGE / names.FOLDER.relative_to(names.FOLDER.parents[1])
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.py"))}
    licenses = license_files((), root)
    project = replace(
        metadata.read_project(root),
        name=name.project,
        summary=f"FlashAttention-2's names, served by {PACKAGE}",
        readme=_README,
        dependencies=(f"{PACKAGE}=={__version__}",),
        extras={},
    )
    info = name.dist_info
    described = metadata.metadata(project, version=name.version, licenses=tuple(sorted(licenses)))
    tops = sorted({path.split("/")[0].removesuffix(".py") for path in files})
    files |= {f"{info}/licenses/{inner}": data for inner, data in licenses.items()}
    files[f"{info}/METADATA"] = described.encode()
    files[f"{info}/WHEEL"] = metadata.wheel_file(tag=name.tag, pure=True).encode()
    files[f"{info}/top_level.txt"] = "".join(f"{top}\n" for top in tops).encode()
    return files
