"""An atlas of models: profiles and selections that were made before, so that nobody traces them
again.

An entry is a folder of `entries/`, named like it: ``about.json`` (where it comes from),
``profile.nc``, ``selection.json``, ``form_order.csv``, and ``regret.csv`` where edits were made at
every window. It holds numbers and the names of rules, never texts of rules.
"""
