"""Tests of the projects of every combination of answers."""
