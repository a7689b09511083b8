"""Fig. 4 of the paper: how far the validation of batch sizes 2, 4, 8 and 16 lies apart, `vanilla` against ECO."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.reproduce.figures import command, curve_rows, draw_band, save, write
from benchmarks.reproduce.lab import SEEDS, Lab, Trial

BATCHES = (2, 4, 8, 16)
MODES = {"vanilla": "none", "eco-centroid": "rlfn-s"}  # -> teacher
SHADES = ("#9ecae1", "#5ba3cf", "#2271b5", "#08306b")


def trials(mode: str, batch: int) -> list[Trial]:
    """The runs of one curve, a seed each; all take the same number of steps."""
    return [Trial(mode, seed, MODES[mode], batch=batch) for seed in SEEDS]


def make(lab: Lab, out: Path) -> None:
    """Reproduce Fig. 4: spread of the validation over batch sizes."""
    curves = lab.curves(trial for batch in BATCHES for mode in MODES for trial in trials(mode, batch))
    write(out / "figure_4.csv", curve_rows(curves))

    def draw(figure: Any) -> None:
        first, second, spread = figure.subplots(1, 3)
        second.sharey(first)
        for axes, mode in ((first, "vanilla"), (second, "eco-centroid")):
            for batch, shade in zip(BATCHES, SHADES, strict=True):
                draw_band(axes, [curves[trial] for trial in trials(mode, batch)], f"batch {batch}", color=shade)
            axes.set(title=mode, xlabel="step")
        first.set_ylabel("PSNR-Y (dB), held-out images")
        first.legend(frameon=False, loc="lower right")
        for mode, colour in (("vanilla", "#5b6b7b"), ("eco-centroid", "#2a9d6f")):
            spread.plot(curves[trials(mode, 2)[0]].steps, spreads(mode), color=colour, label=mode, linewidth=1.8)
        spread.set(title="highest - lowest batch size", xlabel="step", ylabel="dB, mean over seeds", ylim=(0, None))
        spread.legend(frameon=False)

    def spreads(mode: str) -> list[float]:
        per_seed = [[curves[trials(mode, batch)[i]].psnr_y for batch in BATCHES] for i in range(len(SEEDS))]
        apart = [[max(each) - min(each) for each in zip(*group, strict=True)] for group in per_seed]
        return [statistics.fmean(each) for each in zip(*apart, strict=True)]

    save(out / "figure_4.png", draw, size=(13, 4))
    for mode in MODES:
        found = spreads(mode)
        print(f"{mode}: spread {statistics.fmean(found):.3f} dB on average over training, {found[-1]:.3f} at the end")


if __name__ == "__main__":
    command(make)
