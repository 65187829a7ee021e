"""The closed classes: determiners, pronouns, prepositions, modals, copulas; and Tense."""

from dataclasses import dataclass
from enum import Enum

from fusion.synthetic.german import Case, Declension
from fusion.synthetic.lexicon import Noun, Verb

Tense = Enum("Tense", "PRESENT PROGRESSIVE PAST PERFECT FUTURE")


@dataclass(frozen=True)
class Determiner:
    """`en_plural` is empty where English plurals stand bare; None where there is no such form."""

    en_singular: str | None
    en_plural: str | None
    de: str
    declension: Declension

    @property
    def definite(self) -> bool:
        return self.declension in ("der", "dieser") or self.de in _POSSESSIVE_STEMS


_POSSESSIVE_STEMS = ("mein", "dein", "sein", "ihr", "unser")
THE = Determiner("the", "the", "", "der")
A = Determiner("a", "", "ein", "ein")
NOT_A = Determiner("a", "", "kein", "ein")
NO = Determiner("no", "no", "kein", "ein")
THIS = Determiner("this", "these", "dies", "dieser")
EVERY = Determiner("every", None, "jed", "dieser")
WHICH = Determiner("which", "which", "welch", "dieser")
MY, YOUR, HIS, HER, OUR, THEIR = (
    Determiner(word, word, stem, "ein")
    for word, stem in zip(
        ("my", "your", "his", "her", "our", "their"),
        ("mein", "dein", "sein", "ihr", "unser", "ihr"),
        strict=True,
    )
)
MANY, SOME, FEW = (
    Determiner(None, word, stem, "strong")
    for word, stem in (("many", "viel"), ("some", "einig"), ("few", "wenig"))
)
NUMERALS = tuple(
    Determiner(None, word, number, "none")
    for word, number in (
        ("two", "zwei"),
        ("three", "drei"),
        ("four", "vier"),
        ("five", "fünf"),
        ("six", "sechs"),
        ("seven", "sieben"),
        ("eight", "acht"),
        ("ten", "zehn"),
        ("twenty", "zwanzig"),
    )
)


@dataclass(frozen=True)
class Pronoun:
    en_subject: str
    en_object: str
    nom: str
    acc: str
    dat: str
    reflexive: str
    person: int
    plural: bool
    pronominal: bool = True
    definite: bool = True

    def english(self, subject: bool) -> str:
        return self.en_subject if subject else self.en_object

    def german(self, case: Case) -> str:
        return {"nom": self.nom, "acc": self.acc, "dat": self.dat, "gen": ""}[case]


I = Pronoun("I", "me", "ich", "mich", "mir", "mich", 1, False)  # noqa: E741
YOU = Pronoun("you", "you", "du", "dich", "dir", "dich", 2, False)
HE = Pronoun("he", "him", "er", "ihn", "ihm", "sich", 3, False)
SHE = Pronoun("she", "her", "sie", "sie", "ihr", "sich", 3, False)
WE = Pronoun("we", "us", "wir", "uns", "uns", "uns", 1, True)
THEY = Pronoun("they", "them", "sie", "sie", "ihnen", "sich", 3, True)
WHO = Pronoun("who", "who", "wer", "wen", "wem", "sich", 3, False)
WHAT = Pronoun("what", "what", "was", "was", "was", "sich", 3, False)
WEATHER_IT = Pronoun("it", "it", "es", "es", "ihm", "sich", 3, False)


def it(noun: Noun, plural: bool) -> Pronoun:
    """The pronoun for a thing: English `it`, German by gender."""
    if plural:
        return THEY
    nom = {"m": "er", "f": "sie", "n": "es"}[noun.gender]
    acc = {"m": "ihn", "f": "sie", "n": "es"}[noun.gender]
    dat = {"m": "ihm", "f": "ihr", "n": "ihm"}[noun.gender]
    return Pronoun("it", "it", nom, acc, dat, "sich", 3, False)


@dataclass(frozen=True)
class Phrase:
    """A fixed phrase: an adverb, a time, a question word."""

    en: str
    de: str


@dataclass(frozen=True)
class Preposition:
    en: str
    de: str
    case: Case


@dataclass(frozen=True)
class Modal:
    """`en_past` is None without a past; `to` marks an ordinary verb with `to` (want to)."""

    en: str
    en_past: str | None
    to: bool
    infinitive: str
    de: str
    de_second: str
    de_past: str


CAN = Modal("can", "could", False, "können", "kann", "kannst", "konnte")
MUST = Modal("must", "had to", False, "müssen", "muss", "musst", "musste")
WANT = Modal("want", "wanted", True, "wollen", "will", "willst", "wollte")
SHOULD = Modal("should", None, False, "sollten", "sollte", "solltest", "sollte")
MAY = Modal("may", None, False, "dürfen", "darf", "darfst", "durfte")


def _copula(base: str, past: str, done: str, ing: str, german_forms: str, sein: bool) -> Verb:
    de_infinitive, prefix, third, second, participle, preterite = german_forms.split(",")
    return Verb(
        base,
        past,
        done,
        ing,
        "",
        False,
        de_infinitive,
        prefix,
        third,
        second,
        participle,
        preterite,
        sein=sein,
        reflexive=False,
        stative=True,
        rare=False,
    )


BE = _copula("be", "was", "been", "being", "sein,,ist,bist,gewesen,war", True)
BECOME = _copula("become", "became", "become", "becoming", "werden,,wird,wirst,geworden,", True)
LOOK = _copula("look", "looked", "looked", "looking", "sehen,aus,sieht,siehst,ausgesehen,", False)


HAVE = _copula("have", "had", "had", "having", "haben,,hat,hast,gehabt,hatte", False)
