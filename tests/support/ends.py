"""The table of ends that a rendered project has; its own contract test reads the page."""

from template.tests.test_contract import ENDS, End, ends, proven_in

__all__ = ["ENDS", "End", "ends", "proven_in"]
