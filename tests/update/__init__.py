"""Releases, and updates from one to another."""
