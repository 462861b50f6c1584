"""Weights in other people's files: reading them safely, telling the model from the keys, writing them back.

Modules, in the order of the work: `options` (what to convert), `foreign` (a file, read without running anything in it),
`architecture` and `mmseg` (which model it is), `names` (tensors from one naming to another), `conversion` (all of it),
`report` (what went where).
"""
