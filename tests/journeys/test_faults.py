"""A night that was disturbed costs nothing but time: see ``tests.faults``.

``make faults`` tries many more, and kills workers and servers of Prefect as well.
"""

from collections.abc import Iterator

import pytest

from tests import object_store
from tests.faults import FAULTS, Nights, can_mount


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return Nights(tmp_path_factory.mktemp("nights"))


@pytest.fixture(scope="module")
def nights_at_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    with object_store.serving() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in object_store.environment(server).items():
            patch.setenv(name, value)
        patch.setenv("TL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Nights(tmp_path_factory.mktemp("nights"), server)


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("killed", 1),
        ("stage raises", 1),
        ("file too large", 1),
        ("disk full", 1),
        ("store read-only", 1),
        ("images changed meanwhile", 1),
        ("clock set back", 1),
    ],
)
def test_the_night_after_a_fault_is_as_if_there_had_been_none(
    name: str, seed: int, nights: Nights
):
    if FAULTS[name].needs_mount and not can_mount():
        pytest.skip("only root may mount a file system")
    nights.try_out(name, seed)


def test_the_night_after_the_object_store_was_restarted(nights_at_url: Nights):
    nights_at_url.try_out("object store restarted", 1)
