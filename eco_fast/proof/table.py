"""What the proof shows, a line per check, in order: what is worth most in a short time comes first.

Nothing here imports PyTorch: the supervisor reads this table, a worker calls the functions.
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from eco_fast.errors import UserError

SCRATCH = ".scratch"  # below the folder of a proof, while it runs

_GPU, _CPU, _BOTH = ("cuda",), ("cpu",), ("cuda", "cpu")


class Check(NamedTuple):
    """Something to be shown.

    Args:
        name: What `--only` calls it.
        limit: Seconds after which it is cut off.
        least: Seconds without which it is not begun.
        devices: Where it can be made. On "cpu" measurements are of small problems: they show that everything runs.
        function: `module:function`, called with a `Stage`; modules of `benchmarks/` by their bare names.
        shows: What it is for, in the report.
        arguments: Further ones of the function.
    """

    name: str
    limit: int
    least: int
    devices: tuple[str, ...]
    function: str
    shows: str
    arguments: Mapping[str, object] = MappingProxyType({})


_BASELINE, _TINY, _RCAN = ({"network": name} for name in ("edsr-baseline", "edsr-tiny", "rcan"))

TABLE = (
    Check("machine", 60, 8, _BOTH, "machine:measure", "versions; what copies, products and launches cost here"),
    Check("kernels", 60, 10, _GPU, "kernels:of_training", "the kernels of training against float64"),
    Check("loops", 90, 15, _BOTH, "training:loops", "20 steps of every kind of loop, without a hidden wait on a GPU"),
    Check("step-baseline", 120, 40, _BOTH, "step_contest:contest", "a step of EDSR-baseline x4, batch 16", _BASELINE),
    Check("step-tiny", 80, 35, _BOTH, "step_contest:contest", "a step of edsr-tiny x2, batch 16", _TINY),
    Check("learns", 120, 40, _BOTH, "learns:learns", "vanilla and eco trained to a PSNR on Set5, beside the CPU's"),
    Check("tail", 40, 12, _BOTH, "tail:contest", "the end of a network in three ways"),
    Check("kernel-speed", 70, 20, _BOTH, "kernel_speed:contest", "every kernel against a copy, batch 16 and 1024"),
    Check("switches", 100, 40, _BOTH, "training:switches", "what must not change the weights"),
    Check("step-wide", 90, 35, _BOTH, "step_contest:wide", "EDSR-baseline x4, batch 128, with Adam and LAMB"),
    Check("step-rcan", 70, 25, _BOTH, "step_contest:eager_and_graph", "a step of RCAN x4, batch 16", _RCAN),
    Check("mapped", 50, 20, _BOTH, "step_contest:mapped", "patches cut from files against resident ones"),
    Check(
        "profile", 120, 40, _BOTH, "step_contest:profile", "where the time of a step goes: kernels, launches, idle time"
    ),
    Check("lanes", 90, 25, _GPU, "step_contest:lanes", "how much of the teacher's lane runs beside the student"),
    Check("races", 60, 20, _GPU, "training:races", "PyTorch's race checker over a loop with two streams"),
    Check("kernels-all", 210, 20, _BOTH, "kernels:all_of_them", "every specialisation of every kernel"),
    Check("kernels-listed", 20, 2, _CPU, "offline:listed", "every specialisation is called by one of these cases"),
    Check("kernels-interpreted", 240, 15, _CPU, "offline:interpreted", "the kernels in Triton's interpreter"),
    Check("kernels-compiled", 240, 20, _CPU, "offline:compiled", "code for six architectures: no spills"),
)


def choose(only: str) -> tuple[Check, ...]:
    """The checks that are named, in the order of the table; all for an empty text.

    Raises:
        UserError: A name is not in the table.
    """
    wanted = only.replace(",", " ").split()
    names = [check.name for check in TABLE]
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"there is no check {name}; {meant}there are {', '.join(names)}")
    return tuple(check for check in TABLE if check.name in wanted or not wanted)
