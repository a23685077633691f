"""Owners of a resource: a socket, a file, an actor."""
