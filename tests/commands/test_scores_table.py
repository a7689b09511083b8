"""Tables, JSON and pictures."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from eco_fast.commands.evaluate import evaluate_networks
from eco_fast.commands.scores_table import (
    Evaluated,
    SetScores,
    document,
    print_scores,
    write_document,
)
from eco_fast.console import plain_console
from eco_fast.errors import UserError
from eco_fast.evaluate import pictures
from eco_fast.evaluate.metrics import PROTOCOL
from eco_fast.evaluate.pictures import save_comparison, save_curves, worst_crop
from eco_fast.evaluate.run import Scores
from eco_fast.models import build
from eco_fast.models.weights import identity, save_weights

MODEL = Scores(["a", "b"], [30.0, 32.0], [0.9, 0.8])
BICUBIC = Scores(["a", "b"], [28.0, 29.0], [0.8, 0.7])
ECO = Evaluated("eco", "edsr", 4, 43_000, Path("runs/eco"), 1500, "average", {"Set5": SetScores(MODEL, BICUBIC)})


def _printed(show, width: int = 160) -> str:
    console = plain_console()
    console.file, console.width = io.StringIO(), width
    show(console)
    return console.file.getvalue()


def test_tables_name_the_protocol() -> None:
    text = _printed(lambda c: print_scores([ECO], precision="bf16", console=c))
    for part in (PROTOCOL, "x4, bf16", "Set5 ", "2 images", "31.000 0.8500", "28.500 0.7500"):
        assert part in text
    assert "*" not in text and "orientations" not in text
    assert "x4, fp32, mean of 8 orientations" in _printed(
        lambda c: print_scores([ECO], precision="fp32", ensemble=True, console=c)
    )


def test_document(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.json"
    write_document(path, document([ECO], precision="fp32"))
    assert json.loads(path.read_text()) == {
        "format": 2,
        "protocol": PROTOCOL,
        "precision": "fp32",
        "ensemble": False,
        "networks": [
            {
                "name": "eco",
                "network": "edsr",
                "scale": 4,
                "parameters": 43_000,
                "file": "runs/eco",
                "step": 1500,
                "weights": "average",
                "data": {
                    "Set5": {
                        "images": 2,
                        "psnr_y": 31.0,
                        "ssim_y": pytest.approx(0.85),
                        "bicubic": {"psnr_y": 28.5, "ssim_y": pytest.approx(0.75)},
                    }
                },
            }
        ],
    }
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


@pytest.mark.parametrize(("width", "tables"), [(60, 3), (80, 2), (120, 2), (160, 1)])
def test_five_sets_fit_the_terminal(width: int, tables: int) -> None:
    """No line is wider, no figure is cut, every table names its rows, and a long name is folded."""
    sets = {name: SetScores(MODEL, BICUBIC) for name in ("Set5", "Set14", "BSD100", "Urban100", "Manga109")}
    long = "a-folder-with-a-name-that-is-longer-than-the-others"
    networks = [ECO._replace(scores=sets), ECO._replace(name=long, scores=sets)]
    text = _printed(lambda c: print_scores(networks, precision="fp32", console=c), width)
    lines = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
    assert max(map(len, lines)) <= width
    assert text.count("bicubic") == text.count("│ eco") == tables
    assert text.count("31.000* 0.8500*") == 2 * 5 and text.count("28.500  0.7500") == 5
    folded = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    assert folded.count(long) == tables


def test_infinite_psnr_is_null_in_json(tmp_path: Path) -> None:
    equal = Scores(["a"], [math.inf], [1.0])
    write_document(
        tmp_path / "a.json", document([ECO._replace(scores={"S": SetScores(equal, equal)})], precision="fp32")
    )
    assert json.loads((tmp_path / "a.json").read_text())["networks"][0]["data"]["S"]["psnr_y"] is None


def test_document_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"scores\.json"):
        write_document(tmp_path / "file" / "scores.json", {})


def test_comparison_shows_the_worst_place(tmp_path: Path, rng: np.random.Generator) -> None:
    hr = rng.integers(60, 190, (120, 160, 3), dtype=np.uint8)
    bicubic = hr.copy()
    bicubic[70:90, 100:120] += 60
    crop = save_comparison(tmp_path / "new" / "image.png", [("bicubic", bicubic), ("eco", hr + 1), ("HR", hr)])
    assert (crop.height, crop.width) == (30, 40)
    assert crop.top <= 70 and crop.top + 30 >= 90 and crop.left <= 100 and crop.left + 40 >= 120
    picture = np.asarray(Image.open(tmp_path / "new" / "image.png"))
    # 12 margin, the whole image 400 x 300, 12, then three crops of 40 x 30 zoomed by 10, 12 apart.
    assert picture.shape == (12 + 300 + 12 + 52, 12 + 400 + 12 + 3 * (400 + 12), 3)
    for i, image in enumerate((bicubic, hr + 1, hr)):
        left = 424 + i * 412
        assert np.array_equal(picture[12:312:10, left : left + 400 : 10], crop.of(image))


def test_long_titles_keep_to_their_panels(tmp_path: Path) -> None:
    """The caption of the panel to the right stays as it is."""
    image = np.zeros((40, 40, 3), np.uint8)
    pictures = []
    for title in ("eco", "runs/a-long-path/of-a-run/whose-end/tells-it-from-others/eco"):
        save_comparison(tmp_path / "a.png", [(title, image), ("HR", image)], figures=False)
        pictures.append(np.asarray(Image.open(tmp_path / "a.png")).astype(int))
    short, long = pictures
    assert short.shape == long.shape
    changed = np.abs(short[312:330] - long[312:330]).sum((0, 2)).nonzero()[0]
    assert changed.min() >= 324 and changed.max() < 324 + 300


def test_comparison_of_different_sizes(tmp_path: Path) -> None:
    a, b = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 44, 3), np.uint8)
    with pytest.raises(ValueError, match="one size"):
        save_comparison(tmp_path / "a.png", [("a", a), ("b", b)])


def test_worst_crop_at_the_corner() -> None:
    hr = np.zeros((40, 40, 3), np.uint8)
    sr = hr.copy()
    sr[30:, 30:] = 255
    assert worst_crop(sr, hr) == (30, 30, 10, 10)


def test_curves(tmp_path: Path) -> None:
    curves = {"vanilla": ([0, 100, 200], [[9.0, 30.0, 31.0], [8.0, 30.2, 31.4]]), "eco": ([100, 200], [[30.5, 31.5]])}
    save_curves(tmp_path / "curves.png", curves, ("bicubic", 29.0))
    assert Image.open(tmp_path / "curves.png").size == (1080, 660)
    save_curves(tmp_path / "none.png", {}, ("bicubic", 29.0))


def test_curves_that_end_below_bicubic_are_in_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def look(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> None:
        draw(figure := Figure())
        limits.append(figure.axes[0].get_ylim())

    monkeypatch.setattr(pictures, "save_figure", look)
    save_curves(tmp_path / "a.png", {"eco": ([0, 9], [[5.0, 28.0], [4.0, 27.5]])}, ("bicubic", 32.0))
    save_curves(tmp_path / "b.png", {"eco": ([0, 9], [[5.0, 34.0], [4.0, 33.5]])}, ("bicubic", 32.0))
    (low, high), (usual_low, _) = limits
    assert 26.5 < low < 27.5 and 32.0 < high < 32.5
    assert 31.5 < usual_low < 32.0


def test_eval_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"blocks": 1, "channels": 4}
    weights = tmp_path / "w.safetensors"
    save_weights(weights, build("edsr-tiny", 2, **options).state_dict(), identity("edsr-tiny", options, 2))
    out = tmp_path / "scores.json"
    evaluate_networks([weights], [photos], json_file=out, pictures=tmp_path / "pictures")
    assert PROTOCOL in capsys.readouterr().out
    (found,) = json.loads(out.read_text())["networks"]
    assert found["data"]["photos"]["images"] == 4 and found["scale"] == 2 and found["network"] == "edsr-tiny"
    assert len(list((tmp_path / "pictures" / "photos").glob("*.png"))) == 4
    with pytest.raises(UserError, match="precision"):
        evaluate_networks([weights], [photos], precision="int8")
