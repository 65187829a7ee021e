"""English inflection: articles, possessives and verb groups."""

from fusion.synthetic.lexicon import Verb, english_plural

_AN = ("a", "e", "i", "o", "u")
_SOUNDS_AN = ("honest", "hour", "heir")
_SOUNDS_A = ("university", "uniform", "useful", "european")


def indefinite_article(next_word: str) -> str:
    if next_word.startswith(_SOUNDS_AN):
        return "an"
    vowel = next_word.startswith(_AN) and not next_word.startswith(_SOUNDS_A)
    return "an" if vowel else "a"


def possessive(phrase: str, plural: bool) -> str:
    return phrase + ("'" if plural and phrase.endswith("s") else "'s")


def be(person: int, plural: bool, past: bool) -> str:
    if plural or person == 2:
        return "were" if past else "are"
    if past:
        return "was"
    return "am" if person == 1 else "is"


def have(person: int, plural: bool) -> str:
    return "has" if person == 3 and not plural else "have"


def do(person: int, plural: bool) -> str:
    return "does" if person == 3 and not plural else "do"


def third_person(base: str) -> str:
    """`watches`, `carries`, `goes`."""
    return {"have": "has", "go": "goes"}.get(base) or english_plural(base)


def present(verb: Verb, person: int, plural: bool) -> str:
    return third_person(verb.en) if person == 3 and not plural else verb.en
