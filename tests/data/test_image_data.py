"""What a custom data set must define."""

from dataclasses import dataclass

import pytest

from laptime.data.image_data import ImageData, Images

pytestmark = pytest.mark.unit


class Unfinished(ImageData):
    name = "unfinished"
    mean = (0.5,)
    std = (0.25,)
    image_shape = (1, 2, 2)

    def load(self) -> tuple[Images, Images, str]:
        raise NotImplementedError


def test_the_number_of_classes_must_be_defined(make):
    with pytest.raises(TypeError, match=r"^Unfinished\.num_classes: must be set in the class\."):
        make(Unfinished)


def test_the_former_name_of_the_number_of_classes_is_refused(make):
    class Old(Unfinished):
        class_count = 3

    with pytest.raises(
        TypeError, match=r"^Old\.num_classes: must be set in the class \(it was called class_count before\)\."
    ):
        make(Old)


def test_the_number_of_classes_is_a_class_or_instance_attribute(make):
    class OfTheClass(Unfinished):
        num_classes = 3

    @dataclass(kw_only=True)
    class OfTheObject(Unfinished):
        num_classes: int

    assert (make(OfTheClass).num_classes, make(OfTheObject, num_classes=5).num_classes) == (3, 5)
