"""Training steps of all that compete, for `eco-fast doctor --gpu-proof`: every figure is told as soon as it is there.

A contestant is timed alone once it is built; when all are, they run in turns, so that a drift of the machine falls on
all. Those figures count. What matters most is built first.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from gpu_trace import beside, busy_us, kernels_of, longest
from steps import CASES, Bench, Steps, choose_kernels, in_turns

from eco_fast.data.dali import load_dali
from eco_fast.errors import UserError
from eco_fast.proof.outcome import Evidence, NotRun
from eco_fast.proof.stage import Stage
from eco_fast.train.compiled import missing_tool
from eco_fast.train.lane import streams_of
from eco_kernels.dispatch import implementation

ECO = {"mode": "eco", "alpha__schedule": "constant", "alpha__value": 0.5, "teacher__file": "given"}
BARE = "bare, compiled"
TUNED = "tuned plain PyTorch"
FIRST = 3  # steps in which a contestant compiles, chooses its libraries' kernels and captures
PROFILED = 10  # steps
LISTED = 12  # kernels of a profile
ROUNDS = 10
AFTER = 6.0  # seconds that a check needs for what follows the rounds

Make = Callable[[], Steps]


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
    if device == "cuda" and implementation(torch.device(device)).__name__ == "eco_kernels.gpu":
        added["+ Triton kernels"] = {"kernels": "auto"}
    if device == "cuda":
        added["+ TF32"] = {"run__precision": "tf32"}
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
    """A step of a network: the waterfall of our switches, bare loops, plain PyTorch; where the time goes."""
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
        makers["bare, eager"] = bench.bare
    makers |= {
        **rows,
        "online teacher, eager": partial(bench.loop, teacher__mode="online", **eager),
        "plain PyTorch, bf16": partial(bench.plain, bf16=True),
        "plain PyTorch, fp32": partial(bench.plain, bf16=False),
    }
    return _compete(stage, network, bench, makers, profiled=("+ CUDA graph", "+ compile", "eager"))


def wide(stage: Stage) -> Evidence:
    """The paper's batch of 128 with its optimiser and with Adam."""
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
    """A deep network whose compilation takes longer than there is time."""
    bench = _bench(stage, network)
    small: dict[str, object] = {"student__options": {"groups": 1, "blocks": 1}} if stage.small else {}
    makers: dict[str, Make] = {
        f"eager{', CUDA graph' if graph else ''}": partial(
            bench.loop, run__compile="off", run__graph=graph, mode="vanilla", **small
        )
        for graph in reversed(_graphs(stage))
    }
    if not stage.small:
        makers["bare, eager"] = bench.bare
    return _compete(stage, network, bench, makers)


def packed(stage: Stage) -> Evidence:
    """Patches that DALI reads from files against those that lie on the device."""
    try:
        load_dali("packed")
    except UserError as error:
        raise NotRun(str(error)) from error
    bench = _bench(stage, "edsr-baseline")
    makers = {
        name: partial(bench.loop, run__compile="off", data__source=name, **ECO) for name in ("packed", "resident")
    }
    return _compete(stage, "edsr-baseline", bench, makers)


def lanes(stage: Stage) -> Evidence:
    """How much of an online teacher's kernels runs while the student's do, and what the teacher adds to a step."""
    seen = 0
    for network in CASES:
        bench = _bench(stage, network)
        online = bench.loop(run__compile="off", teacher__mode="online", **ECO)
        others = {"cached": bench.loop(run__compile="off", **ECO), "teacher alone": bench.teacher_alone()}
        contestants = {"online": online, **others}
        for run in contestants.values():
            run(2 * FIRST)
        kernels = kernels_of(partial(online, PROFILED), stage.out / f"lanes_{network}.json.gz")
        ms = in_turns(contestants, CASES[network][2], ROUNDS, device=stage.device)
        added, (us, both) = ms["online"] - ms["cached"], beside(kernels)
        stage.say(
            network,
            streams=len({kernel.stream for kernel in kernels}),
            other_streams_us=round(us / PROFILED, 1),
            beside_percent=round(100 * both / us, 1) if us else None,
            online_ms=round(ms["online"], 4),
            cached_ms=round(ms["cached"], 4),
            teacher_alone_ms=round(ms["teacher alone"], 4),
            added_of_teacher=round(added / ms["teacher alone"], 3),
        )
        seen += len(kernels)
    return Evidence(seen, detail=f"{seen} kernels; traces: lanes_*.json.gz, for ui.perfetto.dev")


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


def _compete(
    stage: Stage, network: str, bench: Bench, makers: dict[str, Make], profiled: tuple[str, ...] = ()
) -> Evidence:
    """Build and time every contestant, then let all run in turns."""
    built: dict[str, Steps] = {}
    faults, left_out = [], []
    steps = 1 if stage.small else CASES.get(network, (0, 0, 10))[2]
    for name, make in makers.items():
        if stage.seconds < 2 * AFTER:  # the rounds are worth more than one more contestant
            left_out.append(name)
            continue
        try:
            built[name] = _build(stage, f"{network}, {name}", make, steps)
        except Exception as error:  # a contestant that cannot run is a fault of its own; a lost device is everybody's
            streams_of(stage.device).synchronize()
            faults.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            stage.say(f"{network}, {name}", failed=faults[-1])
        if name in profiled and name in built and not stage.small:
            _profile(stage, f"{network}, {name}", built[name])
    rounds = 1 if stage.small else ROUNDS
    ms = in_turns(built, steps, rounds, device=stage.device, until=time.monotonic() + stage.seconds - AFTER)
    choose_kernels("auto")
    order = [
        "plain PyTorch, fp32",
        "plain PyTorch, bf16",
        TUNED,
        *switches(bench.device),
    ]  # the waterfall, then the rest
    for name, value in sorted(ms.items(), key=lambda row: order.index(row[0]) if row[0] in order else len(order)):
        stage.say(f"{network}, {name}", benchmark="in turns", ms_per_step=round(value, 4), **_ratios(name, value, ms))
    late = f"; no time for {'; '.join(left_out)}" if left_out else ""
    return Evidence(len(ms), tuple(faults), f"{len(ms)} contestants in turns, batch {bench.batch}{late}")


def _build(stage: Stage, case: str, make: Make, steps: int) -> Steps:
    """Build a contestant, let it make its first steps, time it alone."""
    begun = time.monotonic()
    run = make()
    made = time.monotonic()
    run(1 if stage.small else FIRST + 3)
    streams_of(stage.device).synchronize()
    first = time.monotonic()
    value = in_turns({"alone": run}, steps, 1 if stage.small else 3, device=stage.device)["alone"]
    stage.say(
        case,
        benchmark="alone",
        ms_per_step=round(value, 4),
        setup_s=round(made - begun, 1),
        first_s=round(first - made, 1),
    )
    return run


def _ratios(name: str, value: float, ms: dict[str, float]) -> dict[str, object]:
    """Speed over tuned plain PyTorch, and time over that of the bare loop in graphs."""
    bare = ms.get(BARE)
    goal = "<= 1.03" if name == "+ CUDA graph" and bare else None
    ratio = {"ratio": round(ms[TUNED] / value, 3), "of": f"speed of {TUNED}"} if TUNED in ms else {}
    return {**ratio, "of_bare": round(value / bare, 3) if bare else None, "goal_of_bare": goal}


def _profile(stage: Stage, case: str, run: Steps) -> None:
    """Launches per step, how busy the device is, and which kernels take the time."""
    file = stage.scratch / "profile.json.gz"
    kernels = kernels_of(partial(run, PROFILED), file)
    started = time.perf_counter()
    run(PROFILED)
    streams_of(stage.device).synchronize()
    wall = 1e6 * (time.perf_counter() - started)
    busy = busy_us(kernels)
    stage.say(
        case,
        benchmark="profile",
        launches=round(len(kernels) / PROFILED, 1),
        device_us=round(busy / PROFILED, 1),
        step_us=round(wall / PROFILED, 1),
        busy_percent=round(100 * busy / wall, 1),
    )
    for kernel, launches, us in longest(kernels, LISTED):
        stage.say(
            f"{case}: {kernel[:80]}", benchmark="kernels", launches=launches / PROFILED, us=round(us / PROFILED, 1)
        )
