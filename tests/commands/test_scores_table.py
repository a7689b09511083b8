"""Tables, JSON and pictures."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eco_fast.commands.evaluate import evaluate_checkpoint
from eco_fast.commands.scores_table import (
    Row,
    SetScores,
    document,
    print_rows,
    print_scores,
    save_comparison,
    save_curves,
    write_document,
)
from eco_fast.console import plain_console
from eco_fast.errors import UserError
from eco_fast.evaluate.metrics import PROTOCOL
from eco_fast.evaluate.pictures import worst_crop
from eco_fast.evaluate.run import Scores
from eco_fast.models import build
from eco_fast.models.weights import identity, save_weights

MODEL = Scores(["a", "b"], [30.0, 32.0], [0.9, 0.8])
BICUBIC = Scores(["a", "b"], [28.0, 29.0], [0.8, 0.7])
RESULTS = {"Set5": SetScores(MODEL, BICUBIC)}


def _printed(show) -> str:
    console = plain_console()
    console.file = io.StringIO()
    show(console)
    return console.file.getvalue()


def test_tables_name_the_protocol() -> None:
    text = _printed(lambda c: print_scores(RESULTS, model="edsr", scale=4, precision="bf16", console=c))
    for part in (PROTOCOL, "edsr x4, bf16", "Set5", "31.000", "28.500", "+2.500", "0.8500", "0.7500"):
        assert part in text
    rows = [Row("bicubic", BICUBIC), Row("eco", MODEL, steps_per_second=12.34)]
    text = _printed(lambda c: print_rows(rows, title="photographs", console=c))
    for part in (PROTOCOL, "photographs", "bicubic", "eco", "31.000", "+2.500", "12.3"):
        assert part in text


def test_document(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.json"
    write_document(path, document(RESULTS, model="edsr", scale=4, precision="fp32"))
    assert json.loads(path.read_text()) == {
        "protocol": PROTOCOL,
        "model": "edsr",
        "scale": 4,
        "precision": "fp32",
        "data": {
            "Set5": {
                "images": 2,
                "psnr_y": 31.0,
                "ssim_y": pytest.approx(0.85),
                "bicubic": {"psnr_y": 28.5, "ssim_y": pytest.approx(0.75)},
            }
        },
    }
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


def test_infinite_psnr_is_null_in_json(tmp_path: Path) -> None:
    equal = Scores(["a"], [math.inf], [1.0])
    write_document(tmp_path / "a.json", document({"S": SetScores(equal, equal)}, model="m", scale=2, precision="fp32"))
    assert json.loads((tmp_path / "a.json").read_text())["data"]["S"]["psnr_y"] is None


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


def test_eval_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"blocks": 1, "channels": 4}
    weights = tmp_path / "w.safetensors"
    save_weights(weights, build("edsr-tiny", 2, **options).state_dict(), identity("edsr-tiny", options, 2))
    out = tmp_path / "scores.json"
    evaluate_checkpoint(weights, [photos], json_file=out, pictures=tmp_path / "pictures")
    assert PROTOCOL in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["data"]["photos"]["images"] == 4 and found["scale"] == 2 and found["model"] == "edsr-tiny"
    assert len(list((tmp_path / "pictures" / "photos").glob("*.png"))) == 4
    with pytest.raises(UserError, match="precision"):
        evaluate_checkpoint(weights, [photos], precision="int8")
