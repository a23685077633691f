"""The run's money: reserved before a call is sent, settled when its answer is on disk."""
