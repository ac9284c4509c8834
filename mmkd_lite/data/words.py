"""English for the labels of Unicode: one readable noun for each subgroup and each group.

Unicode's own labels are file headings ("animal-mammal", "Food & Drink"). Captions and zero-shot
prompts need nouns, so each label has exactly one, and no two labels share one.
"""

from __future__ import annotations

import re

GROUP_WORDS: dict[str, str] = {
    "Smileys & Emotion": "emotion sign",
    "People & Body": "human figure",
    "Animals & Nature": "living thing",
    "Food & Drink": "food item",
    "Travel & Places": "place or vehicle",
    "Activities": "leisure item",
    "Objects": "everyday object",
    "Symbols": "symbol",
    "Flags": "flag",
}

SUBGROUP_WORDS: dict[str, str] = {
    "face-smiling": "smiling face",
    "face-affection": "loving face",
    "face-tongue": "tongue face",
    "face-hand": "face with hand",
    "face-neutral-skeptical": "neutral face",
    "face-sleepy": "sleepy face",
    "face-unwell": "unwell face",
    "face-hat": "face with hat",
    "face-glasses": "face with glasses",
    "face-concerned": "concerned face",
    "face-negative": "angry face",
    "face-costume": "costume face",
    "cat-face": "cat face",
    "monkey-face": "monkey face",
    "heart": "heart",
    "emotion": "emotion",
    "hand-fingers-open": "open hand",
    "hand-fingers-partial": "half open hand",
    "hand-single-finger": "pointing hand",
    "hand-fingers-closed": "closed hand",
    "hands": "pair of hands",
    "hand-prop": "busy hand",
    "body-parts": "body part",
    "person": "person",
    "person-gesture": "gesturing person",
    "person-role": "working person",
    "person-fantasy": "fantasy person",
    "person-activity": "active person",
    "person-sport": "sporting person",
    "person-resting": "resting person",
    "family": "couple or family",
    "person-symbol": "person symbol",
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-amphibian": "amphibian",
    "animal-reptile": "reptile",
    "animal-marine": "sea animal",
    "animal-bug": "bug",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "cooked dish",
    "food-asian": "asian dish",
    "food-sweet": "sweet",
    "drink": "drink",
    "dishware": "piece of tableware",
    "place-map": "map",
    "place-geographic": "landscape",
    "place-building": "building",
    "place-religious": "house of worship",
    "place-other": "public place",
    "transport-ground": "land vehicle",
    "transport-water": "boat",
    "transport-air": "aircraft",
    "hotel": "hotel item",
    "time": "timepiece",
    "sky & weather": "weather sign",
    "event": "festive item",
    "award-medal": "award",
    "sport": "piece of sports gear",
    "game": "game",
    "arts & crafts": "craft item",
    "clothing": "piece of clothing",
    "sound": "sound device",
    "music": "music item",
    "musical-instrument": "musical instrument",
    "phone": "phone device",
    "computer": "computer device",
    "light & video": "light or video device",
    "book-paper": "paper item",
    "money": "money item",
    "mail": "postal item",
    "writing": "writing tool",
    "office": "office item",
    "lock": "lock or key",
    "tool": "tool",
    "science": "science item",
    "medical": "medical item",
    "household": "household item",
    "other-object": "odd object",
    "transport-sign": "transport sign",
    "warning": "warning sign",
    "arrow": "arrow",
    "religion": "religious sign",
    "zodiac": "zodiac sign",
    "av-symbol": "media button",
    "gender": "gender sign",
    "math": "math sign",
    "punctuation": "punctuation mark",
    "currency": "currency sign",
    "other-symbol": "other sign",
    "keycap": "keycap",
    "alphanum": "letter sign",
    "geometric": "geometric shape",
    "flag": "banner",
}

_SOUNDS_LIKE_A = ("uni", "one", "euro", "use", "ewe")
_SOUNDS_LIKE_AN = ("hour",)


def is_plural(noun: str) -> bool:
    """Whether a noun reads as a plural, as "french fries" does, and "bus" or "cross" does not."""
    return re.search(r"[^isu]s$", noun) is not None


def with_article(noun: str, adjective: str = "") -> str:
    """The noun with "a" or "an", and an adjective between if there is one.

    Args:
        noun: As "hot dog"; a plural gets no article.
        adjective: As "small", or "".
    """
    phrase = f"{adjective} {noun}" if adjective else noun
    if is_plural(noun):
        return phrase
    vowel = phrase[0] in "aeiou" and not phrase.startswith(_SOUNDS_LIKE_A)
    return f"{'an' if vowel or phrase.startswith(_SOUNDS_LIKE_AN) else 'a'} {phrase}"
