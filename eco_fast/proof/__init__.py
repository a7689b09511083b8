"""`eco-fast doctor --gpu-proof`: checks and measurements for the owner of a GPU, and their report."""
