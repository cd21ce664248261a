"""Grafts: modules cut out of a donor and put into another language model, or into a branch's vision tower."""
