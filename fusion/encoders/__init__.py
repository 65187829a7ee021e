"""Encoders: a pretrained encoder turned into memory."""
