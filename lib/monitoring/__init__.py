"""When does a unit learn a concept? Document 2, Concept-Monitor.

Map, file by file, in reading order.

- ``activations``: what detectors read and return; words and their categories.
- ``similarity``, ``pointwise``: CLIP-Dissect's similarity functions; ``detectors``: CLIP-Dissect
  as an object, and what a detector is.
- ``dissection``: Network Dissection, by overlap with exact masks.
- ``calibration``: thresholds, from a permutation null.
- ``space``: concepts, units and words in one embedding space and on one map.
- ``record``: Algorithm 1, every checkpoint through every detector into one long table;
  ``together``: all checkpoints in one pass over the images.
- ``statistics``: counts, births, transitions, spread, convergence, retention.
- ``live``: the same inside a training loop; ``live_pictures``: a plot that is drawn anew there.
- ``encoder``, ``encoder_training``, ``encoder_floors``: the small image-text encoder, and how good
  it must be; ``encoder_pretrained``: published ones.
- ``stored``: scores and maps through the cache.

The experiments, to be imported by name: ``planted_units``, ``detector_studies`` and
``learned_space``; ``cases`` and ``measures``, which the case studies share; ``standard_studies``,
``lottery_studies``, ``adversarial_studies``, ``fine_tuning_studies``; pictures, and of the longest
also tables, beside each; ``ticket_arms`` has what a lottery ticket is compared with.

Photographs, where `DATA_ROOT` has them: ``real_images``, segmented ones and textures as a probing
set; ``real_cases``, ``real_pairs`` and ``real_tickets``, networks of CIFAR-10 read with it;
``photographs``, ``photo_studies`` and ``texture_studies``, an ImageNet network read with it.
"""
