"""Tests of releases, and of updates from one to another."""
