"""Machine unlearning in JAX, and an honest measure of how much was forgotten."""
