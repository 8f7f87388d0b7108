"""Brings a newer template to a project: tried in a copy, and only what fits and passes is kept."""
