"""What may be sent now: rates, calls in flight, money."""
