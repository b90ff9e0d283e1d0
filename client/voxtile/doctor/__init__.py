"""Examines a model repository against a release of Triton and a machine, without running anything.

It reads configurations, cards, certificates and the heads of engines' files. It knows no network, no scan, no terminal.
"""
