"""What is tried before machines are paid for: `plan` and `doctor`."""
