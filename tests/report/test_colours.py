"""The page can be read in the light and in the dark: each scheme names every colour, with enough contrast."""

import re
from pathlib import Path

import pytest

import bi_compile.report

CSS = (Path(bi_compile.report.__file__).parent / "assets" / "page.css").read_text(encoding="utf-8")
_COLOUR = re.compile(r"--([\w-]+):\s*#([0-9a-f]{6})")


def schemes() -> dict[str, dict[str, str]]:
    light, dark = CSS.split("@media (prefers-color-scheme: dark)", 1)
    dark = dark[: dark.index("\n}")]
    return {"light": dict(_COLOUR.findall(light)), "dark": dict(_COLOUR.findall(dark))}


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def test_both_schemes_name_the_same_colours():
    found = schemes()
    assert found["light"].keys() == found["dark"].keys()
    assert len(found["light"]) > 15
    assert "color-scheme: light dark" in CSS


def test_no_colour_stands_outside_the_schemes():
    rules = CSS[CSS.index("* { box-sizing") :]
    assert not re.findall(r"#[0-9a-f]{3,8}\b|rgba?\(", rules)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme):
    colours = schemes()[scheme]
    for text in "ink", "soft":
        for ground in "ground", "panel":
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for kind in (name.removesuffix("-fill") for name in colours if name.endswith("-fill")):
        assert contrast(colours["ink"], colours[f"{kind}-fill"]) >= 4.5, kind
        assert contrast(colours[kind], colours["panel"]) >= 3, kind


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_scheme_is_as_light_as_it_says(scheme):
    colours = schemes()[scheme]
    assert (luminance(colours["ground"]) > luminance(colours["ink"])) == (scheme == "light")
