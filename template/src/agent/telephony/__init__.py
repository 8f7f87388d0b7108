"""The telephone: calls that the agent makes, and calls that it hands on."""
