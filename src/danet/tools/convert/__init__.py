"""Convert weights of other code bases: read files safely, infer the model from the keys, write them back.

Modules in processing order: `options` (what to convert), `foreign` (read a file without executing anything in it),
`architecture` and `mmseg` (infer the model), `names` (rename tensors), `conversion` (everything together), `report`
(what went where).
"""
