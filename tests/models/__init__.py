"""The stand-in for model servers, proven with the real clients that talk to it."""
