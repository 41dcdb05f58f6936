"""What every test may use: golden files that are compared, or rewritten with --update-goldens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.wheels import smoke_wheel as smoke_wheel

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.workers import FileScheduling

# A machine may be slow or busy: no example is held against a clock.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens", action="store_true", help="rewrite the golden files with what the code says now"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    from tests.workers import FileScheduling

    return FileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of xdist's processes
        from tests.workers import long_first

        items[:] = long_first(items)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` compares `text` with goldens/<name> beside the test, or rewrites that file."""

    def compare(name: str, text: str) -> None:
        path = Path(request.path).parent / "goldens" / name
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.is_file(), f"{path} is missing: run pytest --update-goldens and read what it wrote"
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium, for one file of tests: it may not live beside a test that calls `asyncio.run`."""
    pytest.importorskip("playwright")
    from tests import browser as chromium

    if chromium.find() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with chromium.launched() as started:
        yield started
