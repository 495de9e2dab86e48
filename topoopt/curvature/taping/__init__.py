"""Watching the user's own step: the tape, and what it writes down."""
