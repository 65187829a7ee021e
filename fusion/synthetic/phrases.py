"""The small words: adverbs, times, conjunctions, prepositions and names."""

from fusion.synthetic.closed_class import Phrase, Preposition, Tense
from fusion.synthetic.lexicon import Verb

WOMEN = ("Anna", "Maria", "Laura", "Julia", "Sarah")
NAMES = (*WOMEN, "Peter", "Paul", "Martin", "David", "Robert")


def _phrases(table: str) -> tuple[Phrase, ...]:
    pairs = (entry.split("=") for entry in table.split(";"))
    return tuple(Phrase(" ".join(english.split()), german.strip()) for english, german in pairs)


_WEEKDAYS = _phrases(
    """on Monday=am Montag; on Tuesday=am Dienstag; on Wednesday=am Mittwoch;
    on Thursday=am Donnerstag; on Friday=am Freitag; on Saturday=am Samstag; on Sunday=am Sonntag"""
)
_SEASONS = _phrases(
    """in summer=im Sommer; in winter=im Winter; in spring=im Frühling; in autumn=im Herbst;
    in January=im Januar; in March=im März; in May=im Mai; in July=im Juli; in August=im August;
    in October=im Oktober; in December=im Dezember"""
)
_DAYTIMES = _phrases(
    """in the morning=am Morgen; in the evening=am Abend; at night=in der Nacht;
    in the afternoon=am Nachmittag; at noon=am Mittag; on the weekend=am Wochenende"""
)
_HABITS = _phrases(
    """every day=jeden Tag; every morning=jeden Morgen; every evening=jeden Abend;
    every week=jede Woche; every year=jedes Jahr; today=heute"""
)
_BYGONE = _phrases(
    """yesterday=gestern; last week=letzte Woche; last year=letztes Jahr; today=heute;
    last month=letzten Monat; two days ago=vor zwei Tagen; a week ago=vor einer Woche;
    three years ago=vor drei Jahren; this morning=heute Morgen; last night=letzte Nacht;
    yesterday evening=gestern Abend; an hour ago=vor einer Stunde"""
)
_COMING = _phrases(
    """tomorrow=morgen; soon=bald; next week=nächste Woche; next year=nächstes Jahr;
    tonight=heute Abend; next month=nächsten Monat; in two days=in zwei Tagen;
    in an hour=in einer Stunde; today=heute; later=später"""
)
NOW = (Phrase("", "gerade"), Phrase("now", "jetzt"))
TENSE_TIMES = {
    Tense.PRESENT: (*_HABITS, *_HABITS, *_DAYTIMES, *_SEASONS, *_WEEKDAYS),
    Tense.PAST: (*_BYGONE, *_BYGONE, *_WEEKDAYS, *_DAYTIMES),
    Tense.FUTURE: (*_COMING, *_COMING, *_WEEKDAYS, *_SEASONS),
}
FREQUENCIES = _phrases(
    """often=oft; always=immer; never=nie; sometimes=manchmal; rarely=selten; usually=meistens"""
)
OFTEN = Phrase("often", "oft")
NEVER_YET = _phrases("already=schon; never=nie; often=oft")
MANNERS = _phrases(
    """well=gut; slowly=langsam; alone=allein; together=zusammen; loudly=laut; badly=schlecht;
    here=hier; there=dort"""
)
# Before a noun, English has no `a too old car`.
ATTRIBUTIVE_DEGREES = _phrases("very=sehr; really=wirklich")
VERY = Phrase("very", "sehr")
DEGREES = _phrases("very=sehr; very=sehr; too=zu; really=wirklich; quite=ziemlich; so=so")
OPINIONS = _phrases(
    """unfortunately,=leider; perhaps=vielleicht; of course,=natürlich; fortunately,=zum Glück"""
)

TURNS = _phrases("suddenly,=plötzlich; finally,=endlich")

THAT = Phrase("that", "dass")
WHETHER = Phrase("whether", "ob")
IF = Phrase("if", "wenn")
WHEN = Phrase("when", "wenn")
WHEN_PAST = Phrase("when", "als")
CONJUNCTIONS = (
    Phrase("because", "weil"),
    Phrase("because", "weil"),
    Phrase("although", "obwohl"),
    Phrase("while", "während"),
    Phrase("before", "bevor"),
    Phrase("until", "bis"),
)

TO = Preposition("to", "zu", "dat")
INTO = Preposition("into", "in", "acc")
WITH = Preposition("with", "mit", "dat")
WITHOUT = Preposition("without", "ohne", "acc")
BECAUSE_OF = Preposition("because of", "wegen", "gen")
DURING = Preposition("during", "während", "gen")
IN = Preposition("in", "in", "dat")
ON = Preposition("on", "auf", "dat")
UNDER = Preposition("under", "unter", "dat")
# Each preposition of place, the kinds that it goes with, and its weight.
LOCATIONS: tuple[tuple[tuple[Preposition, tuple[str, ...]], int], ...] = (
    ((IN, ("building", "room", "area")), 40),
    ((ON, ("onarea",)), 10),
    ((Preposition("by", "an", "dat"), ("shore", "opening")), 7),
    ((Preposition("at", "an", "dat"), ("station",)), 6),
    ((Preposition("behind", "hinter", "dat"), ("building", "car", "door", "tree")), 6),
    ((Preposition("in front of", "vor", "dat"), ("building", "door", "car")), 7),
    ((Preposition("next to", "neben", "dat"), ("building", "table", "window", "door")), 5),
    ((UNDER, ("tree", "bridge", "table")), 4),
)


def _weather(base: str, past: str, ing: str, german: str) -> Verb:
    fixed = ("", False, german, "", "", "", "", "")
    return Verb(
        base, past, past, ing, *fixed, sein=False, reflexive=False, stative=False, rare=False
    )


WEATHER = (
    _weather("rain", "rained", "raining", "regnen"),
    _weather("snow", "snowed", "snowing", "schneien"),
)
