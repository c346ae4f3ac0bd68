"""Engines: from token ids to a stream of events."""
