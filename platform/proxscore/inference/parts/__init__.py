"""The parts of an optimizer: sets of parameters that are drawn, scored and moved in one way.

A parameter group has up to three kinds: parameters with a mean-field Gaussian, moved in place on their shards
(:mod:`.shards`, or :mod:`.meanless_shards` to save memory), blocks of parameters that another family describes together
(:mod:`.block`), and point estimates (:mod:`.points`). :mod:`.assembly` decides which parameter goes where.
"""
