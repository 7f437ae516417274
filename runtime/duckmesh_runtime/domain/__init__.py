"""Pure rules of the lake: values in, values out; no I/O, clock, randomness, environment or logger."""
