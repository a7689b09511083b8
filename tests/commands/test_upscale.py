"""`eco-fast upscale`: files in, PNG files out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.cli import main
from eco_fast.evaluate.bicubic import bicubic_upsample
from eco_fast.evaluate.inference import super_resolve
from eco_fast.models import build
from eco_fast.models.weights import identity, load_network, save_weights

OPTIONS = {"blocks": 1, "channels": 4}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    file = tmp_path / "net.safetensors"
    save_weights(file, build("edsr-tiny", 2, **OPTIONS).state_dict(), identity("edsr-tiny", OPTIONS, 2))
    return file


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["upscale", *map(str, arguments)])
    return int(end.value.code or 0)


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
    assert "a_x2.png exists; replace it with --force" in capsys.readouterr().err
    assert run(*arguments, "--force", "--tile", "16", "--ensemble") == 0


def test_two_images_of_one_name(tmp_path: Path, model: Path, lr: np.ndarray, capsys: pytest.CaptureFixture) -> None:
    for ending in ("png", "bmp"):
        Image.fromarray(lr).save(tmp_path / f"a.{ending}")
    assert run(tmp_path / "a.png", tmp_path / "a.bmp", "--weights", model, "--out", tmp_path / "out") == 2
    assert "would both become" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "message"), [(("--tile", "0"), "--tile 0"), (("--precision", "x"), "precision")])
def test_bad_options(
    tmp_path: Path, model: Path, option: tuple[str, str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert run(tmp_path, "--weights", model, "--out", tmp_path / "out", *option) == 2
    assert message in capsys.readouterr().err
