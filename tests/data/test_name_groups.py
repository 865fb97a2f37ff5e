"""pytest tests/data/test_name_groups.py: file names that look like several images of each of several things."""

import pytest
import torch

from vismoe.data import Data, ImageSet, find_name_groups, format_name_groups


def a_set(names, classes=2, **options):
    """A set of files `names`: its class is in the first folder; every fifth is in `val`."""

    def images(files):
        labels = torch.tensor([int(file.partition("/")[0]) for file in files])
        return ImageSet(labels, lambda number: None, files=files)

    train = [name for number, name in enumerate(names) if number % 5]
    return Data("set", [str(name) for name in range(classes)], images(train), images(names[::5]), **options)


def of_things(pattern, things=10, each=6):
    """`each` images of each thing, in the classes 0 and 1 by turns."""
    return [
        f"{image % 2}/{pattern.format(thing=thing, image=image)}" for thing in range(things) for image in range(each)
    ]


@pytest.mark.parametrize(
    "pattern",
    [
        "BloodImage_000{thing:02d}-{image}.png",
        "slide{thing}_{image}.jpg",
        "v_g{thing}_c01 {image}.png",
        "{thing}.{image}.tif",
    ],
)
def test_images_of_one_thing_are_pointed_out(pattern):
    """Cells of one photograph, frames of one video: with how many validation images share one with training."""
    found = find_name_groups(a_set(of_things(pattern)))
    assert (found.groups, found.shared, found.evaluated) == (10, 12, 12)
    text = format_name_groups(found)
    name = pattern.format(thing=0, image=1).rpartition(".")[0][:-2]
    assert f"{name}: 6 images" in text
    assert "12 of 12 evaluation images" in text
    assert "--group-column" in text


@pytest.mark.parametrize(
    "names",
    [
        of_things("IMG_{thing}{image}.jpg"),  # one beginning for all
        of_things("{thing}{image}.png"),  # none
        [f"{number % 20}/n0{number % 20}_{number}.jpg" for number in range(200)],  # the name of the class
        [f"{number % 20}/{number % 20}_{number}.jpg" for number in range(200)] + ["3/4_9_1.jpg", "3/4_9_2.jpg"],
        of_things("2020{thing}-{image}.jpg", each=1) * 1,  # a beginning for each image
        of_things("{thing}-{image}.jpg", things=4),  # few things
        of_things("{thing}-{image}.jpg", things=5, each=4) + [f"1/{number}.jpg" for number in range(50)],  # few images
    ],
    ids=["one for all", "none", "classes", "nearly classes", "one each", "few things", "few images"],
)
def test_other_names_are_not(names):
    assert find_name_groups(a_set(names, classes=20)) is None


def test_a_column_of_groups_ends_the_search():
    names = of_things("slide{thing}_{image}.jpg")
    assert find_name_groups(a_set(names)) is not None
    assert find_name_groups(a_set(names, group_column="slide")) is None
