"""Scenes: a procedural world of images with exact masks, captions and labels.

48x48 colour images in Broden's six categories: 74 concepts (colours, textures, materials, objects,
parts, scenes), every pixel labelled as it is painted. `make` gives images of any mix of kinds;
`companions` gives the labelled sets of the case studies. Everything is a pure function of its
arguments; seeds of different roles never meet (`SEEDS`).

`vocabulary.py`  the concepts and what the world is made of, as tables
`painting.py`    which region is where, `shapes.py` the masks, `shading.py` the pixels
`captions.py`    what a caption may say
`world.py`       `make`, `World`, `SEEDS`, `PROBE_MIX`
`companions.py`  scene and object classifiers' sets, fundus images, the second probing set

Source: document 2 probes with Broden, which needs a download; this stands in for it
(specification of document 2, section 4).
"""

from lib.data.scenes.companions import Labelled, fundus, objects, probe, probe_b, scenes
from lib.data.scenes.vocabulary import WORDS, concepts, floors
from lib.data.scenes.world import PROBE_MIX, SEEDS, World, chunks, make, prepare

__all__ = [
    "PROBE_MIX",
    "SEEDS",
    "WORDS",
    "Labelled",
    "World",
    "chunks",
    "concepts",
    "floors",
    "fundus",
    "make",
    "objects",
    "prepare",
    "probe",
    "probe_b",
    "scenes",
]
