"""Calls spread over worker actors."""
