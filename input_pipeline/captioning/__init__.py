"""Captions for label sets: from a grammar or a language model, checked before they are accepted.

``label_sets`` reads the label sets, ``providers`` propose captions (from the ``grammar`` or a
language model), ``checks`` test them against the ``vocabulary``, and ``generate`` runs the loop.
"""
