"""Every answer that was paid for, on disk before anything can fail on it."""
