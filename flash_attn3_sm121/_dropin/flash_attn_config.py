"""The drop-in for upstream's `flash_attn_config`: what its build left out. Here nothing is: the fallback serves it."""

from pprint import pprint

_FEATURES = (
    "BACKWARD",
    "SPLIT",
    "PAGEDKV",
    "APPENDKV",
    "LOCAL",
    "SOFTCAP",
    "PACKGQA",
    "FP16",
    "FP8",
    "VARLEN",
    "CLUSTER",
    "HDIM64",
    "HDIM96",
    "HDIM128",
    "HDIM192",
    "HDIM256",
    "SM8x",
)

CONFIG: dict[str, dict[str, bool]] = {
    "build_flags": {
        **{f"FLASHATTENTION_DISABLE_{name}": False for name in _FEATURES},
        "FLASHATTENTION_ENABLE_VCOLMAJOR": False,
        "FLASH_ATTENTION_DISABLE_HDIMDIFF64": False,  # upstream spells these two like that
        "FLASH_ATTENTION_DISABLE_HDIMDIFF192": False,
    }
}


def show() -> None:
    pprint(CONFIG)
