"""How fast training is: measured against itself, the device and PyTorch."""
