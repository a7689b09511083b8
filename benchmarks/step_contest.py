"""Training steps of all that compete, for `eco-fast doctor --gpu-proof`: each figure is reported once it is there.

A contestant is timed alone once it is built; when all are, they run in turns, so that a drift of the machine falls on
all. Those figures count. What matters most is built first. Where the time goes is asked by checks of their own, late:
the profiler stays with its process and slows what follows.
"""

import time
from functools import partial
from typing import NamedTuple

import torch
from gpu_trace import Trace, beside, busy_us, longest, record
from steps import CASES, STEPS, Bench, Steps, choose_kernels, in_turns, medians_ms, recover

from eco_fast.proof.outcome import Evidence
from eco_fast.proof.stage import Stage
from eco_fast.train.lane import streams_of
from eco_fast.train.machine import has_fast_bf16, missing_tool
from eco_kernels.dispatch import runs_kernels

ECO = {"mode": "eco", "alpha__schedule": "constant", "alpha__value": 0.5, "teacher__file": "given"}
BARE = "bare, compiled"
TUNED = "tuned plain PyTorch"
FIRST = 4  # steps in which a contestant compiles, chooses its libraries' kernels and, in the last, captures
PROFILED = 10  # steps
LISTED = 12  # kernels of a profile
ROUNDS = 10
BLOCK = 100.0  # milliseconds that a contestant's steps in a round take, if that is 2 to 100 steps
AFTER = 6.0  # seconds that a check needs for what follows the rounds
COMPILING = 20.0  # seconds that the first contestant which compiles may take

Make = partial[Steps]


class Alone(NamedTuple):
    """A contestant by itself: milliseconds per step, and seconds of the steps in which it compiles."""

    ms: float
    first_s: float


class Field(NamedTuple):
    """The contestants, by name."""

    built: dict[str, Steps]
    alone: dict[str, Alone]
    faults: list[str]
    left_out: list[str]
    """Contestants for which there was no time."""

    @property
    def late(self) -> str:
        return f"; no time for {'; '.join(self.left_out)}" if self.left_out else ""


def switches(device: str) -> dict[str, dict[str, object]]:
    """Row -> settings, each with those of the rows before it; what the device does not have is left out."""
    rows: dict[str, dict[str, object]] = {
        "this loop, all off": {
            "kernels": "reference",
            "run__precision": "fp32",
            "run__compile": "off",
            "run__lanes": False,
        }
    }
    added: dict[str, dict[str, object]] = {}
    if device == "cuda" and runs_kernels(torch.device(device)):
        added["+ Triton kernels"] = {"kernels": "auto"}
    if device == "cuda":
        added["+ TF32"] = {"run__precision": "tf32"}
    if has_fast_bf16(device):
        added["+ bf16"] = {"run__precision": "bf16"}
    if missing_tool() is None:
        added["+ compile"] = {"run__compile": "default"}
    added["+ lanes"] = {"run__lanes": True}
    if device == "cuda":
        added["+ CUDA graph"] = {"run__graph": True}
    for name, settings in added.items():
        rows[name] = {**list(rows.values())[-1], **settings}
    return rows


def contest(stage: Stage, network: str) -> Evidence:
    """A step of a network: the waterfall of our switches, bare loops, plain PyTorch."""
    bench = _bench(stage, network)
    eager = {"run__compile": "off", **ECO}
    rows = {name: partial(bench.loop, **ECO, **settings) for name, settings in _affordable(stage).items()}
    tool = None if stage.small else "reduce-overhead"  # compiling on a CPU takes longer than a rehearsal is worth
    makers: dict[str, Make] = {
        **dict([rows.popitem()]),  # everything on
        BARE if tool else "bare": partial(bench.bare, compile_=tool),
        TUNED: partial(bench.tuned, compile_=tool is not None),
        "eager": partial(bench.loop, **eager),
    }
    if not stage.small:
        makers["eager, CUDA graph"] = partial(bench.loop, run__graph=True, **eager)
        makers["bare, eager"] = partial(bench.bare)
    makers |= {
        **rows,
        "online teacher, eager": partial(bench.loop, teacher__mode="online", **eager),
        "plain PyTorch, fp32": partial(bench.plain, bf16=False),
    }
    if bench.precision == "bf16":
        makers["plain PyTorch, bf16"] = partial(bench.plain, bf16=True)
    return _compete(stage, network, bench, makers)


def wide(stage: Stage) -> Evidence:
    """A step with the paper's batch of 128, with its optimiser and with Adam."""
    bench = _bench(stage, "edsr-baseline", batch=128)
    compile_ = "off" if stage.small else "default"
    makers = {
        f"{name}{', CUDA graph' if graph else ''}": partial(
            bench.loop, run__compile=compile_, run__graph=graph, optim__name=optimiser, **ECO
        )
        for name, optimiser in (("Adam", "adam"), ("LAMB", "lamb"))
        for graph in _graphs(stage)
    }
    bare = None if stage.small else "reduce-overhead"
    return _compete(
        stage, f"edsr-baseline, batch {bench.batch}", bench, {**makers, BARE: partial(bench.bare, compile_=bare)}
    )


def eager_and_graph(stage: Stage, network: str) -> Evidence:
    """A step of a deep network, whose compilation takes longer than there is time."""
    bench = _bench(stage, network)
    small: dict[str, object] = {"student__options": {"groups": 1, "blocks": 1}} if stage.small else {}
    makers: dict[str, Make] = {
        f"eager{', CUDA graph' if graph else ''}": partial(
            bench.loop, run__compile="off", run__graph=graph, mode="vanilla", **small
        )
        for graph in reversed(_graphs(stage))
    }
    if not stage.small:
        makers["bare, eager"] = partial(bench.bare)
    return _compete(stage, network, bench, makers)


def mapped(stage: Stage) -> Evidence:
    """A step on patches that are cut from files ahead of it, against one on images that lie on the device."""
    bench = _bench(stage, "edsr-baseline")
    makers = {
        name: partial(bench.loop, run__compile="off", data__source=name, **ECO) for name in ("mapped", "resident")
    }
    return _compete(stage, "edsr-baseline", bench, makers)


def profile(stage: Stage) -> Evidence:
    """Where the time of a step goes: kernels, launches, how busy the device was; and that graphs are launched."""
    benches = [_bench(stage, network) for network in CASES]  # all at first: a new one forgets what was compiled
    makers = {f"{b.network}, {name}": make for b in benches for name, make in _profiled(stage, b).items()}
    field = _build_all(stage, makers)
    steps, seen = 1 if stage.small else PROFILED, 0
    for case, run in field.built.items():
        if stage.seconds < AFTER:
            field.left_out.append(case)
            continue
        trace = record(run, steps, stage.scratch / "profile.json.gz", stage.device)
        _tell(stage, case, trace, steps, 1e3 * field.alone[case].ms)
        seen += 1
        if not stage.small and not case.endswith("eager") and trace.graphs == 0:
            field.faults.append(f"{case}: no CUDA graph is launched")
    return Evidence(seen, tuple(field.faults), f"{seen} recordings{field.late}")


def _profiled(stage: Stage, bench: Bench) -> dict[str, Make]:
    """Contestants without a line of the log among the steps that count."""
    silent: dict[str, object] = {"run__log_every": STEPS, **ECO}
    if stage.small:
        return {"eager": partial(bench.loop, run__compile="off", **silent)}
    graph = partial(bench.loop, run__graph=True, run__compile="default", **silent)
    return {
        "+ CUDA graph": graph,
        BARE: partial(bench.bare, compile_="reduce-overhead"),
        TUNED: partial(bench.tuned, compile_=True),
        "eager": partial(bench.loop, run__compile="off", **silent),
    }


def _tell(stage: Stage, case: str, trace: Trace, steps: int, step_us: float) -> None:
    """The figures of a recording; `step_us` is the time of a step without the profiler."""
    busy = busy_us(trace.kernels) / steps
    stage.say(
        case,
        benchmark="profile",
        launches=round(trace.launches / steps, 1),
        graphs=round(trace.graphs / steps, 1),
        kernels=round(len(trace.kernels) / steps, 1),
        device_us=round(busy, 1),
        step_us=round(step_us, 1),
        busy_percent=round(100 * busy / step_us, 1),
        lost=trace.lost or None,
    )
    for kernel, launches, us in longest(trace.kernels, LISTED):
        stage.say(f"{case}: {kernel[:80]}", benchmark="kernels", kernels=launches / steps, us=round(us / steps, 1))


def lanes(stage: Stage) -> Evidence:
    """What an online teacher adds to a step, and how much of its kernels runs while the student's do."""
    online: dict[str, Steps] = {}
    for network in CASES:
        bench = _bench(stage, network)
        for graph in (True, False):  # without a graph it is the host that is measured, where networks are small
            case = f"{network}, {'CUDA graph' if graph else 'eager'}"
            loop = partial(bench.loop, run__compile="off", run__graph=graph, run__log_every=STEPS, **ECO)
            contestants = {
                "online": loop(teacher__mode="online"),
                "cached": loop(),
                "alone": bench.teacher_alone(graph=graph and stage.device == "cuda"),
            }
            for run in contestants.values():
                run(2 * FIRST)
            ms = medians_ms(in_turns(contestants, CASES[network][2], ROUNDS, device=stage.device))
            stage.say(
                case,
                online_ms=round(ms["online"], 4),
                cached_ms=round(ms["cached"], 4),
                teacher_alone_ms=round(ms["alone"], 4),
                rounds=ROUNDS,
                added_of_teacher=round((ms["online"] - ms["cached"]) / ms["alone"], 3),
            )
            online[case] = contestants["online"]
    seen = 0
    for case, run in online.items():
        kernels = record(run, PROFILED, stage.out / f"lanes_{case.replace(', ', '_')}.json.gz", stage.device).kernels
        us, both = beside(kernels)
        stage.say(
            case,
            streams=len({kernel.stream for kernel in kernels}),
            other_streams_us=round(us / PROFILED, 1),
            beside_percent=round(100 * both / us, 1) if us else None,
        )
        seen += len(kernels)
    return Evidence(seen, detail=f"{seen} kernels; recordings: lanes_*.json.gz, for ui.perfetto.dev")


def _bench(stage: Stage, network: str, *, batch: int = 16) -> Bench:
    return Bench(network, stage.scratch / network, quick=stage.small, device=stage.device, batch=batch)


def _graphs(stage: Stage) -> tuple[bool, ...]:
    return (False,) if stage.small else (False, True)


def _affordable(stage: Stage) -> dict[str, dict[str, object]]:
    """The switches; without compilation in a rehearsal."""
    rows = switches(stage.device)
    if not stage.small:
        return rows
    return {name: {**row, "run__compile": "off"} for name, row in rows.items() if name != "+ compile"}


def _compete(stage: Stage, network: str, bench: Bench, makers: dict[str, Make]) -> Evidence:
    """Build and time every contestant, then let all run in turns."""
    field = _build_all(stage, makers, f"{network}, ")
    steps = {name: _per_round(stage, one.ms) for name, one in field.alone.items()}
    rounds, until = 1 if stage.small else ROUNDS, time.monotonic() + stage.seconds - AFTER
    failed = partial(_failed, stage, field.faults)
    seconds = in_turns(field.built, steps, rounds, device=stage.device, until=until, failed=failed)
    ms = medians_ms(seconds)
    choose_kernels("auto")
    order = [
        "plain PyTorch, fp32",
        "plain PyTorch, bf16",
        TUNED,
        *switches(bench.device),
    ]  # the waterfall, then the rest
    for name, value in sorted(ms.items(), key=lambda row: order.index(row[0]) if row[0] in order else len(order)):
        stage.say(
            f"{network}, {name}",
            benchmark="in turns",
            rounds=len(seconds[name]),
            ms_per_step=round(value, 4),
            **_ratios(name, value, ms),
        )
    return Evidence(len(ms), tuple(field.faults), f"{len(ms)} contestants in turns, batch {bench.batch}{field.late}")


def _build_all(stage: Stage, makers: dict[str, Make], before: str = "") -> Field:
    """Build the contestants for which there is time, each timed alone; after one that fails the others go on."""
    field = Field({}, {}, [], [])
    for name, make in makers.items():
        if stage.seconds < _needed(make, field.alone):  # the rounds are worth more than one more contestant
            field.left_out.append(name)
            continue
        try:
            field.built[name], field.alone[name] = _build(stage, before + name, make)
        except Exception as error:
            _failed(stage, field.faults, before + name, error)
    return field


def _failed(stage: Stage, faults: list[str], name: str, error: Exception) -> None:
    """Note the fault of a contestant; a lost device ends the contest: its error is raised."""
    recover(stage.device)
    faults.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    stage.say(name, failed=faults[-1])


def _needed(make: Make, alone: dict[str, Alone]) -> float:
    """Seconds for building a contestant and what follows; compiling may take as long as with those before it."""
    compiles = make.keywords.get("run__compile", "off") != "off" or make.keywords.get("compile_")
    return AFTER + (1.3 * max((one.first_s for one in alone.values()), default=COMPILING) if compiles else AFTER)


def _build(stage: Stage, case: str, make: Make) -> tuple[Steps, Alone]:
    """Build a contestant, let it make its first steps, time it alone."""
    begun = time.monotonic()
    run = make()
    made = time.monotonic()
    run(1 if stage.small else FIRST)
    streams_of(stage.device).synchronize()
    first = time.monotonic()
    rounds = 1 if stage.small else 3
    (rough,) = medians_ms(in_turns({case: run}, 1, rounds, device=stage.device)).values()
    (ms,) = medians_ms(in_turns({case: run}, _per_round(stage, rough), rounds, device=stage.device)).values()
    alone = Alone(ms, first - made)
    stage.say(
        case,
        benchmark="alone",
        rounds=rounds,
        ms_per_step=round(alone.ms, 4),
        setup_s=round(made - begun, 1),
        first_s=round(alone.first_s, 1),
    )
    return run, alone


def _per_round(stage: Stage, ms: float) -> int:
    """Steps of a contestant in a round."""
    return 1 if stage.small else min(100, max(2, round(BLOCK / ms)))


def _ratios(name: str, value: float, ms: dict[str, float]) -> dict[str, object]:
    """Speed over tuned plain PyTorch, and time over that of the bare loop in graphs."""
    bare = ms.get(BARE)
    goal = "<= 1.03" if name == "+ CUDA graph" and bare else None
    ratio = {"ratio": round(ms[TUNED] / value, 3), "of": f"speed of {TUNED}"} if TUNED in ms else {}
    return {**ratio, "of_bare": round(value / bare, 3) if bare else None, "goal_of_bare": goal}
