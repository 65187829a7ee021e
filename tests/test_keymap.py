"""Rules run both ways, match whole names, and never guess."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.errors import KeyMapError
from fusion.keymap import KeyMap, Pattern, Rule

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
