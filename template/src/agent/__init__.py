"""A LiveKit voice agent whose calls end well. See AGENTS.md for where things live."""
