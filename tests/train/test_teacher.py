"""The guard against a teacher that shares memory with the student."""

import copy

import pytest
from torch import nn

from eco_fast.errors import UserError
from eco_fast.train.teacher import freeze, refuse_shared_storage


def test_the_student_itself_is_refused() -> None:
    student = nn.Conv2d(3, 3, 3)
    with pytest.raises(UserError, match=r"shares the memory of weight"):
        refuse_shared_storage(student, student)


def test_one_shared_tensor_behind_a_view_is_refused() -> None:
    student, teacher = nn.Linear(4, 4), nn.Linear(4, 4)
    teacher.bias.data = student.weight.data[1]
    with pytest.raises(UserError, match="bias"):
        refuse_shared_storage(teacher, nn.Linear(2, 2), student)


def test_a_copy_is_accepted_and_frozen() -> None:
    student = nn.Conv2d(3, 3, 3)
    teacher = freeze(copy.deepcopy(student))
    refuse_shared_storage(teacher, student)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
