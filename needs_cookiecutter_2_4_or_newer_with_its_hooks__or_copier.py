"""What Cookiecutter finds where hooks/pre_prompt.py has not run: a sentence, or, before 2.0, this module's name."""

raise ImportError(
    "This template needs Cookiecutter 2.4 or newer with its hooks (not `--accept-hooks no`, not cruft), "
    "or Copier: `uvx copier copy SOURCE my-agent`, which updates the project later as well."
)
