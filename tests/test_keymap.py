"""Rules run both ways, match whole names, and never guess."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.errors import KeyMapError
from fusion.keymap import KeyMap, Pattern, Rule, nearest_pattern

COMPONENT = st.text("abcdef_0123456789", min_size=1, max_size=6)
NAME = st.lists(COMPONENT, min_size=1, max_size=5).map(".".join)


@st.composite
def rules(draw: st.DrawFn) -> tuple[Rule, str]:
    """A rule whose holes stand between dots, in another order on either side; a name it matches."""
    holes = draw(st.lists(st.sampled_from("ijkl"), min_size=1, max_size=3, unique=True))
    holes = [f"{{{hole}}}" for hole in holes]
    if draw(st.booleans()):
        holes.append("{p*}")
    sides = []
    for label in ("x", "y"):
        fixed = [f"{label}{name}" for name in draw(st.lists(COMPONENT, min_size=1, max_size=3))]
        sides.append(".".join(draw(st.permutations(fixed + holes))))
    values = {hole.strip("{}*"): draw(NAME if "*" in hole else COMPONENT) for hole in holes}
    return Rule(*sides), Pattern(sides[0]).fill(values)


@given(rules())
def test_a_name_goes_there_and_comes_back(case: tuple[Rule, str]) -> None:
    rule, target = case
    source = rule.source_of(target)
    assert source is not None
    assert rule.target_of(source) == target
    keymap = KeyMap([rule])
    assert keymap.target_of(keymap.source_of(target)) == target
    assert keymap.unused() == []


@given(rules(), NAME)
def test_a_name_is_mapped_reversibly_or_not_at_all(case: tuple[Rule, str], name: str) -> None:
    rule, _ = case
    try:
        source = rule.source_of(name)
    except KeyMapError:
        return
    assert source is None or rule.target_of(source) == name


@given(NAME)
def test_a_name_that_no_rule_matches_keeps_its_name(name: str) -> None:
    keymap = KeyMap([Rule("X.{i}", "Y.{i}")])
    assert keymap.source_of(name) == name
    assert keymap.target_of(name) == name
    assert len(keymap.unused()) == 1


def test_the_example_of_the_documentation_holds() -> None:
    keymap = KeyMap([Rule("encoder.layers.{i}.fc1.{p}", "enc.{i}.ffn_in.{p}")])
    assert keymap.source_of("encoder.layers.10.fc1.weight") == "enc.10.ffn_in.weight"
    assert keymap.target_of("enc.10.ffn_in.weight") == "encoder.layers.10.fc1.weight"


def test_layers_1_never_matches_layers_10() -> None:
    keymap = KeyMap([Rule("layers.1.{p*}", "first.{p*}"), Rule("layers.10.{p*}", "tenth.{p*}")])
    assert keymap.source_of("layers.1.fc.weight") == "first.fc.weight"
    assert keymap.source_of("layers.10.fc.weight") == "tenth.fc.weight"
    assert keymap.source_of("layers.100.fc.weight") == "layers.100.fc.weight"
    assert keymap.source_of("model.layers.1.fc.weight") == "model.layers.1.fc.weight"


def test_a_dot_in_a_pattern_is_a_dot_and_a_plain_hole_holds_no_dot() -> None:
    assert Pattern("a.b").match("axb") is None
    assert Pattern("a.{i}").match("a.1.2") is None
    assert Pattern("a.{i*}").match("a.1.2") == {"i": "1.2"}
    assert Pattern("a.{i}").match("a.") is None
    assert Pattern("{i}.{i}").match("1.1") == {"i": "1"}
    assert Pattern("{i}.{i}").match("1.2") is None
    assert Pattern("{i}.x.{j*}").holes == ["i", "j"]


def test_two_rules_that_match_one_name_are_an_error_both_ways() -> None:
    keymap = KeyMap([Rule("a.{i}", "b.{i}"), Rule("a.{p*}", "c.{p*}"), Rule("d.{i}", "b.{i}")])
    message = '"a.1": more than one rule matches: rule "a.{i}" <- "b.{i}" and rule "a.{p*}" <- '
    with pytest.raises(KeyMapError, match=re.escape(message)):
        keymap.source_of("a.1")
    with pytest.raises(KeyMapError, match="more than one rule matches"):
        keymap.target_of("b.1")
    assert keymap.source_of("a.1.2") == "c.1.2"


def test_unused_rules_are_those_that_matched_nothing_so_far() -> None:
    used, unused = Rule("a.{i}", "b.{i}"), Rule("c.{i}", "d.{i}")
    keymap = KeyMap([used, unused])
    assert keymap.unused() == [used, unused]
    keymap.source_of("a.1")
    assert keymap.unused() == [unused]
    keymap.target_of("d.1")
    assert keymap.unused() == []


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("a.{i}", "b", 'rule "a.{i}" <- "b": hole on one side only: {i}'),
        ("a.{i}", "b.{j}", 'rule "a.{i}" <- "b.{j}": hole on one side only: {i}, {j}'),
        ("a.{p}", "b.{p*}", 'rule "a.{p}" <- "b.{p*}": hole on one side only: {p}, {p*}'),
        ("a.{1}", "b.{1}", '"a.{1}": a brace that is no hole; holes look like {i} or {p*}'),
        ("a.{i", "b.{i", '"a.{i": a brace that is no hole; holes look like {i} or {p*}'),
        ("a.{}", "b.{}", '"a.{}": a brace that is no hole; holes look like {i} or {p*}'),
        ("{p}.{p*}", "{p}", '"{p}.{p*}": one hole is written both {p} and {p*}'),
    ],
)
def test_holes_that_cannot_run_backwards_are_an_error(
    target: str, source: str, message: str
) -> None:
    with pytest.raises(KeyMapError) as caught:
        Rule(target, source)
    assert str(caught.value) == message


def test_a_hole_that_nothing_fills_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(KeyMapError) as caught:
        Pattern("a.{layer}").fill({"layers": "1"})
    assert str(caught.value) == '"a.{layer}": nothing fills the hole {layer}; nearest: "layers"'


def test_a_name_that_would_not_come_back_is_an_error_and_no_guess() -> None:
    keymap = KeyMap([Rule("{a*}.{b*}", "{b*}.{a*}")])
    assert keymap.source_of("1.2") == "2.1"
    with pytest.raises(
        KeyMapError, match=r'"1.2.3" would become "3.1.2", which does not lead back'
    ):
        keymap.source_of("1.2.3")


# Rules as they are written


def test_a_rule_is_a_pattern_or_a_mapping() -> None:
    assert Rule.parse("a.{p}", "b.{p}") == Rule("a.{p}", "b.{p}")
    assert Rule.parse("a.{p}", {"from": "b.{p}"}) == Rule("a.{p}", "b.{p}")
    written = {"from": ["q.{p}", "k.{p}"], "ops": [{"concat": 0}, "transpose"]}
    rule = Rule.parse("a.{p}", written)
    assert rule.sources == ("q.{p}", "k.{p}") and rule.operations == ({"concat": 0}, "transpose")
    assert Rule.parse("a", {"from": "b", "ops": "transpose"}).operations == ("transpose",)
    assert Rule.parse("a", {"from": "b", "ops": {"scale": 2}}).operations == ({"scale": 2},)
    assert Rule.parse("a", {"from": "b", "ops": [], "where": None}) == Rule("a", "b")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, 'rule "a.{p}": a source pattern, or from: with ops: and where:'),
        (["b.{p}"], 'rule "a.{p}": a source pattern, or from: with ops: and where:'),
        ({"ops": ["transpose"]}, 'rule "a.{p}": a source pattern, or from: with ops: and where:'),
        ({"from": "b.{p}", "opps": []}, 'rule "a.{p}": no key "opps"; nearest: "ops"'),
        ({"from": "b.{p}", "were": {}}, 'rule "a.{p}": no key "were"; nearest: "where"'),
        ({"from": []}, 'rule "a.{p}": from: a pattern or a list of them; found []'),
        ({"from": 5}, 'rule "a.{p}": from: a pattern or a list of them; found 5'),
        ({"from": ["b.{p}", 5]}, 'from: a pattern or a list of them; found ["b.{p}", 5]'),
        ({"from": {"b.{p}": 1}}, "from: a pattern or a list of them; found {"),
        ({"from": "b.{p}", "ops": 5}, 'rule "a.{p}": ops: a list of operations; found 5'),
        ({"from": "b.{p}", "ops": [5]}, "ops: a list of operations; found [5]"),
        ({"from": "b.{p}", "where": [0, 2]}, 'rule "a.{p}": where: a mapping of holes'),
        ({"from": "b.{p}", "where": {"p": 3}}, "where: a list (by number) or a mapping; found 3"),
        ({"from": "b.{p}", "where": {"q": [1]}}, 'where: no hole {q}; known: p'),
        ({"from": ["b.{p}", "c"]}, '"b.{p}" + "c": hole on one side only: {p}'),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_read_says_what_is_wrong_with_it(
    written: object, message: str
) -> None:
    with pytest.raises(KeyMapError) as caught:
        Rule.parse("a.{p}", written)
    assert message.replace('"', "'") in str(caught.value).replace('"', "'")


# Several sources


def test_several_sources_are_named_in_order_and_lead_back_to_one_target() -> None:
    keymap = KeyMap.parse({"layers.{i}.qkv.{p}": {"from": [f"l.{{i}}.{n}.{{p}}" for n in "qkv"]}})
    hit = keymap.rule_of("layers.10.qkv.bias")
    assert hit is not None and hit[1] == ("l.10.q.bias", "l.10.k.bias", "l.10.v.bias")
    assert keymap.source_of("layers.10.qkv.bias") == "l.10.q.bias"
    for name in "qkv":
        assert keymap.target_of(f"l.10.{name}.bias") == "layers.10.qkv.bias"
    assert keymap.rule_of("layers.10.qkv") is None


def test_a_source_of_two_rules_leads_back_to_neither() -> None:
    keymap = KeyMap.parse({"one.{p}": "same.{p}", "two.{p}": {"from": ["same.{p}", "more.{p}"]}})
    with pytest.raises(KeyMapError, match="more than one rule matches"):
        keymap.target_of("same.weight")
    assert keymap.target_of("more.weight") == "two.weight"


def test_a_source_may_have_a_name_before_a_colon() -> None:
    keymap = KeyMap.parse({"encoder.{p*}": "host:encoder.{p*}"})
    assert keymap.source_of("encoder.0.weight") == "host:encoder.0.weight"
    assert keymap.target_of("host:encoder.0.weight") == "encoder.0.weight"
    assert keymap.target_of("bert:encoder.0.weight") == "bert:encoder.0.weight"


# Where


def test_where_takes_every_second_layer_and_the_last_one_twice() -> None:
    rule = Rule.parse("new.{i}.{p}", {"from": "old.{i}.{p}", "where": {"i": [0, 2, 4, 4]}})
    assert [rule.source_of(f"new.{i}.w") for i in range(4)] == [
        "old.0.w",
        "old.2.w",
        "old.4.w",
        "old.4.w",
    ]
    assert [rule.target_of(f"old.{i}.w") for i in (0, 2, 4)] == ["new.0.w", "new.1.w", "new.2.w"]
    assert rule.target_of("old.1.w") is None


def test_where_as_a_mapping_renames_what_a_hole_stands_for() -> None:
    sides = {"encoder": "src", "x": "tgt"}
    rule = Rule.parse("{side}.{p}", {"from": "model_{side}.{p}", "where": {"side": sides}})
    assert rule.source_of("encoder.w") == "model_src.w"
    assert rule.target_of("model_tgt.w") == "x.w"


def test_where_that_says_nothing_of_a_value_is_an_error_with_those_it_has() -> None:
    keymap = KeyMap.parse({"new.{i}.{p}": {"from": "old.{i}.{p}", "where": {"i": [0, 2]}}})
    with pytest.raises(KeyMapError) as caught:
        keymap.source_of("new.2.weight")
    assert str(caught.value) == (
        'rule "new.{i}.{p}" <- "old.{i}.{p}": "new.2.weight": where.i says nothing of 2; '
        "it has 0, 1"
    )


@given(rules(), st.data())
def test_a_one_to_one_where_goes_there_and_comes_back(
    case: tuple[Rule, str], data: st.DataObject
) -> None:
    plain, target = case
    values = Pattern(plain.target).match(target)
    assert values is not None
    hole = data.draw(st.sampled_from(sorted(hole for hole in values if hole != "p")))
    table = {values[hole]: data.draw(COMPONENT)}
    rule = Rule(plain.target, plain.source, (), {hole: table})
    source = rule.source_of(target)
    assert source == Pattern(plain.sources[0]).fill(values | {hole: table[values[hole]]})
    assert rule.target_of(source) == target


# Suggestions


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("fc33.{p}", '; nearest: "fc3.{p}"'),
        ("encoder.layer.{i}.fc1.{p}", '; nearest: "encoder.layers.{i}.fc1.{p}"'),
        ("encoder.layer.{p*}", '; nearest: "encoder.layers.{p*}"'),
        ("encoder.layers.0.fc1.wieght", '; nearest: "encoder.layers.0.fc1.weight"'),
        ("12345", "; known: encoder.layers.0.fc1.bias, encoder.layers.0.fc1.weight, fc3.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_gets_one_that_does(pattern: str, near: str) -> None:
    names = ["encoder.layers.0.fc1.weight", "encoder.layers.0.fc1.bias", "fc3.weight"]
    assert nearest_pattern(pattern, names) == near
