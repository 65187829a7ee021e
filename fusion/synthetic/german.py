"""German inflection: noun, article, adjective and verb forms."""

import re
from typing import Literal

from fusion.synthetic.lexicon import Gender, Noun, Verb

Case = Literal["nom", "acc", "dat", "gen"]
Declension = Literal["der", "dieser", "ein", "strong", "none"]

_CASES: tuple[Case, ...] = ("nom", "acc", "dat", "gen")
_THE = {
    "m": "der den dem des",
    "f": "die die der der",
    "n": "das das dem des",
    "pl": "die die den der",
}
_DIESER = {"m": "er en em es", "f": "e e er er", "n": "es es em es", "pl": "e e en er"}
_EIN = {"m": "- en em es", "f": "e e er er", "n": "- - em es", "pl": "e e en er"}
_WEAK = {"m": "e en en en", "f": "e e en en", "n": "e e en en", "pl": "en en en en"}
_MIXED = {"m": "er en en en", "f": "e e en en", "n": "es es en en", "pl": "en en en en"}
_STRONG = {"m": "er en em en", "f": "e e er er", "n": "es es em en", "pl": "e e en er"}
_RELATIVE = {
    "m": "der den dem dessen",
    "f": "die die der deren",
    "n": "das das dem dessen",
    "pl": "die die denen deren",
}
_ARTICLES = {"dieser": _DIESER, "ein": _EIN, "strong": _STRONG}
_CONTRACTIONS = {
    "in dem": "im",
    "in das": "ins",
    "an dem": "am",
    "an das": "ans",
    "zu dem": "zum",
    "zu der": "zur",
    "von dem": "vom",
}
_INSEPARABLE = ("be", "ent", "er", "ge", "ver", "zer", "miss")
# One vowel group, yet with a genitive in -s.
_GENITIVE_S = ("Film", "Park", "Chef", "Schal", "Spion", "Plan")
_SEIN = {(1, False): "bin", (2, False): "bist", (3, False): "ist"}


def _cell(table: dict[str, str], gender: Gender, plural: bool, case: Case) -> str:
    cell = table["pl" if plural else gender].split()[_CASES.index(case)]
    return "" if cell == "-" else cell


def article(stem: str, declension: Declension, gender: Gender, plural: bool, case: Case) -> str:
    """`der`; or the stem with its ending (`dies` -> `diesem`, `ein` -> `eines`)."""
    if declension == "der":
        return _cell(_THE, gender, plural, case)
    if declension == "none":
        return stem
    return stem + _cell(_ARTICLES[declension], gender, plural, case)


def relative_pronoun(gender: Gender, plural: bool, case: Case) -> str:
    return _cell(_RELATIVE, gender, plural, case)


def adjective_ending(after: Declension, gender: Gender, plural: bool, case: Case) -> str:
    """The ending that an adjective takes after an article of this declension."""
    if after in ("der", "dieser"):
        return _cell(_WEAK, gender, plural, case)
    return _cell(_MIXED if after == "ein" else _STRONG, gender, plural, case)


def decline(noun: Noun, plural: bool, case: Case) -> str:
    if plural:
        dative_n = case == "dat" and noun.de_plural[-1] not in "ns"
        return noun.de_plural + ("n" if dative_n else "")
    if noun.weak and case != "nom":
        return noun.de_plural
    if case != "gen" or noun.gender == "f":
        return noun.de
    return _genitive(noun.de)


def _genitive(word: str) -> str:
    if word in ("Kaktus", "Tennis"):
        return word
    if word.endswith(("nis", "us")) and not word.endswith("aus"):
        return word + "ses"
    if word.endswith(("s", "ß", "x", "z", "sch")):
        return word + "es"
    syllables = len(re.findall(r"(?:[aeiouäöüy]+)", word.lower()))
    short = syllables == 1 and word not in _GENITIVE_S and word[-1] not in "aeiouy"
    return word + ("es" if short else "s")


def contract(preposition: str, article_form: str) -> str:
    """`in` + `dem` -> `im`; side by side where German has no contraction."""
    both = f"{preposition} {article_form}".strip()
    return _CONTRACTIONS.get(both, both)


def _stem(verb: Verb) -> str:
    return verb.de[:-2] if verb.de.endswith("en") else verb.de[:-1]


def _needs_e(stem: str) -> bool:
    return stem.endswith(("t", "d")) or bool(re.search(r"(?:[^aeiouäöülrhmn]|ch)[mn]$", stem))


def present(verb: Verb, person: int, plural: bool) -> str:
    """The finite form without a separable prefix, in the present."""
    if verb.de == "sein":
        return "sind" if plural else _SEIN[person, plural]
    if plural:
        return verb.de
    stem = _stem(verb)
    if person == 1:
        if verb.preterite and verb.de != "haben":
            return verb.de_third
        return (stem[:-2] + "l" if verb.de.endswith("eln") else stem) + "e"
    if person == 2:
        return verb.de_second or _second(verb, stem)
    return verb.de_third or stem + ("et" if _needs_e(stem) else "t")


def _second(verb: Verb, stem: str) -> str:
    if verb.de_third:
        stem = verb.de_third[:-1]
    elif _needs_e(stem):
        return stem + "est"
    return stem + ("t" if stem[-1] in "sßxz" else "st")


def preterite(form: str, person: int, plural: bool) -> str:
    """Inflect a preterite given as its er-form (`hatte`, `war`, `musste`)."""
    if plural:
        return form + ("n" if form.endswith("e") else "en")
    return form + ("st" if person == 2 else "")


def participle(verb: Verb) -> str:
    if verb.de_participle:
        return verb.de_participle
    stem = _stem(verb)
    ge = "" if verb.de.startswith(_INSEPARABLE) or verb.de.endswith("ieren") else "ge"
    return verb.prefix + ge + stem + ("et" if _needs_e(stem) else "t")


def infinitive(verb: Verb) -> str:
    return verb.prefix + verb.de


def zu_infinitive(verb: Verb) -> str:
    return f"{verb.prefix}zu{verb.de}" if verb.prefix else f"zu {verb.de}"
