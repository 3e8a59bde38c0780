"""The data sets, one file each; every loader verifies what it reads and says where it is from.

Embedded, no download:
    digits         scikit-learn's 8x8 digits, split 1000 / 400 / 397
    inference      pairs of sentences from a grammar, labelled by known rules
    captions       digits drawn with properties that a caption names
    facts          sentences that state facts: a made-up world, and T-REx (real, below DATA_ROOT)
    scenes         a procedural world of images with exact masks, captions and labels
Real, below DATA_ROOT (`make data` fetches what is public):
    cifar10        50,000 + 10,000 colour images, 32x32
    mnist          60,000 + 10,000 handwritten digits, 28x28
    fashion_mnist  60,000 + 10,000 pieces of clothing, 28x28
    housing        California housing, and a generated table with known entanglement
    imagenet       one image a class with a trained MobileNetV2, and ten textures
    nlp            SNLI and RTE sentence pairs, and the vocabulary
    broden         images with label planes in Broden's format, read and written
    concept_images street scenes, clothing and textures with labels of pixels
    clip_text      CLIP's text embeddings of 1,203 object names
    probing        CIFAR-100, Places365, APTOS and RetinaMNIST in their published layouts
Shared:
    annotations    label planes and concepts, whatever format they came in
    base           provenance, splits, verification, image archives
    idx            the file format of the two MNIST sets
    download       one file, whole or not at all; the public sets (`python -m lib.data`)

Import the module you need (``from lib.data import digits``), so that a notebook is rerun only when
the files it really uses change.
"""
