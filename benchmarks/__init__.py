"""Speed, told as ratios within one run: Top-K and training."""
