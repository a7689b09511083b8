"""Fig. 3 of the paper: PSNR-Y of held-out images over training: `vanilla`, `kd`, and ECO without mixup."""

from pathlib import Path
from typing import Any

from benchmarks.reproduce.figures import COLOURS, TEACHERS, command, curve_rows, draw_band, save, summary, write
from benchmarks.reproduce.lab import SEEDS, Lab, Trial

MODES = ("vanilla", "kd", "eco-centroid")


def trials(mode: str, teacher: str) -> list[Trial]:
    """The runs of one curve, a seed each."""
    return [Trial(mode, seed, "none" if mode == "vanilla" else teacher) for seed in SEEDS]


def make(lab: Lab, out: Path) -> None:
    """Reproduce Fig. 3: validation over steps for vanilla, kd and eco-centroid."""
    curves = lab.curves(trial for teacher in TEACHERS for mode in MODES for trial in trials(mode, teacher))
    write(out / "figure_3.csv", curve_rows(curves))

    def draw(figure: Any) -> None:
        for axes, (teacher, title) in zip(figure.subplots(1, 2, sharey=True), TEACHERS.items(), strict=True):
            for mode in MODES:
                draw_band(axes, [curves[trial] for trial in trials(mode, teacher)], mode, color=COLOURS[mode])
            axes.set(title=title, xlabel="step")
        figure.axes[0].set_ylabel("PSNR-Y (dB), held-out images")
        figure.axes[0].legend(frameon=False, loc="lower right")

    save(out / "figure_3.png", draw, size=(10, 4))
    for teacher in TEACHERS:
        summary({f"{mode}, {teacher}": [curves[t] for t in trials(mode, teacher)] for mode in MODES})


if __name__ == "__main__":
    command(make)
