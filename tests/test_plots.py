"""Plots of benchmark rows: what is drawn, that it can be read, and that a crash leaves no half of a picture."""

import csv
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import matplotlib.backends.backend_agg as agg
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from eco_fast.errors import UserError
from eco_fast.measured import QUICK, marked
from eco_fast.plots import GREY, OURS, operations_per_byte, plot_figures, plot_kernels, plot_roofline
from eco_kernels.bicubic import TAPS

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HARDWARE = {"device": "a GPU", "threads": "2", "torch": "2", "triton": "3"}
Draw = Callable[..., Figure]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Runs a function of `plots`, and returns the figure that it wrote."""
    figures: list[Figure] = []

    class Canvas(agg.FigureCanvasAgg):
        def __init__(self, figure: Figure) -> None:
            figures.append(figure)
            super().__init__(figure)

    monkeypatch.setattr(agg, "FigureCanvasAgg", Canvas)

    def run(plot: Callable[..., None], rows: object, **options: object) -> Figure:
        plot(rows, tmp_path / "plot.png", **options)
        with Image.open(tmp_path / "plot.png") as image:
            assert image.format == "PNG" and len(image.convert("RGB").reduce(8).getcolors(1 << 20) or []) > 3
        assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
        return figures[-1]

    return run


def results(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def texts(figure: Figure) -> list[Text]:
    """All words but the numbers along the axes, whose places are matplotlib's."""
    ticks = [tick for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks()]
    ticks += [tick for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_minor_ticks()]
    numbers = {label for tick in ticks for label in (tick.label1, tick.label2)}
    words = set(figure.findobj(Text)) - numbers
    if all(axes.get_yscale() == "linear" for axes in figure.axes):  # bars: their names
        words |= {label for axes in figure.axes for label in axes.get_yticklabels()}
    return [text for text in words if text.get_visible() and text.get_text().strip()]


def assert_readable(figure: Figure) -> None:
    """No two texts overlap, and none is cut off."""
    # That of an annotation would hold its line too.
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts(figure)]
    for name, box in boxes:
        assert min(box.x0, box.y0) >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, name
    for (one, a), (other, b) in combinations(boxes, 2):
        width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width <= 1 or height <= 1, f"{one!r} lies on {other!r}"


def bars(figure: Figure) -> list[tuple[str, float, float]]:
    """Colour, length and opacity of every bar."""
    patches = [patch for axes in figure.axes for patch in axes.patches]
    return [(to_hex(patch.get_facecolor()), patch.get_width(), patch.get_alpha() or 1.0) for patch in patches]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


def kernel(operation: str, case: str, contestant: str, ratio: float, **others: str) -> dict[str, str]:
    speed = 10 / ratio  # GB/s, of 20
    figures = {"p50_us": str(ratio), "gb_per_s": str(speed), "percent_of_copy": str(5 * speed), "ratio": str(ratio)}
    names = {"operation": operation, "case": case, "contestant": contestant, "cache": "cold"}
    return {**names, **figures, **HARDWARE, **others}


ON_GPU = [
    kernel(operation, case, contestant, ratio, cache=cache)
    for operation, case in (
        ("gather_patches", "192 px"),
        ("bicubic_downsample", "x4"),
        ("eco_loss_with_grad", "float32"),
    )
    for contestant, ratio in (("product", 1.0), ("eager", 4.0))
    for cache in ("cold", "warm")
]
ON_BOTH = [*ON_GPU, kernel("bicubic_downsample", "60 x 48 x4", "product", 1.0, cache="warm", device="a CPU")]


def test_kernels_of_the_repository(drawn: Draw) -> None:
    rows = results("kernels_cpu.csv")
    figure = drawn(plot_kernels, rows)
    assert_readable(figure)
    assert len(figure.axes) == 5
    for colour, mine in ((OURS, True), (GREY, False)):
        speeds = [1 / float(row["ratio"]) for row in rows if (row["contestant"] == "product") is mine]
        assert sorted(length for found, length, _ in bars(figure) if found == colour) == pytest.approx(sorted(speeds))


def test_two_states_of_the_cache_and_two_devices(drawn: Draw) -> None:
    figure = drawn(plot_kernels, ON_BOTH)
    assert_readable(figure)
    solid = [(colour, length) for colour, length, opacity in bars(figure) if opacity == 1]
    faint = [(colour, length) for colour, length, opacity in bars(figure) if opacity < 1]
    assert sorted(faint) == sorted([(OURS, 1.0), (GREY, 0.25)] * 3)
    assert sorted(solid) == sorted(faint + [(OURS, 1.0)])  # on the CPU there is only one state: it is not faint
    assert "60 x 48 x4 on a CPU   product" in words(figure)
    assert {"cold caches", "warm caches"} <= {text.get_text() for legend in figure.legends for text in legend.texts}


def test_roofline_of_the_repository(drawn: Draw) -> None:
    rows = results("kernels_cpu.csv")
    figure = drawn(plot_roofline, rows)
    assert_readable(figure)
    names = {f"{row['operation']} {row['case']}" for row in rows}
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert shown == {name for name in names if not name.startswith("gather_patches")}
    copy = 100 * float(rows[0]["gb_per_s"]) / float(rows[0]["percent_of_copy"])
    assert f"{copy:.0f} GB/s" in words(figure) and "TFLOP/s" not in words(figure)


def test_points_and_roofs(drawn: Draw) -> None:
    """Cold caches, one device; the roof bends where the arithmetic of the device ends."""
    figure = drawn(plot_roofline, ON_BOTH, peak_tflops=0.2)
    assert_readable(figure)
    memory, arithmetic, points = (list(zip(*line.get_data(), strict=True)) for line in figure.axes[0].lines)
    x = {name: operations_per_byte(*name) for name in (("bicubic_downsample", "x4"), ("eco_loss_with_grad", "float32"))}
    assert points == [pytest.approx((value, 10 * value)) for value in x.values()]
    assert all(y == pytest.approx(20 * x) for x, y in memory)
    assert memory[-1] == arithmetic[0] == pytest.approx((10, 200)) and arithmetic[1][1] == 200
    assert "0.2 TFLOP/s" in words(figure) and "cold" in words(figure)


@pytest.mark.parametrize("name", ["data.csv", "step.csv", "evaluate.csv"])
def test_figures_of_the_repository(drawn: Draw, name: str) -> None:
    rows = results(name)
    figure = drawn(plot_figures, rows)
    assert_readable(figure)
    shown = words(figure)
    for row in rows:
        case = row["case"].partition(", ")[2] if name == "step.csv" else row["case"]
        assert case in shown or case.startswith("memory of")
    assert {colour for colour, *_ in bars(figure)} == {OURS, GREY}


def test_bars_of_a_suite(drawn: Draw) -> None:
    steps = {"benchmark": "step", "hardware": "x"}
    rows = [
        {**steps, "case": "tiny, bare, A", "ms_per_step": "20"},
        {**steps, "case": "tiny, vanilla", "ms_per_step": "16", "ratio": "1.25", "of": "speed of bare"},
        {**steps, "case": "tiny, eco", "ms_per_step": "10", "plain_ms": "30", "ratio": "3", "of": "speed of plain"},
        {**steps, "case": "large, vanilla", "ms_per_step": "900"},
        {"benchmark": "data", "case": "loader", "patches_per_second": "20", "ratio": "1", "hardware": "x"},
        {"benchmark": "data", "case": "packed", "patches_per_second": "900", "ratio": "45", "hardware": "x"},
        {"benchmark": "data", "case": "wait", "wait_ms": "0.0", "percent": "0.0", "hardware": "x"},
    ]
    figure = drawn(plot_figures, rows)
    assert_readable(figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["step, tiny", "step, large", "data", "data"]
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "linear", "log", "linear"]
    tiny = [(to_hex(patch.get_facecolor()), patch.get_width()) for patch in figure.axes[0].patches]
    assert tiny == [(GREY, 20), (OURS, 16), (GREY, 30), (OURS, 10)]
    assert "16.0 ms   1.25 x speed of bare" in words(figure) and "900 patches/s   ratio 45" in words(figure)


def test_units_that_people_read(drawn: Draw) -> None:
    slow = {"benchmark": "step", "case": "large, eco", "hardware": "x", "ms_per_step": "40495.0"}
    assert "40.5 s" in words(drawn(plot_figures, [slow]))
    row = kernel("gather_patches", "192 px", "product", 1.0, p50_us="4464.0")
    assert "1.00   4.46 ms" in words(drawn(plot_kernels, [row]))


@pytest.mark.parametrize("plot", [plot_kernels, plot_roofline, plot_figures])
def test_tiny_problems_are_named_as_such(drawn: Draw, plot: Callable[..., None]) -> None:
    hardware = marked("a CPU", quick=True)
    step = {"benchmark": "step", "case": "c", "ms_per_step": "1", "hardware": hardware}
    rows = [step] if plot is plot_figures else [kernel("gather_mix", "x2", "product", 1.0, device=hardware)]
    figure = drawn(plot, rows)
    assert_readable(figure)
    assert f"{QUICK}. a CPU" in words(figure).replace("\n", " ")


@pytest.mark.parametrize("plot", [plot_kernels, plot_roofline, plot_figures])
def test_nothing_to_draw_is_said(drawn: Draw, plot: Callable[..., None]) -> None:
    figure = drawn(plot, [])
    assert "no row" in words(figure)
    memory = {"benchmark": "data", "case": "memory of packed", "peak_mb": "900", "hardware": "x"}
    assert "no row" in words(drawn(plot_figures, [memory]))


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*plot\.png: Is a directory; name another file"):
        plot_kernels(ON_GPU, tmp_path / "plot.png")
    assert len(list(tmp_path.iterdir())) == 1


def test_operations_per_byte() -> None:
    """The table against numbers of operations that are counted one by one."""
    assert operations_per_byte("gather_patches", "192 px") is None  # moves and does not compute
    assert operations_per_byte("gather_mix", "x2") == 3 / 6
    assert operations_per_byte("eco_loss_with_grad", "bfloat16") == 9 / 6
    assert operations_per_byte("eco_loss_with_grad", "float32") == 9 / 10
    for scale, taps in TAPS.items():
        height, width = 4 * scale, 8 * scale
        outputs = [4 * width, 4 * 8]  # down the columns, then along the rows
        operations = sum(2 * len(taps) * count for count in outputs)
        moved = height * width + 4 * 8
        assert operations_per_byte("bicubic_downsample", f"x{scale}") == pytest.approx(operations / moved)
        mixed = (operations + 3 * 4 * 8) / (moved + (1 + 4) * 4 * 8 - 4 * 8)
        assert operations_per_byte("downsample_mix", f"x{scale}") == pytest.approx(mixed)
    assert operations_per_byte("bicubic_downsample", "2040 x 1356 x4") == operations_per_byte(
        "bicubic_downsample", "x4"
    )
    assert operations_per_byte("downsample_mix", "x3 cut") == operations_per_byte("downsample_mix", "x3")
