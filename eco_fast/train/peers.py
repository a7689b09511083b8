"""The machines of a run: which of them see the same folder, and in what they differ though they must not."""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

from eco_fast.files import writing
from eco_fast.train.world import World

Facts = Mapping[str, str | int]
"""Something that is true of a process, by what it is: "number of training images", 800."""


def first_to_see(folder: Path, world: World) -> list[int]:
    """For each process the first one that sees the same folder, which may lie on a disk of its own or be shared.

    Each leaves a file of a name that nobody else has, and looks for those of the others. They are gone afterwards.

    Raises:
        UserError: The folder cannot be written, on some machine.
    """
    probe = folder / f".probe-{uuid4().hex}"
    try:
        with world.agree(), writing(probe, "choose another folder with --set data.store=DIR"):
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
        names = world.gather(probe.name)
        # Files are asked for one by one: a shared file system may list a folder as it was some seconds ago.
        seen = (rank for rank, name in enumerate(names) if (folder / name).exists())
        return world.gather(next(seen, world.rank))
    finally:
        probe.unlink(missing_ok=True)


def say_who_prepares(folder: Path, firsts: list[int], world: World) -> str:
    """One line on what `first_to_see` has found."""
    machines = world.machines
    preparing = list(dict.fromkeys(world.places[first] for first in firsts))
    if len(preparing) == 1:
        return f"{len(machines)} machines share the store in {folder}"
    if preparing == machines:
        return f"{len(machines)} machines; each prepares its own store"
    return f"{len(machines)} machines; the store is prepared on {', '.join(preparing)}"


def differences(facts: Facts, world: World) -> list[str]:
    """A line for everything in which a machine differs from that of the first process; the same lines on all."""
    everyone = world.gather(dict(facts))
    lines = [
        f"{world.places[rank]} differs from {world.places[0]} in {what}: {theirs.get(what)}, not {value}"
        for rank, theirs in enumerate(everyone)
        for what, value in everyone[0].items()
        if theirs.get(what) != value
    ]
    return list(dict.fromkeys(lines))  # processes of one machine say the same


def refuse_differences(facts: Facts, world: World, hint: str) -> None:
    """End the run on all processes where one of them differs from the first.

    Raises:
        UserError: One does; the line names its machine, and says in what.
    """
    for line in differences(facts, world):
        raise world.fault(f"{line}; {hint}")


def digest(values: Iterable[object]) -> str:
    """A short hash of values in their order."""
    found = blake2b(digest_size=6)
    for value in values:
        found.update(f"{value!r}\n".encode())
    return found.hexdigest()
