"""Copier and Cookiecutter make the same project."""
