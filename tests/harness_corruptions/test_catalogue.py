"""All 19 corruptions, in order, with both tables."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from harness_corruptions.catalogue import ALL, COLOURED, EXTRA, NOISES, STANDARD, corruptions, default_table

from harness.randomness import draws_for


def test_the_names_are_those_of_imagenet_c_in_its_order() -> None:
    assert " ".join(STANDARD) == (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog"
        " brightness contrast elastic_transform pixelate jpeg_compression"
    )
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")
    assert tuple(corruptions()) == ALL == (*STANDARD, *EXTRA)
    assert all(one.name == name for name, one in corruptions().items())


def test_groups_are_those_of_the_paper() -> None:
    groups = {name: one.group for name, one in corruptions().items()}
    assert [name for name in ALL if groups[name] == "noise"] == list(NOISES)
    assert [name for name in ALL if groups[name] == "extra"] == list(EXTRA)
    assert Counter(groups[name] for name in STANDARD) == {"noise": 3, "blur": 4, "weather": 4, "digital": 4}
    assert all(corruptions()[name].extra for name in EXTRA)
    assert not any(corruptions()[name].extra for name in STANDARD)


@pytest.mark.parametrize("name", ALL)
def test_each_has_five_severities_of_both_tables_which_differ(name: str) -> None:
    severities = corruptions()[name].severities
    assert severities.keys() == {"imagenet-c", "cifar10-c"}
    assert all(len(table) == 5 for table in severities.values())
    assert severities["imagenet-c"] != severities["cifar10-c"]
    assert len({len(parameters) for table in severities.values() for parameters in table}) == 1


@pytest.mark.parametrize("name", ALL)
def test_draws_that_severities_share_do_not_depend_on_them(name: str) -> None:
    one = corruptions()[name]
    if one.draw is None:
        assert not one.shared_draws
        return
    draws = draws_for(torch.arange(2), 0, "t")
    found = [one.draw(draws, 0, (3, 16, 16), table[s]) for table in one.severities.values() for s in range(5)]
    same = all(
        drawn.keys() == found[0].keys() and all(torch.equal(drawn[key], found[0][key]) for key in drawn)
        for drawn in found
    )
    assert same or not one.shared_draws


def test_what_knows_colours_says_what_it_makes_of_grey() -> None:
    assert all(corruptions()[name].grey for name in COLOURED)


@pytest.mark.parametrize(
    ("size", "table"),
    [((8, 8), "cifar10-c"), ((64, 64), "cifar10-c"), ((64, 65), "imagenet-c"), ((224, 224), "imagenet-c")],
)
def test_small_images_get_the_constants_of_small_images(size: tuple[int, int], table: str) -> None:
    assert default_table(*size) == table
