"""Frozen memory, computed once and read by memory map.

`formats` says how a token's states are written, `store` what lies on disk, `locks` who uses it and
`listing` what may go, `fill` computes what is missing, `reader` makes training batches of it, and
`prepare` does all that for a recipe. `store`, `locks` and `listing` need no torch, for
`fusion cache`.
"""
