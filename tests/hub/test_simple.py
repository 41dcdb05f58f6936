"""Which wheels each pip index offers: for all GPUs the fattest of a build, for one GPU the slimmest that it can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flash_attn3_sm121.hub.index import Index, WheelEntry
from flash_attn3_sm121.hub.site import pages
from flash_attn3_sm121.hub.site.simple import indexes

SLIM, HOPPER, FAT = "g3effce8.120.121.full", "g3effce8.90.full", "g3effce8.90.120.121.full"
IMAGES = {"sm8x": ("sm_120", "sm_121"), "sm90": ("sm_90a",)}


def entry(local: str, families: Sequence[str], **changes: str) -> WheelEntry:
    fields = {
        "platform": "linux_aarch64",
        "profile": "full",
        "upstream": "3effce8",
        "name": "flash_attn3_sm121",
    } | changes
    return WheelEntry(
        sha256="0" * 64, size=1, metadata_sha256="0" * 64, metadata_size=1, version=f"3.0.0.post1+{local}",
        requires_python="", families=tuple(families), images=sum((IMAGES[family] for family in families), ()),
        cuda="13.0", verify="pass", checks=(), published="", added=1, **fields,
    )  # fmt: skip


def offered(**wheels: WheelEntry) -> Mapping[str, set[str]]:
    return {
        folder: set(found)
        for folder, found in indexes(Index(wheels={f"{k}.whl": v for k, v in wheels.items()})).items()
    }


def test_a_release_of_slim_wheels_and_a_fat_one() -> None:
    found = offered(slim=entry(SLIM, ["sm8x"]), hopper=entry(HOPPER, ["sm90"]), fat=entry(FAT, ["sm8x", "sm90"]))
    assert found == {
        "simple": {"fat.whl"},
        "simple/sm90": {"hopper.whl"},
        "simple/sm120": {"slim.whl"},
        "simple/sm121": {"slim.whl"},
    }


def test_the_page_shows_what_is_for_all_gpus_and_says_where_the_others_are() -> None:
    wheels = {
        "slim.whl": entry(SLIM, ["sm8x"]),
        "hopper.whl": entry(HOPPER, ["sm90"]),
        "fat.whl": entry(FAT, ["sm8x", "sm90"]),
    }
    wheels["fatter.whl"] = replace(wheels["fat.whl"], images=(*wheels["fat.whl"].images, "sm_103"))
    cards = pages.wheel_cards(Index(wheels=wheels))
    assert {card.filename: card.index for card in cards} == {
        "slim.whl": "simple/sm120",
        "hopper.whl": "simple/sm90",
        "fat.whl": "",
        "fatter.whl": "simple",
    }
    assert [card.filename for card in pages.newest(cards)] == ["fatter.whl"]


def test_slim_wheels_alone_and_a_fat_one_alone_are_offered() -> None:
    slim = offered(slim=entry(SLIM, ["sm8x"]), hopper=entry(HOPPER, ["sm90"]))
    assert slim["simple"] == {"slim.whl", "hopper.whl"} and slim["simple/sm90"] == {"hopper.whl"}
    assert offered(fat=entry(FAT, ["sm8x", "sm90"]))["simple/sm121"] == {"fat.whl"}


def test_wheels_of_another_platform_pin_or_profile_hide_nothing() -> None:
    fat = entry(FAT, ["sm8x", "sm90"])
    for change in ({"platform": "linux_x86_64"}, {"upstream": "0251105"}, {"profile": "smoke"}):
        found = offered(slim=entry(SLIM, ["sm8x"], **change), fat=fat)
        assert found["simple"] == found["simple/sm121"] == {"slim.whl", "fat.whl"}


def test_a_wheel_without_kernels_is_in_every_index() -> None:
    fa2 = entry("fa2", [], name="flash_attn", platform="any")
    found = offered(fa2=fa2, slim=entry(SLIM, ["sm8x"]))
    assert all("fa2.whl" in names for names in found.values()) and "simple/sm90" not in found
