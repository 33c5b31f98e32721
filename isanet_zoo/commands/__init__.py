"""Commands of `isanet-zoo`."""
