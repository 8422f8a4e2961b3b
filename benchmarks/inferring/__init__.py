"""What the inference benchmarks share."""
