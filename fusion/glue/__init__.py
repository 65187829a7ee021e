"""Glue: the new modules that mix an encoder's memory into the host; one file per method."""
