"""`eco-fast upscale`: photographs in, photographs out."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from eco_fast.commands import upscale as module
from eco_fast.data.encode import FORMATS
from eco_fast.data.notes import Notes
from eco_fast.data.photograph import Photograph, read_photograph
from eco_fast.evaluate import inference
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import super_resolve
from eco_fast.models import build
from eco_fast.models.weights import identity, load_network, save_weights
from tests.conftest import exit_code
from tests.data.test_decode import deep_png, deep_tiff
from tests.data.test_photograph import SRGB, camera

ROOT = Path(__file__).parents[2]
OPTIONS = {"blocks": 1, "channels": 4}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    file = tmp_path / "net.safetensors"
    save_weights(file, build("edsr-tiny", 2, **OPTIONS).state_dict(), identity("edsr-tiny", OPTIONS, 2))
    return file


def run(*arguments: object) -> int:
    return exit_code("upscale", *arguments)


@pytest.fixture
def lr(rng: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize((40, 30)))


def test_a_folder(tmp_path: Path, model: Path, lr: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(lr).save(tmp_path / "in" / "a.png")
    Image.fromarray(lr).convert("L").save(tmp_path / "in" / "b.bmp")
    assert run(tmp_path / "in", "--weights", model, "--out", tmp_path / "out", "--compare") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_x2.png", "a_x2_compare.png", "b_x2.png", "b_x2_compare.png"]
    expected = super_resolve(load_network(model), lr)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a_x2.png")), expected)


def test_transparency_is_kept(tmp_path: Path, model: Path, lr: np.ndarray, rng: np.random.Generator) -> None:
    alpha = rng.integers(0, 256, (*lr.shape[:2], 1), dtype=np.uint8)
    Image.fromarray(np.dstack([lr, alpha])).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--weights", model, "--out", tmp_path / "out") == 0
    made = np.asarray(Image.open(tmp_path / "out" / "a_x2.png"))
    np.testing.assert_array_equal(made[..., :3], super_resolve(load_network(model), lr))
    np.testing.assert_array_equal(made[..., 3:], bicubic_upsample(alpha, 2))


def test_the_ensemble_is_the_mean_of_eight_runs(model: Path, lr: np.ndarray) -> None:
    network = load_network(model)
    x = torch.from_numpy(lr.copy()).permute(2, 0, 1)[None].float() / 255
    runs = []
    with torch.no_grad():
        for quarter in range(4):
            for mirror in (False, True):
                turned = torch.rot90(x.flip(3) if mirror else x, quarter, (2, 3))
                back = torch.rot90(network(turned), -quarter, (2, 3))
                runs.append(back.flip(3) if mirror else back)
    mean = torch.stack(runs).mean(0)[0].clamp(0, 1).mul(255).add(0.5).byte().permute(1, 2, 0).numpy()
    ours = super_resolve(network, lr, ensemble=True)
    off = np.abs(ours.astype(int) - mean.astype(int))
    assert off.max() <= 1 and (off > 0).mean() < 1e-3  # eight sums in another order
    assert (ours != super_resolve(network, lr)).any()


def test_nothing_is_overwritten(tmp_path: Path, model: Path, lr: np.ndarray, capsys: pytest.CaptureFixture) -> None:
    Image.fromarray(lr).save(tmp_path / "a.png")
    arguments = (tmp_path / "a.png", "--weights", model, "--out", tmp_path / "out")
    assert run(*arguments) == 0
    assert run(*arguments) == 2
    assert "a_x2.png exists; replace it with --force, leave it with --skip-existing" in capsys.readouterr().err
    assert run(*arguments, "--force", "--tile", "16", "--ensemble") == 0
    assert "a.png: 40 x 30 goes through in 6 tiles of 16 x 16, about" in capsys.readouterr().out


def test_a_folder_of_all_sorts(tmp_path: Path, model: Path, lr: np.ndarray, capsys: pytest.CaptureFixture) -> None:
    """What cannot be read is named, each in a line, and all the rest is made where it belongs."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "trip" / "day one").mkdir(parents=True)
    image = Image.fromarray(lr)
    for name in ("a.png", "trip/a.png", "trip/day one/b.jpg", "still.gif"):
        image.save(photos / name)
    image.save(photos / "moving.gif", save_all=True, append_images=[Image.fromarray(255 - lr)])
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:500])
    for name in ("notes.txt", "README.md", "table.csv", "c.psd"):
        (photos / name).write_text("The summer of 2024.")
    assert run(photos, "--weights", model, "--out", out) == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("failed: ")] == [
        f"failed: {photos / 'c.psd'} is of a format that is not read; convert it to PNG",
        f"failed: cannot read image {photos / 'broken.png'}: Truncated File Read; replace or remove it",
        f"failed: {photos / 'moving.gif'} is animated, 2 frames; take out the one you want",
    ]
    assert "3 other files among the images, passed over: README.md, notes.txt, table.csv" in shown
    assert re.fullmatch(re.escape(f"4 images x2 in {out}, 3 failed, ") + r"[\d.]+ m?s", shown[-1])
    made = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert made == ["a_x2.png", "still_x2.png", "trip/a_x2.png", "trip/day one/b_x2.png"]
    # Once more, what is there being left out: also where the results lie among the photographs.
    image.save(photos / "new.png")
    out.rename(photos / "out")
    assert run(photos, "--weights", model, "--out", photos / "out", "--skip-existing") == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1].startswith(f"1 image x2 in {photos / 'out'}, 3 failed, 4 skipped (there already), ")
    # The first fault ends a run where that is asked for.
    assert run(photos, "--weights", model, "--out", tmp_path / "strict", "--strict") == 2
    assert "c.psd is of a format that is not read" in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()


def test_images_beside_their_results(tmp_path: Path, model: Path, lr: np.ndarray) -> None:
    Image.fromarray(lr).save(tmp_path / "a.png")
    for _ in range(2):
        assert run(tmp_path, "--weights", model, "--out", tmp_path, "--compare", "--force") == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"a.png", "a_x2.png", "a_x2_compare.png"}


def test_two_images_of_one_name(tmp_path: Path, model: Path, lr: np.ndarray, capsys: pytest.CaptureFixture) -> None:
    for name in ("a.png", "a.bmp", "b.png", "other/b.png", "other/b.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(lr).save(tmp_path / name)
    weights = ("--weights", model, "--out", tmp_path / "out")
    assert run(tmp_path / "a.png", tmp_path / "a.bmp", tmp_path / "a.png", tmp_path / "other", *weights) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.bmp_x2.png",
        "a.png_x2.png",
        "b.bmp_x2.png",
        "b.png_x2.png",
    ]
    again = ("--weights", model, "--out", tmp_path / "again")
    assert run(tmp_path / "b.png", tmp_path / "other", *again) == 1
    assert "would both become" in capsys.readouterr().out
    assert len(list((tmp_path / "again").iterdir())) == 2


def test_a_photograph_keeps_what_is_told_of_it(tmp_path: Path, model: Path, lr: np.ndarray) -> None:
    exif = camera()
    exif[0x0112] = 6
    Image.fromarray(lr).save(tmp_path / "a.jpg", quality=95, icc_profile=SRGB, dpi=(300, 300), exif=exif)
    assert run(tmp_path / "a.jpg", "--weights", model, "--out", tmp_path / "out") == 0
    for kind in ("jpg", "webp", "tiff"):
        assert run(tmp_path / "a.jpg", "--weights", model, "--out", tmp_path / "out", "--format", kind) == 0
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")))
    for kind in FORMATS:
        with Image.open(tmp_path / "out" / f"a_x2.{kind}") as made:
            assert made.size == (60, 80) and made.info["icc_profile"] == SRGB
            found = made.getexif()
            assert found[0x010F] == "Maker" and found[0x0112] == 1
            details = found.get_ifd(0x8769)
            assert (details[0xA002], details[0xA003], details[36867]) == (60, 80, "2024:05:01 10:20:30")
            assert found.get_ifd(0x8825)[1] == "N"
            if kind != "webp":
                assert made.info["dpi"] == pytest.approx((300, 300), abs=0.02)
            if kind in ("png", "tiff"):
                np.testing.assert_array_equal(np.asarray(made), super_resolve(load_network(model), upright))


def test_16_bits_in_16_bits_out(tmp_path: Path, model: Path, rng: np.random.Generator) -> None:
    """The network sees the values themselves, not their upper 8 bits."""
    coarse = rng.random((4, 5, 3))
    deep = np.kron(coarse, np.ones((8, 8, 1))) * 6000 + rng.integers(0, 200, (32, 40, 3))
    deep = deep.astype(np.uint16)
    (tmp_path / "colour.png").write_bytes(deep_png(deep, 2))
    (tmp_path / "colour.tif").write_bytes(deep_tiff(deep))
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.png")
    (tmp_path / "clear.png").write_bytes(deep_png(np.dstack([deep, deep[..., :1]]), 6))
    assert run(tmp_path, "--weights", model, "--out", tmp_path / "out") == 0
    network = load_network(model)
    with torch.no_grad():
        x = torch.from_numpy(deep.astype(np.float32)).permute(2, 0, 1)[None] / 65535
        expected = network(x)[0].permute(1, 2, 0).clamp(0, 1).mul(65535).numpy()
    assert len(np.unique(expected.round())) > 1000 and expected.std() > 100
    for name in ("colour.png_x2.png", "colour.tif_x2.png", "clear_x2.png"):
        made = read_photograph(tmp_path / "out" / name, Notes())
        assert made.pixels.dtype == np.uint16
        assert np.abs(made.pixels - expected).max() <= 1
        if name.startswith("clear"):
            np.testing.assert_array_equal(made.alpha, bicubic_upsample(deep[..., :1], 2))
    grey = read_photograph(tmp_path / "out" / "grey_x2.png", Notes()).pixels
    assert grey.dtype == np.uint16 and grey.shape == (64, 80, 1)
    sr = super_resolve(network, deep[..., :1].repeat(3, axis=2)).astype(float)
    assert np.abs(grey[..., 0] - sr @ [0.299, 0.587, 0.114]).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_stays_grey(mode: str, tmp_path: Path, model: Path, lr: np.ndarray) -> None:
    Image.fromarray(lr).convert(mode).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--weights", model, "--out", tmp_path / "out", "--compare") == 0
    with Image.open(tmp_path / "out" / "a_x2.png") as made:
        assert made.mode == ("LA" if mode == "LA" else "L")
        rgb = super_resolve(load_network(model), np.asarray(Image.open(tmp_path / "a.png").convert("RGB")))
        luma = np.asarray(Image.fromarray(rgb).convert("L")).astype(int)
        assert np.abs(np.asarray(made.getchannel(0)) - luma).max() <= 1


def test_a_format_that_cannot_hold_an_image(
    tmp_path: Path, model: Path, lr: np.ndarray, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(lr).convert("RGBA").save(tmp_path / "a.png")
    Image.fromarray(lr).save(tmp_path / "b.png")
    assert run(tmp_path, "--weights", model, "--out", tmp_path / "out", "--format", "jpg") == 1
    assert "a.png is transparent, which JPEG cannot hold" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b_x2.jpg"]


def test_a_full_disk_ends_a_run_and_leaves_no_half_file(
    tmp_path: Path, model: Path, lr: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(photo: object, kind: str, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "encode", full)
    Image.fromarray(lr).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--weights", model, "--out", tmp_path / "out") == 2
    assert "No space left on device; make room and go on with --skip-existing" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_run_that_is_stopped_goes_on(
    tmp_path: Path, model: Path, lr: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a.png", "b.png", "c [1].png"):
        Image.fromarray(lr).save(tmp_path / name)
    read = module.read_photograph

    def interrupted(path: Path, notes: Notes) -> Photograph:
        if path.name == "b.png":
            os.kill(os.getpid(), signal.SIGTERM)
        return read(path, notes)

    monkeypatch.setattr(module, "read_photograph", interrupted)
    out = tmp_path / "out"
    assert run(tmp_path, "--weights", model, "--out", out) == 130
    assert "stopped, 2 of 3 images done; --skip-existing goes on" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["a_x2.png", "b_x2.png"]
    monkeypatch.undo()
    (out / ".c [1]_x2.png.1234.tmp").write_bytes(b"half")  # had it been killed while writing
    assert run(tmp_path, "--weights", model, "--out", out, "--skip-existing") == 0
    assert sorted(path.name for path in out.iterdir()) == ["a_x2.png", "b_x2.png", "c [1]_x2.png"]


def test_little_memory(
    tmp_path: Path, model: Path, lr: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """An image that does not fit goes through in tiles, which is said, and to the same pixels."""
    large = np.tile(lr, (5, 6, 1))
    Image.fromarray(large).save(tmp_path / "a.png")
    monkeypatch.setattr(inference, "free_memory", lambda device: 4_000_000)
    assert run(tmp_path / "a.png", "--weights", model, "--out", tmp_path / "out") == 0
    said = re.search(
        r"a\.png: 240 x 150 goes through in (\d+) tiles of (\d+) x \2, about .*s, (.*)", capsys.readouterr().out
    )
    assert said is not None and said[3] == "since 3.57 MB are free"  # what the result takes is not
    assert int(said[1]) == -(-240 // int(said[2])) * -(-150 // int(said[2])) > 1
    monkeypatch.undo()
    made = np.asarray(Image.open(tmp_path / "out" / "a_x2.png")).astype(int)
    off = np.abs(made - super_resolve(load_network(model), large))
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_in_bounds(tmp_path: Path) -> None:
    """A megapixel in 20 MB and the room of its result: as a whole it would take 200 MB."""
    options = {"blocks": 1, "channels": 8}
    save_weights(
        tmp_path / "w.safetensors", build("edsr-tiny", 2, **options).state_dict(), identity("edsr-tiny", options, 2)
    )
    Image.fromarray(np.zeros((800, 1200, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((99, 99, 3), dtype=np.uint8)).save(tmp_path / "small.png")
    script = """
import sys
from pathlib import Path
from eco_fast.commands.upscale import upscale
from eco_fast.evaluate import inference

def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024

folder = Path(sys.argv[1])
upscale([folder / "small.png"], folder / "w.safetensors", folder / "out", tile=32)
before = memory("VmRSS")
inference.free_memory = lambda device: 11_520_000 + 20_000_000  # the result, and for the rest
upscale([folder / "a.png"], folder / "w.safetensors", folder / "out")
print(memory("VmHWM") - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    *said, took = result.stdout.splitlines()
    assert "a.png: 1200 x 800 goes through in" in said[-2] and "since 20.0 MB are free" in said[-2]
    assert 11.5e6 < int(took) < (11.5 + 20 + 2.9 + 3.8) * 1e6  # beside these the image, and Pillow's copy of it


def test_threads_change_no_more_than_rounding(tmp_path: Path, model: Path, lr: np.ndarray) -> None:
    Image.fromarray(lr).save(tmp_path / "a.png")
    before, made = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            out = tmp_path / str(count)
            assert run(tmp_path / "a.png", "--weights", model, "--out", out, "--threads", count, "--device", "cpu") == 0
            assert torch.get_num_threads() == count
            made.append(np.asarray(Image.open(out / "a_x2.png")).astype(int))
    finally:
        torch.set_num_threads(before)
    assert np.abs(made[0] - made[1]).max() <= 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--tile", "0"), "--tile 0"),
        (("--precision", "x"), "precision"),
        (("--format", "gif"), "--format gif cannot be written; take one of png"),
        (("--threads", "0"), "--threads 0"),
        (("--device", "tpu"), "--device tpu"),
        (("--force", "--skip-existing"), "contradict"),
        ((), "no images in"),
    ],
)
def test_bad_options(
    tmp_path: Path, model: Path, option: tuple[str, str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert run(tmp_path, "--weights", model, "--out", tmp_path / "out", *option) == 2
    assert message in capsys.readouterr().err
