"""The grammar, against sentences and tables that a teacher would sign."""

import pytest

from fusion.synthetic import closed_class as closed
from fusion.synthetic import german as de
from fusion.synthetic.closed_class import Determiner, Phrase, Preposition, Tense
from fusion.synthetic.grammar import (
    Clause,
    Coordination,
    Name,
    NounPhrase,
    Order,
    PrepPhrase,
    Quality,
    RelativePronoun,
    Role,
    english,
    german,
    sentence,
)
from fusion.synthetic.lexicon import adjective, noun, verb

YESTERDAY = Phrase("yesterday", "gestern")
OFTEN = Phrase("often", "oft")
THE_MAN = NounPhrase(noun("man"))
TO = Preposition("to", "zu", "dat")
IN = Preposition("in", "in", "dat")


def both(clause: Clause, order: Order = Order.MAIN, end: str = ".") -> tuple[str, str]:
    return sentence(english(clause, order), end), sentence(german(clause, order), end)


def the(
    name: str, determiner: Determiner = closed.THE, quality: str = "", plural: bool = False
) -> NounPhrase:
    adjectives = ((None, adjective(quality)),) if quality else ()
    return NounPhrase(noun(name), determiner, adjectives, plural)


DECLENSION = [
    (
        "man",
        closed.THE,
        False,
        "der alte Mann; den alten Mann; dem alten Mann; des alten Mannes",
    ),
    (
        "woman",
        closed.THE,
        False,
        "die alte Frau; die alte Frau; der alten Frau; der alten Frau",
    ),
    ("house", closed.THE, False, "das alte Haus; das alte Haus; dem alten Haus; des alten Hauses"),
    (
        "house",
        closed.THE,
        True,
        "die alten Häuser; die alten Häuser; den alten Häusern; der alten Häuser",
    ),
    (
        "man",
        closed.A,
        False,
        "ein alter Mann; einen alten Mann; einem alten Mann; eines alten Mannes",
    ),
    (
        "woman",
        closed.A,
        False,
        "eine alte Frau; eine alte Frau; einer alten Frau; einer alten Frau",
    ),
    (
        "house",
        closed.A,
        False,
        "ein altes Haus; ein altes Haus; einem alten Haus; eines alten Hauses",
    ),
    ("house", closed.A, True, "alte Häuser; alte Häuser; alten Häusern; alter Häuser"),
    (
        "house",
        closed.MY,
        True,
        "meine alten Häuser; meine alten Häuser; meinen alten Häusern; meiner alten Häuser",
    ),
    (
        "house",
        closed.NO,
        False,
        "kein altes Haus; kein altes Haus; keinem alten Haus; keines alten Hauses",
    ),
    ("man", closed.OUR, False, "unser alter Mann; unseren alten Mann; unserem alten Mann;"),
    (
        "dog",
        closed.THIS,
        False,
        "dieser alte Hund; diesen alten Hund; diesem alten Hund; dieses alten Hundes",
    ),
    (
        "car",
        closed.EVERY,
        False,
        "jedes alte Auto; jedes alte Auto; jedem alten Auto; jedes alten Autos",
    ),
    (
        "car",
        closed.MANY,
        True,
        "viele alte Autos; viele alte Autos; vielen alten Autos; vieler alter Autos",
    ),
    ("man", closed.NUMERALS[0], True, "zwei alte Männer; zwei alte Männer; zwei alten Männern;"),
    (
        "boy",
        closed.THE,
        False,
        "der alte Junge; den alten Jungen; dem alten Jungen; des alten Jungen",
    ),
    (
        "neighbor",
        closed.A,
        False,
        "ein alter Nachbar; einen alten Nachbarn; einem alten Nachbarn; eines alten Nachbarn",
    ),
]


@pytest.mark.parametrize(("name", "determiner", "plural", "expected"), DECLENSION)
def test_articles_adjectives_and_nouns_agree_in_every_case(
    name: str, determiner: Determiner, plural: bool, expected: str
) -> None:
    phrase = the(name, determiner, "old", plural)
    cases: tuple[de.Case, ...] = ("nom", "acc", "dat", "gen")
    for case, form in zip(cases, expected.split("; "), strict=False):
        assert phrase.german(case) == form.rstrip(";")


@pytest.mark.parametrize(
    ("quality", "expected"),
    [
        ("expensive", "ein teures Bild"),
        ("dark", "ein dunkles Bild"),
        ("high", "ein hohes Bild"),
        ("tired", "ein müdes Bild"),
        ("noble", "ein edles Bild"),
        ("good", "ein gutes Bild"),
    ],
)
def test_adjectives_with_a_special_stem_inflect_from_it(quality: str, expected: str) -> None:
    assert the("picture", closed.A, quality).german("nom") == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bus", "des Busses"),
        ("prison", "des Gefängnisses"),
        ("hospital", "des Krankenhauses"),
        ("lion", "des Löwen"),
        ("student", "des Studenten"),
        ("film", "des Films"),
        ("girl", "des Mädchens"),
        ("child", "des Kindes"),
        ("taxi", "des Taxis"),
    ],
)
def test_genitives_take_the_right_ending(name: str, expected: str) -> None:
    assert the(name).german("gen") == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("car", "Autos"),
        ("child", "Kindern"),
        ("girl", "Mädchen"),
        ("woman", "Frauen"),
        ("museum", "Museen"),
    ],
)
def test_dative_plurals_add_n_unless_they_end_in_n_or_s(name: str, expected: str) -> None:
    assert de.decline(noun(name), True, "dat") == expected


@pytest.mark.parametrize(
    ("name", "expected", "participle"),
    [
        ("read", "lese liest liest lesen", "gelesen"),
        ("open", "öffne öffnest öffnet öffnen", "geöffnet"),
        ("draw", "zeichne zeichnest zeichnet zeichnen", "gezeichnet"),
        ("play", "spiele spielst spielt spielen", "gespielt"),
        ("smile", "lächle lächelst lächelt lächeln", "gelächelt"),
        ("dance", "tanze tanzt tanzt tanzen", "getanzt"),
        ("find", "finde findest findet finden", "gefunden"),
        ("give", "gebe gibst gibt geben", "gegeben"),
        ("stop", "halte hältst hält halten", "angehalten"),
        ("invite", "lade lädst lädt laden", "eingeladen"),
        ("like", "mag magst mag mögen", "gemocht"),
        ("have", "habe hast hat haben", "gehabt"),
        ("repair", "repariere reparierst repariert reparieren", "repariert"),
        ("examine", "untersuche untersuchst untersucht untersuchen", "untersucht"),
        ("pray", "bete betest betet beten", "gebetet"),
        ("collect", "sammle sammelst sammelt sammeln", "gesammelt"),
        ("prepare", "bereite bereitest bereitet bereiten", "vorbereitet"),
    ],
)
def test_verbs_conjugate(name: str, expected: str, participle: str) -> None:
    v = verb(name)
    forms = [de.present(v, person, False) for person in (1, 2, 3)] + [de.present(v, 1, True)]
    assert " ".join(forms) == expected
    assert de.participle(v) == participle


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        (
            Clause(THE_MAN, verb("call"), Tense.PAST, accusative=closed.HE, time=YESTERDAY),
            ("The man called him yesterday.", "Der Mann hat ihn gestern angerufen."),
        ),
        (
            Clause(THE_MAN, verb("call"), accusative=the("doctor")),
            ("The man calls the doctor.", "Der Mann ruft den Arzt an."),
        ),
        (
            Clause(closed.SHE, verb("pick up"), Tense.FUTURE, accusative=closed.THEY),
            ("She will pick them up.", "Sie wird sie abholen."),
        ),
        (
            Clause(closed.WE, verb("arrive"), Tense.PAST),
            ("We arrived.", "Wir sind angekommen."),
        ),
        (
            Clause(closed.I, verb("get up"), modal=closed.MUST),
            ("I must get up.", "Ich muss aufstehen."),
        ),
    ],
)
def test_separable_verbs_split_and_rejoin(clause: Clause, expected: tuple[str, str]) -> None:
    assert both(clause) == expected


def test_a_fronted_time_inverts_german_but_not_english() -> None:
    to_school = PrepPhrase(TO, the("school"))
    clause = Clause(
        THE_MAN, verb("go", "dir"), Tense.PAST, time=YESTERDAY, front=YESTERDAY, target=to_school
    )
    assert both(clause) == (
        "Yesterday the man went to the school.",
        "Gestern ist der Mann zur Schule gegangen.",
    )


def test_the_verb_is_last_after_a_conjunction() -> None:
    inner = Clause(the("train"), verb("leave"), Tense.PAST)
    outer = Clause(closed.I, verb("know", "that"), content=(Phrase("that", "dass"), inner))
    assert both(outer) == (
        "I know that the train left.",
        "Ich weiß, dass der Zug abgefahren ist.",
    )


def test_a_separable_verb_is_one_word_at_the_end_of_a_subordinate_clause() -> None:
    inner = Clause(the("train"), verb("leave"))
    outer = Clause(closed.HE, verb("ask", "whether"), content=(Phrase("whether", "ob"), inner))
    assert both(outer) == ("He asks whether the train leaves.", "Er fragt, ob der Zug abfährt.")


def test_a_modal_is_last_in_a_subordinate_clause() -> None:
    inner = Clause(closed.SHE, verb("read"), modal=closed.CAN, accusative=the("letter"))
    assert german(inner, Order.SUBORDINATE) == "sie den Brief lesen kann"


def test_zu_stands_inside_a_separable_infinitive() -> None:
    inner = Clause(closed.SHE, verb("pick up"), accusative=closed.HE)
    outer = Clause(closed.SHE, verb("try"), infinitive=inner)
    assert both(outer) == ("She tries to pick him up.", "Sie versucht, ihn abzuholen.")


def test_dative_precedes_accusative() -> None:
    clause = Clause(
        the("woman"),
        verb("give"),
        Tense.PAST,
        dative=the("child"),
        accusative=the("apple", closed.A),
    )
    assert both(clause) == (
        "The woman gave the child an apple.",
        "Die Frau hat dem Kind einen Apfel gegeben.",
    )


def test_some_verbs_govern_the_dative() -> None:
    clause = Clause(closed.HE, verb("help"), dative=the("woman", closed.THIS))
    assert both(clause) == ("He helps this woman.", "Er hilft dieser Frau.")


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        (
            Clause(closed.HE, verb("have"), negated=True, accusative=the("car", closed.A)),
            ("He does not have a car.", "Er hat kein Auto."),
        ),
        (
            Clause(closed.HE, verb("read"), Tense.PAST, negated=True, accusative=the("book")),
            ("He did not read the book.", "Er hat das Buch nicht gelesen."),
        ),
        (
            Clause(closed.SHE, verb("live"), negated=True, place=PrepPhrase(IN, the("city"))),
            ("She does not live in the city.", "Sie wohnt nicht in der Stadt."),
        ),
        (
            Clause(closed.I, closed.BE, negated=True, predicate=Quality(adjective("tired"))),
            ("I am not tired.", "Ich bin nicht müde."),
        ),
    ],
)
def test_negation_uses_kein_or_places_nicht(clause: Clause, expected: tuple[str, str]) -> None:
    assert both(clause) == expected


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        (
            Clause(closed.YOU, verb("read"), accusative=the("newspaper")),
            ("Do you read the newspaper?", "Liest du die Zeitung?"),
        ),
        (
            Clause(the("bus"), verb("stop"), Tense.PAST, front=Phrase("why", "warum")),
            ("Why did the bus stop?", "Warum hat der Bus angehalten?"),
        ),
        (
            Clause(THE_MAN, verb("eat"), accusative=closed.WHAT),
            ("What does the man eat?", "Was isst der Mann?"),
        ),
        (
            Clause(the("soup"), closed.BE, predicate=Quality(adjective("hot"))),
            ("Is the soup hot?", "Ist die Suppe heiß?"),
        ),
    ],
)
def test_questions_invert_and_english_takes_do(clause: Clause, expected: tuple[str, str]) -> None:
    assert both(clause, Order.QUESTION, "?") == expected


def test_who_as_subject_takes_no_do() -> None:
    clause = Clause(closed.WHO, verb("open"), Tense.PAST, accusative=the("door"))
    assert both(clause, Order.MAIN, "?") == ("Who opened the door?", "Wer hat die Tür geöffnet?")


def test_relative_clauses_are_verb_final_between_commas() -> None:
    inner = Clause(
        RelativePronoun("m", False, True), verb("live"), place=PrepPhrase(IN, the("village"))
    )
    head = NounPhrase(noun("man"), relative=inner)
    clause = Clause(head, verb("love"), accusative=the("music"))
    assert both(clause) == (
        "The man who lives in the village loves the music.",
        "Der Mann, der im Dorf wohnt, liebt die Musik.",
    )


def test_a_relative_pronoun_takes_its_case_from_its_own_clause() -> None:
    inner = Clause(
        closed.I, verb("read"), Tense.PAST, accusative=RelativePronoun("m", False, False)
    )
    clause = Clause(
        NounPhrase(noun("letter"), relative=inner),
        closed.BE,
        Tense.PAST,
        predicate=Quality(adjective("long")),
    )
    assert both(clause) == (
        "The letter that I read was long.",
        "Der Brief, den ich gelesen habe, war lang.",
    )


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        (PrepPhrase(IN, the("garden")), "im Garten"),
        (PrepPhrase(IN, the("garden", quality="big")), "im großen Garten"),
        (PrepPhrase(IN, the("city")), "in der Stadt"),
        (PrepPhrase(TO, the("station")), "zum Bahnhof"),
        (PrepPhrase(TO, the("school")), "zur Schule"),
        (PrepPhrase(Preposition("by", "an", "dat"), the("river")), "am Fluss"),
        (PrepPhrase(Preposition("into", "in", "acc"), the("house")), "ins Haus"),
        (PrepPhrase(Preposition("by", "von", "dat"), the("teacher")), "vom Lehrer"),
        (PrepPhrase(IN, the("house", plural=True)), "in den Häusern"),
        (PrepPhrase(Preposition("because of", "wegen", "gen"), the("rain")), "wegen des Regens"),
        (PrepPhrase(Preposition("with", "mit", "dat"), the("coffee", closed.A)), "mit Kaffee"),
        (PrepPhrase(TO, Name("Anna")), "zu Anna"),
    ],
)
def test_prepositions_govern_a_case_and_contract(phrase: PrepPhrase, expected: str) -> None:
    assert phrase.de == expected


def test_owners_stand_in_the_genitive() -> None:
    house = NounPhrase(noun("house"), owner=the("teacher"))
    assert (house.english(True), house.german("nom")) == (
        "the teacher's house",
        "das Haus des Lehrers",
    )
    old = NounPhrase(noun("house"), adjectives=((None, adjective("old")),), owner=Name("Anna"))
    assert (old.english(True), old.german("nom")) == ("Anna's old house", "Annas altes Haus")


def test_a_bare_profession_has_no_german_article() -> None:
    clause = Clause(closed.HE, closed.BE, predicate=Role(the("engineer", closed.A)))
    assert both(clause) == ("He is an engineer.", "Er ist Ingenieur.")
    good = Clause(closed.HE, closed.BE, predicate=Role(the("doctor", closed.A, "good")))
    assert both(good) == ("He is a good doctor.", "Er ist ein guter Arzt.")


def test_comparatives_and_equals() -> None:
    faster = Quality(adjective("fast"), than=the("bike"))
    assert both(Clause(the("car"), closed.BE, predicate=faster)) == (
        "The car is faster than the bike.",
        "Das Auto ist schneller als das Fahrrad.",
    )
    equal = Quality(adjective("expensive"), equal_to=the("lamp"))
    assert both(Clause(the("clock"), closed.BE, predicate=equal)) == (
        "The clock is as expensive as the lamp.",
        "Die Uhr ist so teuer wie die Lampe.",
    )


def test_the_passive_is_built_with_werden() -> None:
    agent = PrepPhrase(Preposition("by", "von", "dat"), the("mechanic"))
    clause = Clause(the("car"), verb("repair"), Tense.PAST, passive=True, target=agent)
    assert both(clause) == (
        "The car was repaired by the mechanic.",
        "Das Auto wurde vom Mechaniker repariert.",
    )


def test_reflexive_pronouns_agree_with_the_subject() -> None:
    past = Phrase("yesterday", "gestern")
    assert both(Clause(closed.I, verb("rest"), Tense.PAST, time=past))[1] == (
        "Ich habe mich gestern ausgeruht."
    )
    pair = Coordination(the("father"), the("mother"))
    assert both(Clause(pair, verb("hurry")))[1] == "Der Vater und die Mutter beeilen sich."


def test_after_inversion_an_unmistakable_pronoun_precedes_a_noun_subject() -> None:
    him = Clause(THE_MAN, verb("see"), Tense.PAST, accusative=closed.HE, front=YESTERDAY)
    assert both(him)[1] == "Gestern hat ihn der Mann gesehen."
    her = Clause(THE_MAN, verb("see"), Tense.PAST, accusative=closed.SHE, front=YESTERDAY)
    assert both(her)[1] == "Gestern hat der Mann sie gesehen."
    rest = Clause(THE_MAN, verb("rest"), Tense.PAST, front=YESTERDAY)
    assert both(rest)[1] == "Gestern hat sich der Mann ausgeruht."


def test_cannot_is_one_word() -> None:
    clause = Clause(THE_MAN, verb("swim"), modal=closed.CAN, negated=True)
    assert both(clause) == ("The man cannot swim.", "Der Mann kann nicht schwimmen.")


def test_english_articles_follow_the_sound_and_verbs_their_subject() -> None:
    assert the("apple", closed.A).english(False) == "an apple"
    assert the("apple", closed.A, "red").english(False) == "a red apple"
    assert the("university", closed.A).english(False) == "a university"
    assert the("friend", closed.A, "honest").english(False) == "an honest friend"
    carry = Clause(closed.SHE, verb("carry"), accusative=the("bag"), frequency=OFTEN)
    assert both(carry) == ("She often carries the bag.", "Sie trägt die Tasche oft.")
