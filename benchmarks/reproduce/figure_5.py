"""Fig. 5 of the paper: ECO with different schedules of alpha, and without mixup."""

from pathlib import Path
from typing import Any

from benchmarks.reproduce.figures import command, curve_rows, draw_band, save, summary, write
from benchmarks.reproduce.lab import SEEDS, Lab, Trial

VARIANTS = {  # label -> mode, schedule, colour
    "official": ("eco", "official", "#c8323c"),
    "linear": ("eco", "linear", "#7a4fb5"),
    "shifted": ("eco", "shifted", "#d98a1f"),
    "no mixup": ("eco-centroid", "official", "#2a9d6f"),
}


def trials(label: str) -> list[Trial]:
    """The runs of one curve, a seed each."""
    mode, alpha, _ = VARIANTS[label]
    return [Trial(mode, seed, "rlfn-s", alpha=alpha) for seed in SEEDS]


def make(lab: Lab, out: Path) -> None:
    """Reproduce Fig. 5: schedules of alpha."""
    vanilla = [Trial("vanilla", seed) for seed in SEEDS]
    curves = lab.curves([trial for label in VARIANTS for trial in trials(label)] + vanilla)
    write(out / "figure_5.csv", curve_rows(curves))
    groups = {label: [curves[trial] for trial in trials(label)] for label in VARIANTS}
    groups["vanilla"] = [curves[trial] for trial in vanilla]

    def draw(figure: Any) -> None:
        whole, end = figure.subplots(1, 2)
        for label, group in groups.items():
            for axes in (whole, end):
                draw_band(axes, group, label, color=VARIANTS[label][2] if label in VARIANTS else "#5b6b7b")
        steps = groups["official"][0].steps
        shown = [value for group in groups.values() for curve in group for value in curve.psnr_y[len(steps) // 2 :]]
        end.set(xlim=(steps[len(steps) // 2], steps[-1]), ylim=(min(shown) - 0.02, max(shown) + 0.02))
        end.set(title="the second half", xlabel="step")
        whole.set(title="schedules of alpha, teacher RLFN-S", xlabel="step", ylabel="PSNR-Y (dB), held-out images")
        whole.legend(frameon=False, loc="lower right")

    save(out / "figure_5.png", draw, size=(10, 4))
    summary(groups)


if __name__ == "__main__":
    command(make)
