"""The 74 concepts of the procedural world, and what it is made of.

Tables are nested tuples of plain values, so that the cache sees every change in them.

Source: specification of document 2, section 4.1; shapes and the colours of parts, which it leaves
open, are ours.
"""

from __future__ import annotations

from lib.data.annotations import CATEGORIES, Concept

COLOURS = (
    ("black", (0.08, 0.08, 0.09)),
    ("blue", (0.15, 0.30, 0.85)),
    ("brown", (0.45, 0.28, 0.13)),
    ("grey", (0.52, 0.52, 0.54)),
    ("green", (0.15, 0.60, 0.20)),
    ("orange", (0.95, 0.55, 0.10)),
    ("pink", (0.97, 0.62, 0.75)),
    ("purple", (0.50, 0.15, 0.65)),
    ("red", (0.85, 0.10, 0.12)),
    ("white", (0.95, 0.95, 0.95)),
    ("yellow", (0.95, 0.88, 0.20)),
)
ANY = tuple(name for name, _ in COLOURS)
TEXTURES = ("striped", "chequered", "dotted", "grid", "zigzagged", "marbled")
MATERIALS = (  # with the colours they come in
    ("wood", ("brown", "orange", "grey")),
    ("brick", ("red", "brown", "white")),
    ("metal", ("grey", "blue", "red")),
    ("water", ("blue", "green", "purple")),
    ("grass", ("green", "yellow")),
    ("sand", ("yellow", "orange", "pink")),
    ("stone", ("grey", "white", "black")),
    ("fabric", ANY),
)
STUFF = ("sky", "ground", "wall")
BRIGHT = ("blue", "green", "orange", "pink", "purple", "red", "white", "yellow")

# Thing: its parts in the order they are painted: (part, colours, materials, may be textured,
# shapes). Object coordinates: u to the right, v down, both from -1 to 1; v = 1 is on the ground.
# box: left, top, right, bottom. oval, dome (an oval's upper half): centre, radii. trapezoid: top,
# bottom, centre, half width at the top and at the bottom. triangle: three points. blades: centre,
# length, half width, turned at random. rose: centre, radius, turned at random.
# The part in MAIN is the one that the thing's colour and surface in a caption refer to.
THINGS = (
    (
        "house",
        (
            ("facade", ANY, ("brick", "wood", "stone"), True, (("box", -0.8, -0.15, 0.8, 1.0),)),
            (
                "roof",
                ("red", "brown", "grey", "black", "orange", "purple"),
                (),
                True,
                (("triangle", -1.0, -0.1, 1.0, -0.1, 0.0, -1.0),),
            ),
            (
                "door",
                ("brown", "red", "green", "blue", "black", "white"),
                ("wood",),
                False,
                (("box", -0.2, 0.3, 0.2, 1.0),),
            ),
            (
                "window",
                ("yellow", "blue", "white", "black"),
                (),
                False,
                (("box", -0.66, 0.08, -0.32, 0.46), ("box", 0.32, 0.08, 0.66, 0.46)),
            ),
        ),
    ),
    (
        "tree",
        (
            (
                "trunk",
                ("brown", "grey", "black"),
                ("wood",),
                False,
                (("box", -0.15, 0.1, 0.15, 1.0),),
            ),
            (
                "crown",
                ("green", "green", "orange", "yellow", "red", "pink", "purple"),
                (),
                True,
                (
                    ("oval", 0.0, -0.5, 0.6, 0.5),
                    ("oval", -0.38, -0.1, 0.45, 0.42),
                    ("oval", 0.38, -0.1, 0.45, 0.42),
                ),
            ),
        ),
    ),
    (
        "car",
        (
            (
                "body",
                ANY,
                ("metal",),
                True,
                (
                    ("box", -1.0, 0.12, 1.0, 0.74),
                    ("trapezoid", -0.42, 0.14, -0.08, 0.4, 0.66),
                ),
            ),
            (
                "window",
                ("white", "black", "blue", "yellow"),
                (),
                False,
                (("box", -0.44, -0.28, -0.14, 0.1), ("box", -0.02, -0.28, 0.28, 0.1)),
            ),
            (
                "wheel",
                ("black", "grey", "brown"),
                (),
                False,
                (("oval", -0.55, 0.72, 0.28, 0.28), ("oval", 0.55, 0.72, 0.28, 0.28)),
            ),
        ),
    ),
    (
        "boat",
        (
            (
                "mast",
                ("brown", "black", "grey"),
                ("wood",),
                False,
                (("box", -0.08, -1.0, 0.08, 0.5),),
            ),
            (
                "sail",
                BRIGHT,
                ("fabric",),
                True,
                (
                    ("triangle", 0.1, -0.95, 0.1, 0.3, 0.85, 0.3),
                    ("triangle", -0.12, -0.7, -0.12, 0.3, -0.65, 0.3),
                ),
            ),
            ("hull", ANY, ("wood", "metal"), False, (("trapezoid", 0.42, 1.0, 0.0, 1.0, 0.6),)),
        ),
    ),
    (
        "windmill",
        (
            ("tower", ANY, ("brick", "stone"), True, (("trapezoid", -0.35, 1.0, 0.0, 0.2, 0.42),)),
            (
                "blade",
                ("white", "brown", "red", "black", "yellow"),
                (),
                False,
                (("blades", 0.0, -0.32, 0.72, 0.1),),
            ),
        ),
    ),
    (
        "lamp",
        (
            (
                "pole",
                ("grey", "black", "brown"),
                ("metal",),
                False,
                (("box", -0.08, -0.4, 0.08, 1.0), ("box", -0.4, 0.86, 0.4, 1.0)),
            ),
            (
                "shade",
                ("yellow", "orange", "white", "red", "green", "blue", "pink"),
                ("fabric",),
                True,
                (("trapezoid", -1.0, -0.25, 0.0, 0.28, 0.66),),
            ),
        ),
    ),
    (
        "flower",
        (
            (
                "stem",
                ("green",),
                (),
                False,
                (("box", -0.08, 0.0, 0.08, 1.0), ("oval", 0.3, 0.6, 0.3, 0.12)),
            ),
            (
                "petal",
                ("red", "pink", "purple", "yellow", "white", "orange", "blue"),
                (),
                True,
                (("rose", 0.0, -0.36, 0.66),),
            ),
        ),
    ),
    (
        "mushroom",
        (
            (
                "stalk",
                ("white", "yellow", "brown", "grey"),
                (),
                False,
                (("trapezoid", 0.0, 1.0, 0.0, 0.18, 0.3),),
            ),
            ("cap", ANY, (), True, (("dome", 0.0, 0.14, 0.95, 0.9),)),
        ),
    ),
    (
        "fish",
        (
            (
                "tail",
                BRIGHT,
                (),
                False,
                (("triangle", 0.35, 0.1, 1.0, -0.42, 1.0, 0.62),),
            ),
            (
                "fin",
                BRIGHT,
                (),
                False,
                (
                    ("triangle", -0.35, -0.2, 0.3, -0.2, 0.35, -0.78),
                    ("triangle", -0.1, 0.4, 0.3, 0.4, 0.35, 0.8),
                ),
            ),
            ("body", ANY, (), True, (("oval", -0.2, 0.1, 0.76, 0.46),)),
        ),
    ),
    (
        "table",
        (
            (
                "leg",
                ("brown", "black", "white", "grey"),
                ("wood", "metal"),
                False,
                (("box", -0.82, -0.1, -0.62, 1.0), ("box", 0.62, -0.1, 0.82, 1.0)),
            ),
            ("tabletop", ANY, ("wood", "stone"), True, (("box", -1.0, -0.35, 1.0, 0.0),)),
        ),
    ),
    (
        "cactus",
        (
            (
                "stem",
                ("green", "green", "blue", "purple"),
                (),
                True,
                (
                    ("box", -0.2, -0.9, 0.2, 1.0),
                    ("oval", 0.0, -0.9, 0.2, 0.14),
                    ("box", -0.8, -0.4, -0.52, 0.25),
                    ("box", -0.8, 0.0, 0.0, 0.25),
                    ("box", 0.52, -0.6, 0.8, 0.05),
                    ("box", 0.0, -0.2, 0.8, 0.05),
                ),
            ),
        ),
    ),
    (
        "umbrella",
        (
            (
                "pole",
                ("brown", "black", "grey", "white"),
                ("wood", "metal"),
                False,
                (("box", -0.08, -0.4, 0.08, 1.0),),
            ),
            ("canopy", ANY, ("fabric",), True, (("dome", 0.0, 0.0, 1.0, 0.95),)),
        ),
    ),
)
MAIN = (  # in the order of THINGS
    "facade",
    "crown",
    "body",
    "hull",
    "tower",
    "shade",
    "petal",
    "cap",
    "body",
    "tabletop",
    "stem",
    "canopy",
)
MAX_PARTS = 4

# Scene: colours of what is above the horizon, what that is, material (None: plain) of a band
# between, material of what is below, typical things. An empty tuple of colours: of the material.
SCENES = (
    ("beach", ("blue", "white", "orange"), "sky", "water", "sand", ("umbrella", "boat")),
    ("forest", ("green", "blue", "white"), "sky", None, "grass", ("tree", "tree", "mushroom")),
    ("street", ("blue", "grey", "white"), "sky", None, "stone", ("house", "car", "lamp")),
    ("harbour", ("blue", "pink", "orange"), "sky", None, "water", ("boat", "boat", "windmill")),
    ("field", ("blue", "white", "orange"), "sky", None, "grass", ("windmill", "flower")),
    ("desert", ("orange", "pink", "blue"), "sky", None, "sand", ("cactus",)),
    (
        "room",
        ("white", "pink", "yellow", "blue", "green", "purple", "grey"),
        "wall",
        None,
        "wood",
        ("table", "lamp"),
    ),
    ("underwater", (), "", None, "sand", ("fish",)),
    ("city", ("black", "purple"), "sky", None, "stone", ("house", "car", "windmill")),
    ("garden", ("blue", "white"), "sky", "brick", "grass", ("flower", "tree", "mushroom")),
)
THING_NAMES = tuple(name for name, _ in THINGS)
SCENE_NAMES = tuple(scene[0] for scene in SCENES)
PART_NAMES = tuple(dict.fromkeys(part[0] for _, parts in THINGS for part in parts))
KINDS = ("scene", "texture", "material", "colour", "close-up")
NAMES = (  # of the labels, in the order of CATEGORIES
    ANY,
    STUFF + THING_NAMES,
    PART_NAMES,
    tuple(name for name, _ in MATERIALS),
    SCENE_NAMES,
    TEXTURES,
)
WORDS = tuple(word for names in NAMES for word in names)  # no word is in two categories
FLOORS = (0.06, 0.012, 0.006, 0.04, 0.5, 0.04)  # coverage from which a concept is visible


def value(word: str) -> int:
    """Label value of a concept word, 1 to 74."""
    return WORDS.index(word) + 1


def concepts() -> tuple[Concept, ...]:
    """The 74 concepts in the order of their label values, raw names as Broden writes them."""
    suffix = {"color": "-c", "scene": "-s"}
    return tuple(
        Concept(value(word), word + suffix.get(category, ""), word, category)
        for category, names in zip(CATEGORIES, NAMES, strict=True)
        for word in names
    )


def floors() -> tuple[float, ...]:
    """Of each concept: the coverage from which it counts as visible."""
    return tuple(f for f, names in zip(FLOORS, NAMES, strict=True) for _ in names)
