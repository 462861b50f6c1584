"""Weights in other people's files: reading them safely, telling the model from the keys, writing them back.

Modules, in the order of the work: `options` (what to convert), `foreign` and `safe_pickle` (a file, read without
running anything in it), `layouts` (tables of key names), `architecture` and `mmseg_config` (which model it is),
`matching` (tensors from one naming to another), `conversion` (all of it), `report` (what went where).
"""
