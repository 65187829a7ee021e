"""A small English-German corpus with real grammar, made on the spot: data for the quickstart."""

from fusion.synthetic.corpus import VERSION, Corpus, Pair, generate, write

__all__ = ["VERSION", "Corpus", "Pair", "generate", "write"]
