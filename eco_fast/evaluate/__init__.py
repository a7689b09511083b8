"""One protocol for every PSNR and SSIM: metrics, bicubic baseline, benchmark sets, reports and pictures."""
