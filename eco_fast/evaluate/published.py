"""Published figures, to compare one's own with: Lee & Heo, AAAI 2024 (arXiv 2312.17526), Table 1."""

from eco_fast.errors import UserError

SETS = ("Set5", "Set14", "BSD100", "Urban100", "Manga109")

_ROWS = {  # network-scale-mode -> PSNR-Y in dB / SSIM-Y, in the order of SETS
    "edsr-x2-vanilla": "38.18/.9612 33.82/.9197 32.33/.9016 32.83/.9349 39.05/.9777",
    "edsr-x2-eco": "38.29/.9615 34.07/.9210 32.37/.9022 33.07/.9369 39.26/.9782",
    "rcan-x2-vanilla": "38.26/.9615 34.04/.9215 32.35/.9019 33.05/.9364 39.34/.9783",
    "rcan-x2-eco": "38.28/.9615 34.07/.9215 32.39/.9023 33.22/.9378 39.39/.9783",
    "edsr-x3-vanilla": "34.70/.9294 30.58/.8468 29.26/.8095 28.75/.8648 34.17/.9485",
    "edsr-x3-eco": "34.80/.9302 30.64/.8476 29.32/.8108 28.95/.8679 34.36/.9496",
    "rcan-x3-vanilla": "34.80/.9302 30.62/.8476 29.32/.8107 29.01/.8685 34.48/.9500",
    "rcan-x3-eco": "34.86/.9306 30.68/.8484 29.33/.8111 29.09/.8700 34.56/.9504",
    "edsr-x4-vanilla": "32.50/.8986 28.81/.7871 27.71/.7416 26.55/.8018 30.97/.9145",
    "edsr-x4-eco": "32.59/.8998 28.90/.7892 27.78/.7432 26.77/.8064 31.32/.9182",
    "rcan-x4-vanilla": "32.71/.9008 28.87/.7887 27.77/.7434 26.83/.8078 31.31/.9168",
    "rcan-x4-eco": "32.70/.9011 28.91/.7895 27.80/.7437 26.88/.8086 31.38/.9174",
}


def names() -> list[str]:
    """Names of the published rows, NETWORK-SCALE-MODE such as edsr-x4-eco."""
    return list(_ROWS)


def published(name: str) -> dict[str, tuple[float, float]]:
    """Set -> (PSNR-Y in dB, SSIM-Y).

    Raises:
        UserError: There is no such row.
    """
    if name not in _ROWS:
        raise UserError(f"no published figures for {name}; there are {', '.join(_ROWS)}")
    pairs = (cell.split("/") for cell in _ROWS[name].split())
    return {data: (float(psnr), float(ssim)) for data, (psnr, ssim) in zip(SETS, pairs, strict=True)}


def scale_of(name: str) -> int:
    """The scale in the name of a published row."""
    return int(name.split("-")[1].removeprefix("x"))
