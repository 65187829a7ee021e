"""The patterns that name sites: by role, by number, by range."""

from __future__ import annotations

import pytest

from fusion.errors import SiteError
from fusion.hosts.select import select_sites

SITES = [
    f"{side}_attention".replace("#", str(layer))
    for side in ("encoder.#.self", "decoder.#.self", "decoder.#.cross")
    for layer in (0, 1, 10)
]
DEEP = [
    "encoder.embeddings",
    "encoder.output",
    *(f"decoder.{layer}.{kind}" for layer in range(12) for kind in ("output", "cross_attention")),
]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["encoder.*.self_attention"], SITES[:3]),
        (["encoder.1.self_attention"], ["encoder.1.self_attention"]),
        (["encoder.{0,10}.self_attention"], [SITES[0], SITES[2]]),
        (["encoder.{0, 1}.self_attention"], SITES[:2]),
        (["decoder.{0,1}.*"], ["decoder.0.", "decoder.1."]),
        (["{encoder,decoder}.0.self_attention"], [SITES[0], SITES[3]]),
        (["{encoder,decoder}.{0,1}.self_attention"], [*SITES[:2], *SITES[3:5]]),
        (["*.*.*"], SITES),
        (["**.cross_attention"], SITES[6:]),
        (["**.{0,1}.cross_attention"], SITES[6:8]),
        (["decoder.0.cross_attention", "encoder.0.self_attention"], [SITES[0], SITES[6]]),
        (["encoder.0.self_attention", "encoder.*.self_attention"], SITES[:3]),
    ],
    ids=str,
)
def test_patterns_choose_sites_once_in_the_hosts_order(
    patterns: list[str], expected: list[str]
) -> None:
    expected = [site for site in SITES if site.startswith(tuple(expected))]
    assert select_sites(patterns, SITES) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("encoder.2.self_attention", "encoder.*.cross_attention", "encoder.{2,3}.self_attention"),
        *("encoder.self_attention", "encoder.*", "self_attention", "", "encoder.0.self.x"),
    ],
)
def test_a_pattern_that_matches_nothing_lists_the_hosts_sites(text: str) -> None:
    with pytest.raises(SiteError) as caught:
        select_sites(["encoder.*.self_attention", text], SITES)
    kinds = "encoder.*.self_attention, decoder.*.self_attention, decoder.*.cross_attention"
    start, listed = str(caught.value).split("; this host has: ")
    assert start.startswith(f'no site "{text}"')
    assert listed == kinds


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("encoder.{0,7}.self_attention", "encoder.7.self_attention"),
        ("decoder.{0..99}.cross_attention", "decoder.2.cross_attention"),
        ("{encoder,decoder}.{0,1,5}.self_attention", "encoder.5.self_attention"),
    ],
)
def test_every_layer_of_a_set_or_range_has_to_be_there(text: str, missing: str) -> None:
    with pytest.raises(SiteError) as caught:
        select_sites([text], SITES)
    assert str(caught.value).startswith(f'no site "{missing}" of "{text}"')


def test_the_nearest_pattern_is_named_and_layers_in_a_row_are_written_as_a_range() -> None:
    with pytest.raises(SiteError) as caught:
        select_sites(["decodr.3.cross_attention"], DEEP)
    assert str(caught.value) == (
        'no site "decodr.3.cross_attention"; nearest: "decoder.*.cross_attention"; this host has: '
        "encoder.embeddings, encoder.output, decoder.{0..11}.output, "
        "decoder.{0..11}.cross_attention"
    )


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("decoder.*/4.cross_attention", [0, 4, 8]),
        ("decoder.*/12.cross_attention", [0]),
        ("decoder.*/1.cross_attention", list(range(12))),
        ("decoder.{3,4,5}.cross_attention", [3, 4, 5]),
        ("decoder.{3..5}.cross_attention", [3, 4, 5]),
        ("decoder.{3..11..4}.cross_attention", [3, 7, 11]),
        ("decoder.{0..3,10..11}.cross_attention", [0, 1, 2, 3, 10, 11]),
        ("decoder.-1.cross_attention", [11]),
        ("decoder.{-1,-12}.cross_attention", [0, 11]),
        ("{encoder,decoder}.-2.cross_attention", [10]),
    ],
)
def test_layers_are_named_by_number_step_and_range(pattern: str, layers: list[int]) -> None:
    assert select_sites([pattern], DEEP) == [f"decoder.{i}.cross_attention" for i in layers]


def test_sites_without_a_layer_are_named_as_they_are() -> None:
    assert select_sites(["encoder.output", "encoder.embeddings"], DEEP) == DEEP[:2]
    assert select_sites(["encoder.*"], DEEP) == DEEP[:2]


@pytest.mark.parametrize(
    "pattern",
    [
        *("decoder.-13.cross_attention", "decoder.12.cross_attention", "encoder.-1.output"),
        *("decoder.{5..3}.output", "decoder.*/0.output", "decoder.1..3.output", "encoder.*/2"),
    ],
)
def test_a_number_that_no_layer_has_lists_the_sites(pattern: str) -> None:
    with pytest.raises(SiteError, match=r"no site .*; this host has: encoder\.embeddings, "):
        select_sites([pattern], DEEP)


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        (["decoder.*.output", "decoder.3.output"], '"decoder.*.output"'),
        (["encoder.output", "encoder.output"], '"encoder.output"'),
        (
            ["decoder.0.output", "decoder.1.output", "decoder.{0,1}.output"],
            '"decoder.0.output", "decoder.1.output"',
        ),
    ],
)
def test_a_pattern_whose_sites_were_all_named_before_is_reported(
    patterns: list[str], named: str
) -> None:
    with pytest.raises(SiteError) as caught:
        select_sites(patterns, DEEP)
    assert str(caught.value) == (
        f'sites: "{patterns[-1]}" names nothing new; {named} has all of it'
    )
