"""Cookiecutter prints this error (before 2.0 only this name) if hooks/pre_prompt.py did not run."""

raise ImportError(
    "This template needs Cookiecutter 2.4 or newer with its hooks (not `--accept-hooks no`, not "
    "cruft), or Copier: `uvx copier copy SOURCE my-agent`, which also updates the project later."
)
