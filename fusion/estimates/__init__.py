"""What training a recipe needs and costs, before it starts: memory, step time, cache, disk.

One training step is run on meta: shapes only, no values. That counts what the model really does,
whatever host, encoders and glue it has: floating point operations, bytes moved, and the bytes that
are alive at the worst moment. A table of hardware makes seconds of it.
"""
