"""Finite work: rows in, dataset out."""
