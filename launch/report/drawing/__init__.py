"""Figures in SVG from plain numbers: pure functions that know no run."""
