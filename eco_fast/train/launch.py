"""Several processes on this machine, started as torchrun does; its report of a failure is left out."""

import logging
import os
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # as torchrun sets it, which says so in four lines
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",  # seconds to validate and save after Ctrl-C; torchrun kills after 30
}


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `eco-fast` with these arguments in several processes, and wait for them.

    They say themselves what is wrong; torchrun would add some 40 lines.

    Args:
        count: Processes.
        arguments: Of each.

    Returns:
        The exit code: that of the process that failed first, 130 after a signal.
    """
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options = ["--nproc-per-node", str(count), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    config, command, rest = config_from_args(parse_args([*options, "-m", "eco_fast", *arguments]))
    try:
        elastic_launch(config, command)(*rest)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except SignalException:
        return 130
    return 0
