"""Hosts: which module of a seq2seq model plays which site, per model family."""
