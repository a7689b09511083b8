"""`train(config)`: everything between a configuration and the first step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from eco_fast.config import FREE_BY_MACHINE, FREE_ON_RESUME, Config, differing_keys
from eco_fast.console import plain_console
from eco_fast.data.memory import is_full, may_be_full
from eco_fast.display import Display
from eco_fast.eco.objective import uses_alpha
from eco_fast.errors import UserError
from eco_fast.train.about import about
from eco_fast.train.batches import Phases
from eco_fast.train.graph import why_not
from eco_fast.train.inputs import load_inputs
from eco_fast.train.log_file import LogFile
from eco_fast.train.loop import Loop, Result
from eco_fast.train.machine import configure, describe, device_type, resolve, versions
from eco_fast.train.optim import learning_rate
from eco_fast.train.peers import differences, refuse_differences
from eco_fast.train.run_folder import RunFolder, RunState
from eco_fast.train.update import Update, make_update
from eco_fast.train.world import World, join_world, leave_world, take_gpu

Configured = Callable[[Config | None], Config]
"""Makes the configuration of a process: with None by itself, else on the ground of what the first process uses."""


class Resumption(NamedTuple):
    """How a run goes on, if it does."""

    resume: bool = False
    more: int = 0  # steps beyond those it was planned for
    stretch: bool = False  # schedules may jump


def train(
    config: Config | Configured,
    *,
    resume: bool = False,
    force: bool = False,
    more: int = 0,
    stretch: bool = False,
    teacher: nn.Module | None = None,
    display: Display | None = None,
) -> Result:
    """Train a student. Under torchrun every process calls this; the first one writes and talks.

    Args:
        config: The configuration, or what makes it; `auto` values are resolved here and recorded in the run's folder.
        resume: Go on from the newest checkpoint of `config.run.out`, to the same bits as a run that was not stopped.
        force: Replace a run that is in `config.run.out`.
        more: Steps that a resumed run is trained for beyond those it was planned for, in place of `config.run.steps`.
        stretch: Schedules that depend on the number of steps may jump where that changes on resume.
        teacher: A frozen network to use in place of `config.teacher.file`.
        display: Where progress is shown.

    Raises:
        UserError: Bad input, no memory, a loss that is not finite, a full disk. Nothing that was written is lost.
    """
    world = join_world()
    console = (display or Display()).console if world.leads else plain_console(quiet=True)
    log = LogFile(Display(console).line)
    try:
        refuse_differences(versions(), world, "install the same on all machines")
        settled = _settle(config, world, Resumption(resume, more, stretch), force=force)
        folder = RunFolder(settled.run.out, settled.run.keep_last)
        with folder.claimed(world), log.last_words(), out_of_memory_named(settled):
            return _train(settled, folder, world, Display(console, log.add), log, resume=resume, teacher=teacher)
    finally:
        leave_world()


def _settle(config: Config | Configured, world: World, resumption: Resumption, *, force: bool) -> Config:
    """The resolved configuration, the same on all machines but for paths."""
    own: Config | None = None
    with world.agree():
        if world.leads:
            own = _leading(_own(config, None), resumption, force=force)
    first = world.share(own)
    with world.agree():
        if first is not None and not world.leads:
            own = _own(config, first)
            own = _following(_with_steps(own, first.run.steps) if resumption.more else own, first)
    assert own is not None
    return own


def _own(config: Config | Configured, first: Config | None) -> Config:
    """What this process is told to do, and its GPU."""
    config = config if isinstance(config, Config) else config(first)
    if device_type(config.run.device) == "cuda":
        take_gpu()
    return config


def _leading(config: Config, resumption: Resumption, *, force: bool) -> Config:
    folder = RunFolder(config.run.out, config.run.keep_last)
    folder.refuse(resume=resumption.resume, force=force)
    if not resumption.resume:
        return resolve(config)
    previous = folder.previous_config()
    config = resolve(config, previous)
    if resumption.more:
        config = _with_steps(config, previous.run.steps + resumption.more)
    if changed := differing_keys(config, previous, FREE_ON_RESUME | {"run.steps"}):
        raise UserError(
            f"{folder.path} was started with other settings: {', '.join(changed)}; "
            f"resume it with its own: eco-fast train {folder.config_file} --resume"
        )
    if not resumption.stretch:
        refuse_jumps(config, previous, folder.checkpoints.done())
    return config


def refuse_jumps(config: Config, previous: Config, done: int) -> None:
    """Make sure that a resumed run with another number of steps goes on as if it had been started with that.

    Args:
        config: How it would go on.
        previous: How it was started.
        done: Steps up to here.

    Raises:
        UserError: More steps are done already, or the learning rate or alpha depends on their number: one line that
            says what would happen.
    """
    steps, before = config.run.steps, previous.run.steps
    if steps == before:
        return
    if steps < done:
        raise UserError(f"--steps {steps}: {done} steps of {config.run.out} are done; take more, or leave it out")
    jumps = []
    if config.optim.schedule == "cosine":
        rates = (learning_rate(min(done, total - 1), total, config.optim) for total in (before, steps))
        jumps.append("the learning rate (optim.schedule=cosine) from {:.2e} to {:.2e}".format(*rates))
    if uses_alpha(config.mode) and config.alpha.schedule != "constant":
        alphas = (Phases(each).alpha(done) for each in (previous, config))
        jumps.append(f"alpha (alpha.schedule={config.alpha.schedule}) {'from {:.3f} to {:.3f}'.format(*alphas)}")
    if jumps:
        raise UserError(
            f"with {steps} steps instead of {before} there is a jump at step {done}, of {' and of '.join(jumps)}; "
            "go on so with --stretch, or start a new run from these weights with --init"
        )


def _with_steps(config: Config, steps: int) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update={"steps": steps})})


def _following(config: Config, first: Config) -> Config:
    """`auto` is what the first process has found, as in a resumed run; the run is kept where that one keeps it."""
    config = resolve(config, first)
    if changed := differing_keys(config, first, FREE_BY_MACHINE):
        raise UserError(
            f"other settings than those of the first process: {', '.join(changed)}; "
            "start all machines with the same command"
        )
    return config.model_copy(update={"run": config.run.model_copy(update={"out": first.run.out})})


def _train(
    config: Config,
    folder: RunFolder,
    world: World,
    display: Display,
    log: LogFile,
    *,
    resume: bool,
    teacher: nn.Module | None,
) -> Result:
    configure(config.run)
    inputs = load_inputs(config, teacher, display, world)
    config = _with_or_without_graph(inputs.config, world, display)
    inputs = inputs._replace(config=config)
    update = make_update(config, inputs.student, world)
    if resume:
        progress = _resume(folder, update, world, config, display)
    else:
        progress = RunState(0, torch.zeros(2, device=config.run.device), None, describe(config.run, world))
    with world.agree():
        if world.leads and not resume:
            folder.start(config)
        loop = Loop(config, folder, inputs, update, display)
        if world.leads and progress.step < config.run.steps:  # a run that is complete stays as it is
            log.open(folder.path / "train.log", describe(config.run, world), append=resume)
    for line in about(inputs, world):
        display.line(line)
    _say_where_machines_differ(config, world, display)
    del inputs  # centroids are let go once alpha is 1: the source alone may hold them
    return loop.run(progress)


@contextmanager
def out_of_memory_named(config: Config) -> Iterator[None]:
    """Turn PyTorch's report of a failed allocation into one line that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        what = "out of memory" if is_full(error) else "cuDNN cannot compute, most likely for lack of memory,"
        if not (is_full(error) or may_be_full(error)):
            raise
        data = config.data
        raise UserError(
            f"{what} on {config.run.device} with data.batch={data.batch} and data.patch={data.patch}; lower one "
            f"of them, or compute a batch in parts: --set optim.accumulate={2 * config.optim.accumulate}"
        ) from error


def _with_or_without_graph(config: Config, world: World, display: Display) -> Config:
    if not config.run.graph:
        return config
    reason = why_not(config, world)
    if reason is None:
        return config
    display.line(f"run.graph is left out: {reason}")
    return config.model_copy(update={"run": config.run.model_copy(update={"graph": False})})


def _say_where_machines_differ(config: Config, world: World, display: Display) -> None:
    run = config.run
    if len(world.machines) > 1:
        display.line(f"{world.size} processes on {', '.join(world.machines)}; the first one keeps the run in {run.out}")
    for line in differences(describe(run, world), world):
        display.line(f"note: {line}; its weights may drift from those of the others in the last bits")


def _resume(folder: RunFolder, update: Update, world: World, config: Config, display: Display) -> RunState:
    latest = world.share(folder.checkpoints.latest())
    assert latest is not None  # `claim` has seen it
    progress = folder.checkpoints.load(latest, update.learners, world)
    with world.agree():
        if world.leads:
            folder.drop_metrics_after(progress.step)
            folder.keep(config)  # with what has changed: the next part needs no flags
    display.line(f"resuming {latest}")
    for key, value in describe(config.run, world).items():
        if progress.environment.get(key) != value:
            display.line(f"note: {key} was {progress.environment.get(key)}, is {value}: the bits may differ")
    return progress
