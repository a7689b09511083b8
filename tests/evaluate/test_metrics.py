"""The protocol: against scikit-image, and figures that can be worked out by hand."""

import math

import numpy as np
import pytest

from eco_fast.evaluate.metrics import both, luma, psnr_y, ssim_y


def _pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random image, odd sizes included, and a noisy copy; every third pair is pure noise."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(40, 180, 2)
    down, across = np.mgrid[:height, :width]
    waves = [np.sin(down * a + across * b) for a, b in generator.uniform(-0.4, 0.4, (3, 2))]
    image = 127 + 120 * np.stack(waves, axis=-1)
    if seed % 3 == 0:
        image = generator.uniform(0, 255, image.shape)
    noisy = image + generator.normal(0, 1 + 3 * seed, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_scikit_image(seed: int) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    sr, hr = _pair(seed)
    border = 2 + seed % 3
    a, b = (luma(image)[border:-border, border:-border] for image in (sr, hr))
    _, full = metrics.structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
    )
    assert ssim_y(sr, hr, border) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)
    assert psnr_y(sr, hr, border) == pytest.approx(metrics.peak_signal_noise_ratio(b, a, data_range=255), abs=1e-9)
    assert both(sr, hr, border) == (psnr_y(sr, hr, border), ssim_y(sr, hr, border))


def test_luma_is_bt601_on_the_studio_range() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    assert luma(colours)[0] == pytest.approx([16, 235, 16 + 65.481, 16 + 128.553, 16 + 24.966])
    assert luma(colours).dtype == np.float64


def test_psnr_of_a_constant_difference() -> None:
    hr = np.full((20, 24, 3), 100, dtype=np.uint8)
    # One grey level is 219 / 255 levels of luma.
    assert psnr_y(hr + np.uint8(1), hr, 0) == pytest.approx(20 * math.log10(255 / (219 / 255)))


def test_equal_images() -> None:
    hr = _pair(1)[1]
    assert both(hr, hr, 2) == (math.inf, pytest.approx(1.0))


def test_the_border_is_left_out() -> None:
    hr = _pair(2)[1]
    sr = hr.copy()
    sr[:3], sr[-3:], sr[:, :3], sr[:, -3:] = 0, 255, 0, 255
    assert psnr_y(sr, hr, 3) == math.inf
    assert psnr_y(sr, hr, 2) < math.inf


@pytest.mark.parametrize(
    ("sr", "hr", "border"),
    [
        (np.zeros((20, 20, 3), np.uint8), np.zeros((20, 22, 3), np.uint8), 2),
        (np.zeros((20, 20, 3), np.float32), np.zeros((20, 20, 3), np.float32), 2),
        (np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8), 2),
        (np.zeros((8, 20, 3), np.uint8), np.zeros((8, 20, 3), np.uint8), 4),
    ],
)
def test_wrong_images(sr: np.ndarray, hr: np.ndarray, border: int) -> None:
    with pytest.raises(ValueError, match=r"shape|uint8|border"):
        psnr_y(sr, hr, border)


def test_ssim_needs_a_window() -> None:
    small = np.zeros((14, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="11 x 11"):
        ssim_y(small, small, 2)


def test_grey_values(rng: np.random.Generator) -> None:
    """Of images with three equal channels they are the values themselves, whatever luma makes of them."""
    hr, sr = (rng.integers(0, 256, (30, 40, 1), dtype=np.uint8).repeat(3, axis=2) for _ in range(2))
    a, b = (image[2:-2, 2:-2, 0].astype(np.float64) for image in (sr, hr))
    psnr, ssim = both(sr, hr, 2, grey=True)
    assert psnr == pytest.approx(10 * math.log10(255**2 / ((a - b) ** 2).mean()))
    assert psnr == pytest.approx(psnr_y(sr, hr, 2) - 20 * math.log10(255 / 219))
    metrics = pytest.importorskip("skimage.metrics")
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "full": True}
    full = metrics.structural_similarity(a, b, **settings)[1]
    assert ssim == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)
    assert (psnr_y(sr, hr, 2, grey=True), ssim_y(sr, hr, 2, grey=True)) == (psnr, ssim)
