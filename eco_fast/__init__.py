"""eco-fast: fast training of single-image super-resolution networks with ECO (Lee & Heo, AAAI 2024)."""

__version__ = "0.1.0"
