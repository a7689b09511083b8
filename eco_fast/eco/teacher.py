"""The teacher must be frozen and independent of the student: a shared one can collapse to black images."""

from torch import nn

from eco_fast.errors import UserError


def freeze(teacher: nn.Module) -> nn.Module:
    """Put a teacher into evaluation mode without gradients, in place, and return it."""
    return teacher.eval().requires_grad_(False)


def refuse_shared_storage(teacher: nn.Module, *others: nn.Module) -> None:
    """Refuse a teacher that shares memory with the student or its EMA.

    A teacher that is the student, its average, or trained beside it chases its own output (Lee & Heo 2024).

    Raises:
        UserError: A parameter or buffer of the teacher lies in the same storage as one of `others`.
    """
    ours = {_storage(tensor): name for name, tensor in teacher.state_dict(keep_vars=True).items() if tensor.numel()}
    for other in others:
        for name, tensor in other.state_dict(keep_vars=True).items():
            if tensor.numel() and _storage(tensor) in ours:
                raise UserError(
                    f"the teacher shares the memory of {ours[_storage(tensor)]} with the student's {name}; "
                    "load the teacher as a network of its own from trained weights"
                )


def _storage(tensor: object) -> int:
    return tensor.untyped_storage().data_ptr()  # type: ignore[attr-defined]
