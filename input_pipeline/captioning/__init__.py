"""Captions for label sets: from a grammar or a language model, checked before they are accepted.

``label_sets`` reads what is to be captioned, ``grammar`` and ``openai_provider`` propose captions,
``checks`` judge them by the ``vocabulary``, and ``generate`` is the loop of the three.
"""
