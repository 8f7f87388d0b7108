"""What carries a call: a LiveKit room, a terminal, a test."""
