"""Training steps of the real loop against bare ones, of one mode against another, and against plain PyTorch.

Everything runs in turns, a few steps at a time, so that a drift of the machine falls on all; figures are medians over
the rounds. A bare step has its tensors ready: forward, backward, optimiser. Two bare loops (A/A) show how far two equal
things differ in such a run. `goal` is a limit of the ratio in its row.
"""

from pathlib import Path

import pytest
from plain import PlainTrainer
from recorded import clock
from rows import Record
from steps import CASES, Bench, Steps, in_turns, medians_ms

from eco_fast.train.machine import missing_tool


@pytest.fixture(params=CASES)
def bench(request: pytest.FixtureRequest, tmp_path: Path, quick: bool) -> Bench:
    return Bench(request.param, tmp_path / "bench", quick=quick)


@pytest.mark.benchmark(group="loop", timer=clock)
def test_the_loop(record: Record, bench: Bench, quick: bool) -> None:
    *_, steps, rounds = CASES[bench.network]
    # Bare steps and the teacher alone are eager; a GPU would compile the loop by default.
    eager = {"run__compile": "off"} if bench.device == "cuda" else {}
    eco = {"mode": "eco", "alpha__schedule": "constant", "teacher__file": "given", **eager}
    contestants = {
        "bare, A": bench.bare(),
        "bare, B": bench.bare(),
        "vanilla": bench.loop(**eager),
        "eco, cached teacher": bench.loop(**eco, alpha__value=0.5),
        "eco, alpha 1": bench.loop(**eco, alpha__value=1.0),
        "eco, online teacher": bench.loop(**eco, alpha__value=0.5, teacher__mode="online"),
        "teacher alone": bench.teacher_alone(),
        "vanilla, mapped": bench.loop(data__source="mapped", **eager),
    }
    seconds = in_turns(contestants, 1 if quick else steps, 1 if quick else rounds)
    ms = medians_ms(seconds)
    bare, vanilla = min(ms["bare, A"], ms["bare, B"]), ms["vanilla"]
    added = (ms["eco, online teacher"] - vanilla) / ms["teacher alone"]
    ratios = {
        "bare, B": (ms["bare, B"] / ms["bare, A"], "A/A", None),
        "vanilla": (bare / vanilla, "speed of bare", ">= 0.97"),
        "vanilla, mapped": (bare / ms["vanilla, mapped"], "speed of bare", ">= 0.97"),
        "eco, cached teacher": (ms["eco, cached teacher"] / vanilla, "time of vanilla", "<= 1.03"),
        "eco, alpha 1": (ms["eco, alpha 1"] / vanilla, "time of vanilla", "<= 1.01"),
        "eco, online teacher": (added, "added time of teacher alone", "<= 1.05"),
    }
    for name, value in ms.items():
        ratio, of, goal = ratios.get(name, (None, None, None))
        record(
            f"{bench.network}, {name}",
            seconds[name],
            ms_per_step=round(value, 2),
            ratio=None if ratio is None else round(ratio, 3),
            of=of,
            goal=goal,
            precision=bench.precision,
        )


@pytest.mark.benchmark(group="defaults", timer=clock)
def test_default_settings(record: Record, bench: Bench, quick: bool) -> None:
    """The default settings against fp32, channels first, eager; and what compilation brings on this machine."""
    *_, steps, rounds = CASES[bench.network]
    contestants = {
        "fp32, NCHW, eager": bench.bare(precision="fp32", channels_last=False),
        "defaults": bench.loop(),
        "bare": bench.bare(),
        "bare, fp32": bench.bare(precision="fp32"),
    }
    if missing_tool() is None:
        contestants["bare, compiled"] = bench.bare(compile_="default")
        contestants["bare, fp32, compiled"] = bench.bare(precision="fp32", compile_="default")
    seconds = in_turns(contestants, 1 if quick else steps, 1 if quick else max(12, rounds - 2))
    ms = medians_ms(seconds)
    for name, value in ms.items():
        ratio = ms["fp32, NCHW, eager"] / value
        goal = ">= 3" if name == "defaults" and bench.network == "edsr-baseline" else None
        record(
            f"{bench.network}, {name}",
            seconds[name],
            ms_per_step=round(value, 2),
            ratio=round(ratio, 3),
            of="speed of fp32, NCHW, eager",
            goal=goal,
            precision=bench.precision,
        )


@pytest.mark.benchmark(group="usual trainers", timer=clock)
def test_against_usual_trainers(record: Record, bench: Bench, quick: bool) -> None:
    """Our whole loop against the step alone of what most people train with: their data path costs nothing here."""
    *_, steps, rounds = CASES[bench.network]
    contestants = {
        "usual, bf16 AMP": bench.usual(bf16=True),
        "usual, fp32": bench.usual(bf16=False),
        "usual, fp32, channels first": bench.usual(bf16=False, channels_last=False),
        "product": bench.loop(),
    }
    seconds = in_turns(contestants, 1 if quick else steps, 1 if quick else rounds)
    ms = medians_ms(seconds)
    best = min(value for name, value in ms.items() if name != "product")
    for name, value in ms.items():
        record(
            f"{bench.network}, {name}",
            seconds[name],
            ms_per_step=round(value, 2),
            ratio=round(value / best, 3),
            of="time of the best usual one",
            goal=None if name != "product" else "<= 0.9" if bench.network == "edsr-baseline" else "<= 0.8",
            precision=bench.precision,
        )


@pytest.mark.benchmark(group="plain PyTorch", timer=clock)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_against_plain_pytorch(record: Record, tmp_path: Path, precision: str, quick: bool) -> None:
    """ECO as one would write it without this project, on the same images in memory."""
    bench = Bench("edsr-tiny", tmp_path / "bench", quick=quick)
    plain = PlainTrainer(
        bench.images, 2, patch=24, batch=bench.batch, lr=2e-4, bf16=precision == "bf16", device=bench.device
    )
    eco = {"mode": "eco", "alpha__schedule": "constant", "alpha__value": 0.5, "teacher__file": "given"}
    contestants: dict[str, Steps] = {
        "plain": lambda count: [plain.step(0.5) for _ in range(count)] and None,
        "product": bench.loop(**eco, run__precision=precision),
    }
    *_, steps, rounds = CASES["edsr-tiny"]
    seconds = in_turns(contestants, 1 if quick else steps, 1 if quick else rounds)
    ms = medians_ms(seconds)
    record(
        f"edsr-tiny, eco against plain PyTorch, {precision}",
        seconds["product"],
        ms_per_step=round(ms["product"], 2),
        plain_ms=round(ms["plain"], 2),
        ratio=round(ms["plain"] / ms["product"], 3),
        of="speed of plain",
        precision=precision,
    )
