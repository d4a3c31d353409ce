"""Colours of outcomes: each is seen on the page, light and dark, and told from the others with any colour vision."""

import itertools
import re

import numpy as np
import pytest

from cgrpo_jax.report import page

# Of linear RGB, as those see it who lack one kind of cones (Machado, Oliveira and Fernandes 2009, severity 1).
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])
_WHITE = np.array([0.95047, 1, 1.08883])


def linear(colour):
    values = np.array(list(bytes.fromhex(colour))) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The contrast of two colours as the WCAG define it, from 1 to 21."""
    low, high = sorted(float(_XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(colour, vision):
    share = _XYZ @ np.clip(VISIONS[vision] @ linear(colour), 0, 1) / _WHITE
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def colours(theme):
    """The page's background, and the colours of outcomes, of a theme."""
    light, dark = re.findall(r"^:root[^{]*\{([^{}]*--o-[^{}]*)\}", (page.ASSETS / "report.css").read_text(), re.M)
    found = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6})", {"light": light, "dark": dark}[theme]))
    return found["paper"], {name: found[name] for name in found if name.startswith("o-")}


def test_contrast_is_that_of_the_guidelines():
    assert contrast("000000", "ffffff") == pytest.approx(21)
    assert contrast("777777", "ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_became_of_a_question_is_seen_and_told_apart(theme):
    paper, outcomes = colours(theme)
    assert len(outcomes) == 5
    assert {name: round(contrast(one, paper), 2) for name, one in outcomes.items() if contrast(one, paper) < 3} == {}
    near = {
        (a, b, vision): float(np.linalg.norm(lab(outcomes[a], vision) - lab(outcomes[b], vision)))
        for a, b in itertools.combinations(outcomes, 2)
        for vision in VISIONS
    }
    assert {pair: round(distance) for pair, distance in near.items() if distance < 15} == {}
