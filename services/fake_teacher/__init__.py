"""The shipped stand-in teacher: both providers' dialects on one port, real limits, faults on demand, its own bill."""
