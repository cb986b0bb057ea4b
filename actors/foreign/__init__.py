"""Handle input from outside: make text safe to show, read files and templates under limits.

Everything here treats its input as hostile: a judge's server, a data set or a model's directory chose it. Imports
nothing heavy, and knows neither judges nor runs.
"""
