"""What happens to a run from outside: signals, and other processes."""
